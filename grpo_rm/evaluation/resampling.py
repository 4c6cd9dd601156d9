"""Metrics on thousands of resamples of the test images at once.

Macro F1, the worst class and ECE are no means over images, so a resample has to measure them anew. All of them follow
from sums of a few numbers per image (right answers of a class, labels of a class, confidence minus correctness in a
bin), and the sums of all resamples are one product of a sparse matrix with how often each resample has each image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sums = npt.NDArray[np.float64]  # (S, R): S sums of R resamples

BLOCK_ELEMENTS = 400_000  # counts held at once: they stay in the cache of the processor


@dataclass(frozen=True)
class MetricSums:
    """A metric of one model on N images.

    Attributes:
        terms: (S, N) SciPy sparse: what each image adds to each of S sums.
        finish: From the sums (S, R) of R resamples to the metric (R,).
        is_share: Whether it is the mean of a score in [0, 1] per image.
    """

    terms: Any
    finish: Callable[[Sums], Sums]
    is_share: bool = False

    @property
    def num_images(self) -> int:
        """N."""
        return int(self.terms.shape[1])

    @property
    def value(self) -> float:
        """The metric on the images as they are."""
        return float(self.finish(self.terms @ np.ones((self.num_images, 1)))[0])


Metrics = Mapping[str, MetricSums]  # of one model, by name


def mean_sums(scores: Array, *, is_share: bool = False) -> MetricSums:
    """Return the mean of a score per image.

    Args:
        scores: (N,) such as right or wrong as 1 or 0, NLL, Brier score.
        is_share: Whether they are from 0 to 1 by their nature, as right or wrong is and NLL is not.

    Raises:
        ValueError: another shape, no image, NaN or infinite scores.
    """
    from scipy.sparse import csr_array

    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"got scores of shape {scores.shape}; expected (images,) with at least one image")
    if not np.isfinite(scores).all():
        raise ValueError(
            "got NaN or infinite scores; expected finite numbers: find the images whose score failed and repair them, "
            "or drop them for both models"
        )
    num_images = len(scores)
    terms = csr_array(scores.astype(np.float64)[None])
    return MetricSums(terms, lambda sums: np.asarray(sums[0] / num_images), is_share)


def bootstrap_differences(
    candidates: Sequence[Metrics], controls: Sequence[Metrics], *, num_resamples: int, seed: int
) -> dict[str, Sums]:
    """Measure candidate minus control on resamples of the images: the same resample for all models and metrics.

    Args:
        candidates: The metrics of each training seed's candidate, all on the same N images in the same order.
        controls: The same of the controls.
        num_resamples: R; each draws N images with replacement.
        seed: Of the draws.

    Returns:
        Name to (training seeds, R).
    """
    num_images = _num_images(candidates)
    rng = np.random.default_rng(seed)

    def counts(size: int) -> Sums:
        images = rng.integers(0, num_images, size=(size, num_images))
        cells = images * size + np.arange(size)[:, None]
        return np.bincount(cells.ravel(), minlength=num_images * size).reshape(num_images, size).astype(np.float64)

    def measure(candidate: MetricSums, control: MetricSums, images: Sums) -> Sums:
        return candidate.finish(candidate.terms @ images) - control.finish(control.terms @ images)

    return _in_blocks(candidates, controls, num_resamples, counts, measure)


def swapped_differences(
    candidates: Sequence[Metrics], controls: Sequence[Metrics], *, num_resamples: int, seed: int
) -> dict[str, Sums]:
    """Measure candidate minus control with the two models swapped on a random half of the images.

    That is how the difference spreads if it does not matter which model answers (paired permutation; the flip of signs
    where the metric is a mean). `scipy.stats.permutation_test` says the same and takes 15 times as long.

    Args:
        candidates: See `bootstrap_differences`.
        controls: See `bootstrap_differences`.
        num_resamples: R.
        seed: Of the swaps.

    Returns:
        Name to (training seeds, R).
    """
    num_images = _num_images(candidates)
    rng = np.random.default_rng(seed)
    ones = np.ones((num_images, 1))

    def swaps(size: int) -> Sums:
        return rng.integers(0, 2, size=(num_images, size), dtype=np.int8).astype(np.float64)

    def measure(candidate: MetricSums, control: MetricSums, is_swapped: Sums) -> Sums:
        moved = (control.terms - candidate.terms) @ is_swapped  # sparse: nothing moves where both models agree
        own, other = candidate.terms @ ones, control.terms @ ones
        return candidate.finish(own + moved) - control.finish(other - moved)

    return _in_blocks(candidates, controls, num_resamples, swaps, measure)


def resample_seeds(resamples: Sums, confidence: float, seed: int) -> Sums:
    """Draw training seeds, too, for each resample of the images (see `comparison.compare_metrics`).

    Args:
        resamples: (seeds, R), as `bootstrap_differences` returns them.
        confidence: Of the interval that is made of them: the fewer the seeds, the wider their draws have to spread.
        seed: Of the draws.

    Returns:
        (R,); with one seed, what it was.
    """
    from scipy.stats import norm, t

    num_seeds, num_resamples = resamples.shape
    center = resamples.mean(axis=0)
    if num_seeds == 1:
        return np.asarray(center)
    tail = (1 + confidence) / 2
    widening = t.ppf(tail, num_seeds - 1) / norm.ppf(tail) * np.sqrt(num_seeds / (num_seeds - 1))
    shares = np.full(num_seeds, 1 / num_seeds)
    counts = np.random.default_rng([seed, num_seeds]).multinomial(num_seeds, shares, size=num_resamples)
    drawn = (counts.T * resamples).sum(axis=0) / num_seeds
    return np.asarray(center + widening * (drawn - center))


def _in_blocks(
    candidates: Sequence[Metrics],
    controls: Sequence[Metrics],
    num_resamples: int,
    draw: Callable[[int], Sums],
    measure: Callable[[MetricSums, MetricSums, Sums], Sums],
) -> dict[str, Sums]:
    """Measure blocks of draws, so that memory stays bounded."""
    measured: dict[str, list[Sums]] = {name: [] for name in candidates[0]}
    for size in _block_sizes(num_resamples, _num_images(candidates)):
        drawn = draw(size)
        for name, blocks in measured.items():
            pairs = zip(candidates, controls, strict=True)
            blocks.append(np.stack([measure(candidate[name], control[name], drawn) for candidate, control in pairs]))
    return {name: np.concatenate(blocks, axis=1) for name, blocks in measured.items()}


def _block_sizes(num_resamples: int, num_images: int) -> Iterator[int]:
    largest = max(1, BLOCK_ELEMENTS // num_images)
    for start in range(0, num_resamples, largest):
        yield min(largest, num_resamples - start)


def _num_images(models: Sequence[Metrics]) -> int:
    return next(iter(models[0].values())).num_images
