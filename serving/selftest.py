"""The proof a version brings along: images, and what was said of them when it was exported (by torch, or by int8)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model import OnnxModel, first_line

ARRAYS = ("images", "embedding", "logits")
LIMITS = {"max_abs_error": 1e-4, "min_cosine": 0.9999}


def check_self_test(model: OnnxModel, path: Path) -> None:
    """Run the model on the stored images and compare with the stored outputs.

    Args:
        model: To test.
        path: An .npz with `images` (N, H, W, C) uint8, `embedding` (N, D) and `logits` (N, K) float32, and the limits
            of its export, `max_abs_error` and `min_cosine`; without these, 1e-4 and 0.9999.

    Raises:
        ValueError: The outputs are over a limit, or the file cannot be used.
    """
    stored = _read(path)
    images, embedding, logits = (stored[name] for name in ARRAYS)
    try:
        actual = model.run(images)
        differences = [np.abs(actual.embedding - embedding).max(), np.abs(actual.logits - logits).max()]
        worst, cosine = float(np.max(differences)), float(_cosine(actual.embedding, embedding).min())
    except Exception as error:  # of another shape than the model's
        raise ValueError(f"the self-test does not fit the model: {first_line(error)}") from error
    limit, least = (float(stored.get(name, default)) for name, default in LIMITS.items())
    if not (worst <= limit and cosine >= least):  # also where one is not a number
        raise ValueError(
            f"the self-test failed: on its {len(images)} images the largest difference from what is stored is "
            f"{worst:.2g} and the smallest cosine {cosine:.6f}, expected at most {limit:g} and at least {least:g}"
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (*ARRAYS, *file.files)}
    except Exception as error:  # zip, numpy and KeyError
        raise ValueError(f"the self-test {path.name} cannot be read: {error}") from error


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.where(norms > 0, (a64 * b64).sum(axis=1) / np.maximum(norms, 1e-30), 1.0)
