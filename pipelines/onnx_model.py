"""An exported model as its own file describes it: image files in, logits out, without torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_rm.transforms import decode, evaluation_view

BATCH_SIZE = 256


class OnnxModel:
    """An ONNX file of stage export on the CPU.

    Attributes:
        classes: Names of the output set, in the order of the logits.
        training: How the model was made: stage, parameters, hash of the data, how they were split.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(metadata["grpo_rm.classes"])
        self.preprocessing: dict[str, Any] = json.loads(metadata["grpo_rm.preprocessing"])
        self.training: dict[str, Any] = json.loads(metadata["grpo_rm.training"])

    def logits(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the logits (N, K) of N encoded images."""
        batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
        return np.concatenate(
            [
                self.session.run(["logits"], {"images": np.stack([self._pixels(f) for f in batch])})[0]
                for batch in batches
            ]
        )

    def _pixels(self, file: bytes) -> NDArray[np.uint8]:
        p = self.preprocessing
        return evaluation_view(
            decode(file, channels=p["channels"]),
            size=p["image_size"],
            crop_pct=p["crop_pct"],
            interpolation=p["interpolation"],
        )
