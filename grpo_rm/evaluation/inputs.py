"""What every measure requires of its arrays; a violation is a ValueError that says how to repair it."""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


def check_logits(logits: FloatArray, labels: IntArray) -> None:
    """Accept finite logits (N, K) with N >= 1 and K >= 2, and labels (N,) in range(K).

    Raises:
        ValueError: shapes that do not fit, NaN or infinite logits, a label outside range(K).
    """
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"got logits of shape {logits.shape}; expected (images, classes) with at least 1 image and 2 classes: "
            "pass one row of logits per image"
        )
    check_labels(labels, num_images=logits.shape[0], num_classes=logits.shape[1])
    _check_finite(logits, "logits")


def check_labels(labels: IntArray | Tensor, *, num_images: int, num_classes: int | None = None) -> None:
    """Accept integer labels (num_images,), in range(num_classes) where that is given.

    Raises:
        ValueError: another shape, a type that is not integer, a label outside range(num_classes).
    """
    if tuple(labels.shape) != (num_images,):
        raise ValueError(
            f"got labels of shape {tuple(labels.shape)} for {num_images} images; expected ({num_images},): "
            "pass one class index per image"
        )
    if not _is_integer(labels):
        raise ValueError(f"got labels of type {labels.dtype}; expected integers: convert them to int64 class indices")
    if num_classes is None or num_images == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"got labels from {low} to {high}; expected 0 to {num_classes - 1} for {num_classes} classes: "
            "drop unlabelled images (-1) and check the number of classes"
        )


def check_embeddings(embeddings: FloatArray | Tensor, *, min_images: int = 1) -> None:
    """Accept finite embeddings (N, D) with N >= min_images and D >= 1.

    Raises:
        ValueError: another shape, too few images, NaN or infinite values.
    """
    if embeddings.ndim != 2 or embeddings.shape[0] < min_images or embeddings.shape[1] < 1:
        raise ValueError(
            f"got embeddings of shape {tuple(embeddings.shape)}; expected (images, dimensions) with at least "
            f"{min_images} image(s): pass one row per image"
        )
    _check_finite(embeddings, "embeddings")


def check_pair(candidate: npt.NDArray[Any], control: npt.NDArray[Any], *, min_images: int) -> None:
    """Accept finite scores (N,) of two models on the same N >= min_images images.

    Raises:
        ValueError: another shape, too few images, NaN or infinite scores.
    """
    if candidate.ndim != 1 or candidate.shape != control.shape:
        raise ValueError(
            f"got scores of shapes {candidate.shape} and {control.shape}; expected two of the same shape (images,): "
            "score both models on the same images in the same order"
        )
    if len(candidate) < min_images:
        raise ValueError(
            f"got scores of {len(candidate)} image(s); expected at least {min_images}: use a larger test split"
        )
    if not (np.isfinite(candidate).all() and np.isfinite(control).all()):
        raise ValueError(
            "got NaN or infinite scores; expected finite numbers: find the images whose score failed and repair them, "
            "or drop them for both models"
        )


def _is_integer(values: IntArray | Tensor) -> bool:
    if isinstance(values, Tensor):
        return not (values.is_floating_point() or values.is_complex()) and "bool" not in str(values.dtype)
    return np.issubdtype(values.dtype, np.integer)


def _check_finite(values: FloatArray | Tensor, name: str) -> None:
    # both are NaN where a value is, and need no memory: an array of True and False would take that of a fourth or more
    if math.isfinite(float(values.min())) and math.isfinite(float(values.max())):
        return
    is_finite = values.isfinite().all(dim=1) if isinstance(values, Tensor) else np.isfinite(values).all(axis=1)
    raise ValueError(
        f"got NaN or infinite {name} for {len(values) - int(is_finite.sum())} of {len(values)} images; expected finite "
        "numbers: the model diverged or its input is damaged, look at its training curve"
    )
