"""A map of the embeddings of some test images, before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_IMAGES = 1000
MIN_IMAGES = 8  # of fewer there is no map
PERPLEXITY = 30.0
START_STD = 1e-4  # of the coordinates t-SNE starts from, as scikit-learn has it
SIDE = 400  # of the square that holds the map
MARGIN = 14
# Told apart by most color-blind readers, on white and on black.
PALETTE = (
    *("#4477aa", "#ee6677", "#228833", "#b8a51f", "#37a9cf"),
    *("#aa3377", "#8c8c8c", "#e6803c", "#7a5cc4", "#7a5230"),
)


@dataclass(frozen=True)
class Point:
    """An image on the map, in [0, SIDE], and what is said where the pointer rests on it."""

    x: float
    y: float
    label: int
    text: str


def map_points(
    embeddings: Mapping[str, NDArray[np.float32]],
    ids: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    seed: int,
) -> dict[str, list[Point]]:
    """Return the points of each model; none where there are too few images for a map.

    Args:
        embeddings: model name to (N, D), of the same images; each map starts from the one before it and is turned
            towards it, so that an image stays about where it was.
        ids: N ids.
        labels: N class indices.
        classes: K class names.
        seed: of t-SNE.
    """
    if len(ids) < MIN_IMAGES:
        return {}
    points, start = {}, None
    for name, vectors in embeddings.items():
        found = tsne(vectors, seed=seed, start=start)
        start = found if start is None else _turn_towards(found, start)
        places = _fit_into_square(start)
        points[name] = [
            Point(round(float(x), 1), round(float(y), 1), int(label), f"{id_}: {classes[label]}")
            for (x, y), id_, label in zip(places, ids, labels, strict=True)
        ]
    return points


def class_colors(num_classes: int) -> list[str]:
    """Return a CSS color for each class; beyond the palette, hues in the order of the classes."""
    if num_classes <= len(PALETTE):
        return list(PALETTE[:num_classes])
    return [f"hsl({360 * index / num_classes:.0f} 60% 52%)" for index in range(num_classes)]


def tsne(
    embeddings: NDArray[np.float32], *, seed: int, start: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Place embeddings (N, D) on a plane (N, 2) by cosine similarity; all on one spot where they are all the same.

    Args:
        embeddings: they are L2-normalized first, as for k-NN.
        seed: of the optimization.
        start: (N, 2) places to start from; None: the first two principal components.
    """
    from sklearn.manifold import TSNE

    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(lengths > 0, lengths, 1)
    if np.ptp(units, axis=0).max() < 1e-6:
        return np.zeros((len(units), 2), np.float32)
    has_start = start is not None and start[:, 0].std() > 0
    first: Any = start / start[:, 0].std() * START_STD if start is not None and has_start else "pca"
    perplexity = min(PERPLEXITY, (len(units) - 1) / 3)
    method = TSNE(perplexity=perplexity, init=first, random_state=seed, learning_rate="auto")
    return np.asarray(method.fit_transform(units), dtype=np.float32)


def _turn_towards(places: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotate and mirror a map to lie as near to another as it can; distances in it stay."""
    from scipy.linalg import orthogonal_procrustes

    centered = places - places.mean(axis=0)
    rotation, _ = orthogonal_procrustes(centered, target - target.mean(axis=0))
    return np.asarray(centered @ rotation, dtype=np.float32)


def _fit_into_square(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale both axes alike, so that distances stay comparable, with room around it."""
    center = (places.max(axis=0) + places.min(axis=0)) / 2
    reach = np.ptp(places, axis=0).max() or 1.0
    return np.asarray(SIDE / 2 + (places - center) / reach * (SIDE - 2 * MARGIN), dtype=np.float32)
