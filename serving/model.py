"""An exported encoder as its own file describes it: image files in, embeddings and logits out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from serving.masks import Mask, Size, class_indices, fitted, resize_nearest
from serving.preprocessing import Pixels, decode, evaluation_view, whole_view
from serving.processors import count_processors

GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
INPUT, OUTPUTS = "images", ("embedding", "logits")
METADATA = ("classes", "preprocessing", "model_sha256", "training")  # with the prefix grpo_rm.


@dataclass(frozen=True)
class Prediction:
    """What the model says of N images.

    Attributes:
        embedding: (N, D) float32.
        logits: (N, K) float32; of a dense model (N, K, h, w).
        size: (H, W) of the images as they were sent, where they are of one size.
    """

    embedding: NDArray[np.float32]
    logits: NDArray[np.float32]
    size: Size | None = None

    def probabilities(self) -> NDArray[np.float64]:
        """Return the softmax of the logits over the classes, in their shape."""
        logits = self.logits.astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def has_gpu() -> bool:
    """Whether onnxruntime is the package for GPUs."""
    return GPU in onnxruntime.get_available_providers()


class OnnxModel:
    """An ONNX file of stage export, on the GPU where onnxruntime has one. Threads may share it.

    Attributes:
        task: classification, or segmentation, where a site of the image has logits of its own.
        classes: Names of the output set, in the order of the logits.
        preprocessing: image_size, channels, interpolation; crop_pct, or of a dense model stride, fixed_size, window.
        model_sha256: Of the weights it was exported from.
        training: How these were made: stage, parameters, hash of the data, split.
        shapes: Of the input and the outputs, for one image; -1 is any length.
        precision: fp32 or int8.

    Raises:
        ValueError: It is no ONNX file, or none of stage export.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load a file.

        Args:
            path: Of the file.
            threads: That a run is computed with; 0 takes the processors this process may use.
        """
        try:
            self._session = onnxruntime.InferenceSession(path, _options(threads), [GPU, CPU] if has_gpu() else [CPU])
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise ValueError(f"{path.name} is no ONNX file that onnxruntime can run: {first_line(error)}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        missing = [name for name in METADATA if f"grpo_rm.{name}" not in metadata]
        if missing:
            raise ValueError(
                f"{path.name} was not made by this pipeline: its metadata lack {', '.join(missing)} (grpo_rm.*). "
                "Serve a file of stage export, such as models/onnx/encoder.onnx"
            )
        self.task: str = metadata.get("grpo_rm.task", "classification")
        self.classes: list[str] = json.loads(metadata["grpo_rm.classes"])
        self.preprocessing: dict[str, Any] = json.loads(metadata["grpo_rm.preprocessing"])
        self.model_sha256 = metadata["grpo_rm.model_sha256"]
        self.training: dict[str, Any] = json.loads(metadata["grpo_rm.training"])
        self.precision = metadata.get("grpo_rm.precision", "fp32")
        self._warm_up(path)

    def predict(self, files: Sequence[bytes]) -> Prediction:
        """Decode N image files and run the model on them, as one batch.

        Raises:
            ImageError: One of them is no image, or not one that can be used.
        """
        return self.run(np.stack([self.pixels(file) for file in files]))

    def run(self, images: NDArray[np.uint8]) -> Prediction:
        """Run the model on images as `view` makes them: (N, H, W, channels)."""
        return Prediction(*self._session.run(list(OUTPUTS), {INPUT: images}))

    @property
    def provider(self) -> str:
        """What computes: CPUExecutionProvider, CUDAExecutionProvider."""
        return str(self._session.get_providers()[0])

    def pixels(self, file: bytes) -> Pixels:
        """Return an image file as the model sees it: (H, W, channels). See `decode`.

        Raises:
            ImageError: It is no image, or not one that can be used.
        """
        return self.view(decode(file, channels=self.preprocessing["channels"]))

    def view(self, image: Image.Image) -> Pixels:
        """Return a decoded image as the model sees it, (H, W, channels); a dense one sees it in its own size."""
        p = self.preprocessing
        if self.is_dense:
            size = fitted((image.height, image.width), p["fixed_size"])
            return whole_view(image, size, interpolation=p["interpolation"])
        return evaluation_view(image, size=p["image_size"], crop_pct=p["crop_pct"], interpolation=p["interpolation"])

    def masks(self, prediction: Prediction) -> list[Mask]:
        """Return the most probable class of every pixel of images of one size, each (H, W)."""
        assert prediction.size is not None
        seen = fitted(prediction.size, self.preprocessing["fixed_size"])
        masks = (class_indices(logits, seen, self.preprocessing["stride"]) for logits in prediction.logits)
        return [resize_nearest(mask, prediction.size) if seen != prediction.size else mask for mask in masks]

    @property
    def is_dense(self) -> bool:
        """Whether each place of an image has logits of its own."""
        return self.task == "segmentation"

    def _warm_up(self, path: Path) -> None:
        """Run once, so that the first request pays for no allocation, and a file that contradicts itself is refused."""
        try:
            size, channels = self.preprocessing["image_size"], self.preprocessing["channels"]
            prediction = self.run(np.zeros((1, size, size, channels), np.uint8))
        except Exception as error:
            raise ValueError(f"{path.name} does not run on an image as it describes it: {first_line(error)}") from error
        places = (-(-size // self.preprocessing["stride"]),) * 2 if self.is_dense else ()
        expected = (1, len(self.classes), *places)
        if prediction.logits.shape != expected or prediction.embedding.ndim != 2:
            raise ValueError(
                f"{path.name} answers an image with embedding {prediction.embedding.shape} and logits "
                f"{prediction.logits.shape}, expected (1, D) and {expected}, one for each class"
            )
        if not (np.isfinite(prediction.embedding).all() and np.isfinite(prediction.logits).all()):
            raise ValueError(f"{path.name} answers a black image with numbers that are not finite: export it anew")
        self.shapes: dict[str, tuple[int, ...]] = {
            INPUT: (-1, -1, channels) if self.is_dense else (size, size, channels),
            "embedding": prediction.embedding.shape[1:],
            "logits": (len(self.classes), -1, -1) if self.is_dense else prediction.logits.shape[1:],
        }


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or count_processors()
    options.inter_op_num_threads = 1
    # Threads that spin for work take the processor from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
