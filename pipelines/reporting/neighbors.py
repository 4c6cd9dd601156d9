"""A few test images with the training images nearest to them, before and after fine-tuning, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_rm.datasets import Split
from pipelines.reporting.thumbnails import thumbnail

NUM_IMAGES = 6
NUM_NEIGHBORS = 5


@dataclass(frozen=True)
class Picture:
    """An image as the page shows it."""

    id: str
    image: str  # data: URI
    label: str


@dataclass(frozen=True)
class Neighborhood:
    """A test image and, by model, its nearest training images with their cosine similarity."""

    query: Picture
    nearest: dict[str, list[tuple[Picture, float]]]


def find_neighborhoods(
    embeddings: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    train: Split,
    test: Split,
    rows: Sequence[int],
    classes: Sequence[str],
) -> list[Neighborhood]:
    """Return the neighborhoods of some test images.

    Args:
        embeddings: model name to the embeddings of all training images and of all test images.
        train: the training images, in the order of their embeddings.
        test: the test images, likewise.
        rows: places of the test images to be shown.
        classes: K class names.
    """
    found = {name: nearest(of_train, of_test[list(rows)]) for name, (of_train, of_test) in embeddings.items()}
    return [
        Neighborhood(
            _picture(test, row, classes),
            {
                name: [
                    (_picture(train, int(place), classes), float(similarity))
                    for place, similarity in zip(places[i], similarities[i], strict=True)
                ]
                for name, (places, similarities) in found.items()
            },
        )
        for i, row in enumerate(rows)
    ]


def nearest(
    gallery: NDArray[np.float32], queries: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places (Q, k) of the nearest of a gallery (N, D) to queries (Q, D), and their cosine similarities."""
    similarities = _units(queries) @ _units(gallery).T
    places = np.argsort(-similarities, axis=1, kind="stable")[:, :NUM_NEIGHBORS]
    return places, np.take_along_axis(similarities, places, axis=1)


def _units(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _picture(split: Split, row: int, classes: Sequence[str]) -> Picture:
    return Picture(split.ids[row], thumbnail(split.files[row]), classes[split.labels[row]])
