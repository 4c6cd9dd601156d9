"""Places in the images: their dense embeddings, a sample of them, and how well k-NN and linear probe tell their class.

Which places are taken follows from (seed, id, mask) alone, so they are the same for all models. Images are the units
of every comparison: places of one image are alike.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grpo_rm.evaluation.measurement import neighbor_and_probe_scores
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.evaluation.robustness import choose_images
from grpo_rm.evaluation.segmentation import ratio_sums
from grpo_rm.inference import Predictions

TRAIN_PLACES = 20_000  # of all training images
PLACES = 10  # of an image of val or test

Rows = NDArray[np.int64]


def places_per_image(ids: Sequence[str], split: str, *, seed: int) -> dict[int, int]:
    """Return how many places are taken of each row of a split; of rows that are missing, none."""
    if split != "train":
        return dict.fromkeys(range(len(ids)), PLACES)
    chosen = choose_images(ids, limit=TRAIN_PLACES, seed=seed)
    return dict.fromkeys(chosen, TRAIN_PLACES // len(chosen))


def choose_places(targets: Tensor, id_: str, *, count: int, seed: int) -> Rows:
    """Return the indices of up to `count` valid places of an image.

    Args:
        targets: (h, w) classes of its places, below 0 where there is none.
        id_: Of the image.
        count: Number of places.
        seed: Of the choice.
    """
    valid = np.flatnonzero(targets.numpy().ravel() >= 0)
    digest = hashlib.blake2b(f"{seed}/{id_}".encode(), digest_size=16).digest()
    generator = np.random.default_rng(int.from_bytes(digest))
    return np.sort(generator.choice(valid, size=min(count, len(valid)), replace=False))


def middle_window(images: Tensor, window: int | None) -> Tensor:
    """Return the middle (B, window, window, ...) of images or masks (B, H, W, ...), as an encoder may take no more.

    They are returned themselves where `window` is None, or no side is larger.
    """
    if window is None or window >= max(images.shape[1:3]):
        return images
    top, left = (max(0, (side - window) // 2) for side in images.shape[1:3])
    return images[:, top : top + window, left : left + window]


def sample_places(targets: Tensor, ids: Mapping[int, str], counts: Mapping[int, int], *, seed: int) -> list[Rows]:
    """Return the places of each image that are taken; see `choose_places`.

    Args:
        targets: (B, h, w) of a batch.
        ids: The row in the split of each of its images, to the id.
        counts: See `places_per_image`.
        seed: Of the choice.
    """
    images = zip(targets, ids.items(), strict=True)
    return [choose_places(one, id_, count=counts.get(row, 0), seed=seed) for one, (row, id_) in images]


def take_places(embedding: Tensor, logits: Tensor, targets: Tensor, places: Sequence[Rows]) -> Predictions:
    """Return what a model says of the chosen places, image by image.

    Args:
        embedding: (B, D, h, w).
        logits: (B, K, h, w).
        targets: (B, h, w) classes.
        places: Of each image.
    """
    labels = _take(targets.unsqueeze(1), places)[:, 0]
    return Predictions(_take(embedding.float().cpu(), places), _take(logits.float().cpu(), places), labels)


def patch_sums(
    outputs: Mapping[str, Predictions],
    image_rows: Rows,
    *,
    num_images: int,
    ks: Sequence[int],
    knn_temperature: float,
) -> dict[str, MetricSums]:
    """Return the share of the places of the test images whose class k-NN and linear probe tell.

    Nothing is returned where there are too few places: none of val or test, of train fewer than neighbors or classes.

    Args:
        outputs: Places of train, val and test.
        image_rows: The row of the image of each place of test.
        num_images: Of test, those without a place included.
        ks: Numbers of neighbors.
        knn_temperature: Of their votes.
    """
    splits = [outputs[name] for name in ("train", "val", "test")]
    if not _has_enough(splits, ks):
        return {}
    scores = neighbor_and_probe_scores(*splits, ks=ks, knn_temperature=knn_temperature)
    places = np.bincount(image_rows, minlength=num_images)
    return {
        name: ratio_sums(np.bincount(image_rows, weights=is_right, minlength=num_images), places)
        for name, is_right in scores.items()
    }


def _has_enough(splits: Sequence[Predictions], ks: Sequence[int]) -> bool:
    train, *others = (split.labels for split in splits)
    return len(train) >= max(ks) and len(np.unique(train)) > 1 and all(len(labels) for labels in others)


def _take(maps: Tensor, places: Sequence[Rows]) -> NDArray[Any]:
    """Return (all places, D) of maps (B, D, h, w)."""
    return np.concatenate(
        [one.flatten(1).T[torch.from_numpy(rows)].numpy() for one, rows in zip(maps, places, strict=True)]
    )
