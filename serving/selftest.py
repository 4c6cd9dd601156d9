"""The proof a version brings along: images, and what torch said of them when it was exported."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.model import OnnxModel

MAX_ABS_ERROR, MIN_COSINE = 1e-4, 0.9999


def check_self_test(model: OnnxModel, path: Path) -> None:
    """Run the model on the stored images and compare with the stored outputs.

    Args:
        model: To test.
        path: An .npz with `images` (N, H, W, C) uint8, `embedding` (N, D) and `logits` (N, K) float32.

    Raises:
        ValueError: They differ by more than 1e-4, two embeddings have a cosine below 0.9999, or the file is damaged.
    """
    images, embedding, logits = _read(path)
    try:
        actual = model.run(images)
        differences = [np.abs(actual.embedding - embedding).max(), np.abs(actual.logits - logits).max()]
    except Exception as error:  # of another shape than the model's
        raise ValueError(f"the self-test does not fit the model: {str(error).splitlines()[0]}") from error
    worst, cosine = float(max(differences)), float(_cosine(actual.embedding, embedding).min())
    if not (worst <= MAX_ABS_ERROR and cosine >= MIN_COSINE):  # also where one is not a number
        raise ValueError(
            f"the self-test failed: on its {len(images)} images the largest difference from torch is {worst:.2g} and "
            f"the smallest cosine {cosine:.6f}, expected at most {MAX_ABS_ERROR:g} and at least {MIN_COSINE}"
        )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["embedding"], arrays["logits"]
    except Exception as error:  # zip, numpy and KeyError
        raise ValueError(f"the self-test {path.name} cannot be read: {error}") from error


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.where(norms > 0, (a64 * b64).sum(axis=1) / np.maximum(norms, 1e-30), 1.0)
