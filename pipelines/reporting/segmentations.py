"""What the report shows of single segmentations: the best, the worst and random ones, and where two models differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grpo_rm.dense_datasets import DenseSplit
from grpo_rm.evaluation.robustness import choose_images
from pipelines.dense_predictions import DenseOutputs, decode_classes
from pipelines.models import CANDIDATE, CONTROL
from pipelines.reporting.mask_pictures import describe_mask, mask_colors, mask_picture
from pipelines.reporting.thumbnails import thumbnail

NUM_SAMPLES = 4  # of each group
SIDE = 192  # pixels of the longer side of a picture, at most
MODELS = (CONTROL, CANDIDATE)  # shown beside the truth

Mask = NDArray[np.integer]


class MaskPicture(NamedTuple):
    """A mask as the page shows it."""

    image: str  # data: URI
    text: str  # its largest classes


@dataclass(frozen=True)
class Sample:
    """A test image with its truth and what the models say of it."""

    id: str
    image: str  # data: URI
    truth: MaskPicture
    predictions: dict[str, MaskPicture]  # by model
    ious: dict[str, float]


@dataclass(frozen=True)
class SampleGroup:
    """Samples chosen in one way, and how."""

    title: str
    note: str
    samples: list[Sample]


@dataclass(frozen=True)
class Segmentations:
    """The groups, and the name and CSS color of each class that a picture of them shows."""

    groups: list[SampleGroup]
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class DenseContent:
    """What the page of a segmentation has beside that of classification.

    Attributes:
        segmentations: of test images.
        class_rows: model name to the rows of `class_bars.class_panels`.
        num_images: by split; the counts in dataset.json are of the images in which a class occurs.
    """

    segmentations: Segmentations
    class_rows: Mapping[str, Sequence[Mapping[str, Any]]]
    num_images: Mapping[str, int]


def show_segmentations(
    outputs: Mapping[str, DenseOutputs], test: DenseSplit, classes: Sequence[str], *, seed: int
) -> Segmentations:
    """Choose test images and draw them.

    Args:
        outputs: what control and candidate say of the images of `test`, by model, in the order of `test`.
        test: images and masks.
        classes: K class names.
        seed: chooses the random ones.
    """
    ious = {name: image_ious(outputs[name].sums.confusion) for name in MODELS}
    chosen = choose_rows(ious[CANDIDATE], ious[CONTROL], test.ids, seed=seed)
    rows = dict.fromkeys(row for _, _, members in chosen for row in members)
    masks = {row: _masks_of(outputs, test, row) for row in rows}
    samples = {row: _sample(test, row, masks[row], ious, classes) for row in rows}
    return Segmentations(
        [SampleGroup(title, note, [samples[row] for row in members]) for title, note, members in chosen],
        _legend(masks.values(), classes),
    )


def image_ious(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each image's own mean IoU, over the classes in its truth; NaN where all its pixels are void.

    Classes in the truth alone, so that two models are measured on the same ones; a class predicted where it is not
    still takes from the IoU of the one that is there.

    Args:
        confusion: (N, K, K) pixels, see `pixels.confusion_per_image`.
    """
    labeled = confusion.sum(axis=2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    union = labeled + confusion.sum(axis=1) - hits
    shares = np.where(labeled > 0, hits / np.maximum(union, 1), 0.0).sum(axis=1)
    count = (labeled > 0).sum(axis=1)
    return np.where(count > 0, shares / np.maximum(count, 1), np.nan)


def choose_rows(
    candidate: NDArray[np.float64], control: NDArray[np.float64], ids: Sequence[str], *, seed: int
) -> list[tuple[str, str, list[int]]]:
    """Return title, note and places of each group of test images, by their IoUs (N,).

    Empty groups are left out, and so are images whose pixels are all void.
    """
    known, gain = np.flatnonzero(np.isfinite(candidate)), candidate - control
    rising, by_gain = (known[np.argsort(values[known], kind="stable")].tolist() for values in (candidate, gain))
    at_random = known[choose_images([ids[row] for row in known.tolist()], limit=NUM_SAMPLES, seed=seed)].tolist()
    groups = [
        ("Best of GRPO-RM", "", rising[::-1]),
        ("Worst of GRPO-RM", "", rising),
        ("At random", "Chosen by the seed, whatever the models say of them.", at_random),
        ("Where GRPO-RM gains most against the control", "", [row for row in by_gain[::-1] if gain[row] > 0]),
        ("Where GRPO-RM loses most against the control", "", [row for row in by_gain if gain[row] < 0]),
    ]
    return [(title, note, rows[:NUM_SAMPLES]) for title, note, rows in groups if rows]


def _masks_of(outputs: Mapping[str, DenseOutputs], test: DenseSplit, row: int) -> dict[str, Mask]:
    """Return the masks of an image: the truth, under "", and those of the models."""
    return {"": test.masks[row]} | {name: decode_classes(outputs[name].masks[row]) for name in MODELS}


def _sample(
    test: DenseSplit,
    row: int,
    masks: Mapping[str, Mask],
    ious: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
) -> Sample:
    pictures = {
        name: MaskPicture(mask_picture(mask, side=SIDE), describe_mask(mask, classes)) for name, mask in masks.items()
    }
    return Sample(
        id=test.ids[row],
        image=thumbnail(test.files[row], side=SIDE),
        truth=pictures.pop(""),
        predictions=pictures,
        ious={name: float(values[row]) for name, values in ious.items()},
    )


def _legend(masks: Iterable[Mapping[str, Mask]], classes: Sequence[str]) -> list[tuple[str, str]]:
    colors = mask_colors(len(classes))
    found = {int(label) for of_image in masks for mask in of_image.values() for label in np.unique(mask)}
    return [(classes[label], colors[label]) for label in sorted(found) if label >= 0]
