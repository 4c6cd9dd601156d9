"""An exported model as its own file describes it: image files in, logits out, without torch."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grpo_rm.transforms import decode, evaluation_view

if TYPE_CHECKING:
    import onnxruntime
    from PIL import Image

BATCH_SIZE = 256
SELF_TEST = "self_test.npz"  # beside the ONNX file
INT8, INT8_SELF_TEST = "encoder.int8.onnx", "self_test.int8.npz"  # likewise, where `export.int8` is set
OUTPUTS = ("embedding", "logits")
METADATA = ("grpo_rm.classes", "grpo_rm.preprocessing", "grpo_rm.training")


class OnnxModel:
    """An ONNX file of stage export on the CPU.

    Attributes:
        task: classification, or segmentation: then logits are (N, K, h, w), and embeddings the mean over the places.
        classes: Names of the output set, in the order of the logits.
        training: How the model was made: stage, parameters, hash of the data, how they were split.

    Raises:
        ValueError: It is no ONNX file, or not one that stage export wrote.
    """

    def __init__(self, path: Path) -> None:
        self.session = _open_session(path)
        metadata = self.session.get_modelmeta().custom_metadata_map
        missing = [name for name in METADATA if name not in metadata]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: expected an ONNX file that stage export wrote")
        self.task = metadata.get("grpo_rm.task", "classification")
        self.classes: list[str] = json.loads(metadata["grpo_rm.classes"])
        self.preprocessing: dict[str, Any] = json.loads(metadata["grpo_rm.preprocessing"])
        self.training: dict[str, Any] = json.loads(metadata["grpo_rm.training"])

    def answer_files(self, files: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings (N, D) and logits (N, K) of N encoded images; of no dense model."""
        batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
        answers = [self.answer(np.stack([self._pixels(file) for file in batch])) for batch in batches]
        embeddings, logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return embeddings, logits

    def answer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings (N, D) and logits (N, K) of images (N, H, W, C): as `view` gives them, or decoded.

        Raises:
            ValueError: The model does not run on them.
        """
        try:
            embeddings, logits = self.session.run(list(OUTPUTS), {"images": images})
        except Exception as error:  # onnxruntime's errors have no common base
            raise ValueError(f"the ONNX file does not run on images {images.shape}: {first_line(error)}") from error
        return embeddings, logits

    def view(self, image: "Image.Image") -> NDArray[np.uint8]:
        """Return a decoded image as the model, no dense one, is given it."""
        p = self.preprocessing
        return evaluation_view(image, size=p["image_size"], crop_pct=p["crop_pct"], interpolation=p["interpolation"])

    def _pixels(self, file: bytes) -> NDArray[np.uint8]:
        return self.view(decode(file, channels=self.preprocessing["channels"]))


def self_test(onnx: Path, stored: Path) -> None:
    """Run a model on the images that travel with it, and compare with what was answered when it was exported.

    The answers are torch's, and for the int8 model its own (see `pipelines.int8`).

    The file is a plain .npz, `numpy.load(path, allow_pickle=False)` reads it:

    | array | shape | type | |
    | --- | --- | --- | --- |
    | images | (N, H, W, C) | uint8 | up to 8 test images as the model gets them, decoded and resized |
    | embedding | (N, D) | float32 | the answer |
    | logits | (N, K), dense (N, K, h, w) | float32 | the answer |
    | max_abs_error | () | float64 | largest difference of any entry or logit (`export.max_abs_error`, 1e-4) |
    | min_cosine | () | float64 | smallest cosine of an image's two embeddings (`export.min_cosine`, 0.9999) |

    Raises:
        ValueError: The model does not run, answers in another shape, or something else than is stored.
    """
    expected = _read_self_test(stored)
    try:
        answers = _open_session(onnx).run(list(OUTPUTS), {"images": expected["images"]})
    except Exception as error:  # onnxruntime's errors have no common base
        raise ValueError(f"{onnx} does not run on the images of its self-test: {first_line(error)}") from error
    for name, answer in zip(OUTPUTS, answers, strict=True):
        if answer.shape != expected[name].shape:
            raise ValueError(f"{onnx} fails its self-test: {name} is {answer.shape}, expected {expected[name].shape}")
    differences = [np.abs(answer - expected[name]).max() for name, answer in zip(OUTPUTS, answers, strict=True)]
    difference = float(np.max(differences))  # NaN stays NaN
    cosine = _smallest_cosine(answers[0], expected["embedding"])
    limit, least = float(expected["max_abs_error"]), float(expected["min_cosine"])
    if not (difference <= limit and cosine >= least):  # NaN fails
        raise ValueError(
            f"{onnx} fails its self-test: largest difference from what is stored {difference:.2g}, expected at most "
            f"{limit:g}; smallest cosine of the embeddings {cosine:.6f}, expected at least {least:g}"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _open_session(path: Path) -> "onnxruntime.InferenceSession":
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise ValueError(f"{path} is no ONNX file that runs here: {first_line(error)}") from error


def _read_self_test(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("images", *OUTPUTS, "max_abs_error", "min_cosine")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no self-test of an export: {first_line(error)}") from error


def _smallest_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    cosines = np.where(norms == 0, 1.0, (a64 * b64).sum(axis=1) / np.where(norms == 0, 1.0, norms))
    return float(cosines.min())
