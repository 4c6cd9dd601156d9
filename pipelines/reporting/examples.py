"""Images for the report: the worst mistakes of a model and what it confuses most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from grpo_rm.datasets import Split
from grpo_rm.inference import Predictions
from pipelines.reporting.thumbnails import thumbnail

MAX_MISTAKES = 12
IMAGES_PER_CONFUSION = 4


@dataclass(frozen=True)
class Example:
    """An image as the page shows it."""

    id: str
    image: str  # data: URI
    actual: str
    predicted: str
    confidence: float  # probability of the predicted class


def worst_mistakes(test: Predictions, split: Split, classes: Sequence[str]) -> list[Example]:
    """Return the images that the model got wrong, those it was surest of first.

    Args:
        test: what the model says about the images of `split`.
        split: the images, in the same order.
        classes: K class names.
    """
    return _examples(_surest(_mistakes(test), test)[:MAX_MISTAKES], test, split, classes)


def confused_images(
    test: Predictions, split: Split, classes: Sequence[str], cells: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[Example]]:
    """Return some images of each confusion (actual class, predicted class), the surest first; arguments as above."""
    predicted = test.logits.argmax(axis=1)
    found = {}
    for actual, wrong in cells:
        is_cell = (test.labels == classes.index(actual)) & (predicted == classes.index(wrong))
        rows = _surest(np.flatnonzero(is_cell), test)[:IMAGES_PER_CONFUSION]
        found[actual, wrong] = _examples(rows, test, split, classes)
    return found


def _mistakes(test: Predictions) -> NDArray[np.int64]:
    return np.flatnonzero(test.logits.argmax(axis=1) != test.labels)


def _surest(rows: NDArray[np.int64], test: Predictions) -> NDArray[np.int64]:
    """Sort rows by confidence, the highest first; equal ones stay in order."""
    return rows[np.argsort(-_confidence(rows, test), kind="stable")]


def _confidence(rows: NDArray[np.int64], test: Predictions) -> NDArray[np.float64]:
    return np.asarray(softmax(test.logits[rows].astype(np.float64), axis=1).max(axis=1, initial=0.0))


def _examples(rows: NDArray[np.int64], test: Predictions, split: Split, classes: Sequence[str]) -> list[Example]:
    predicted, confidence = test.logits[rows].argmax(axis=1), _confidence(rows, test)
    return [
        Example(
            split.ids[row], thumbnail(split.files[row]), classes[test.labels[row]], classes[guess], float(probability)
        )
        for row, guess, probability in zip(rows.tolist(), predicted, confidence, strict=True)
    ]
