"""A trained model of a dense task to ONNX: images of any size, where torch can express that for its encoder."""

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from grpo_rm.dense import round_up
from grpo_rm.dense_model import DenseModel
from grpo_rm.export import BATCH, Parity, compare, no_export, trace

MAX_SIDE = 65_536
EXTRA = 13  # pixels: no stride and no patch divides a side and this side too


class PooledModel(nn.Module):
    """A dense model as its file has it: the embedding of an image is the mean over its places.

    Attributes:
        fixed_size: Side to which every image is padded, so that none may be larger; None where images of any size are
            padded to the next multiple alone.
    """

    def __init__(self, model: DenseModel) -> None:
        super().__init__()
        self.dense = model
        self.fixed_size = model.levels.fixed_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, H, W, C) uint8 to the embedding (B, D) and the logits (B, K, h, w)."""
        embedding, logits = self.dense(images)
        return embedding.mean(dim=(2, 3)), logits


def trace_dense(model: DenseModel, *, opset: int) -> tuple[torch.onnx.ONNXProgram, PooledModel]:
    """Return the model as ONNX, with a dynamic batch, height and width, and what it is the same as.

    Padding is a part of it: sides need not be multiples of anything. For some architectures torch can express one size
    of the encoder's input alone. Then that is a square of `image_size`, rounded up; smaller images are padded to it.
    Larger ones have to be shrunk before: the file would cut them off (`fixed_size` in its metadata says so).

    Args:
        model: On the CPU.
        opset: ONNX operator set.

    Raises:
        ValueError: torch cannot express the encoder in this opset.
    """
    pooled = PooledModel(model).eval()
    try:
        program = _trace(pooled, opset)
        if pooled.fixed_size is not None or _is_dynamic(program):
            return program, pooled
    except torch.onnx.OnnxExporterError as error:
        if pooled.fixed_size is not None:
            raise no_export(model.config.encoder, opset, error) from error
    pooled = PooledModel(_with_fixed_size(model)).eval()
    try:
        return _trace(pooled, opset), pooled
    except torch.onnx.OnnxExporterError as error:
        raise no_export(model.config.encoder, opset, error) from error


def measure_dense_parity(model: PooledModel, path: Path, images: NDArray[np.uint8]) -> list[Parity]:
    """Run ONNX (onnxruntime, CPU) and torch on one and three images of their size, and of others, odd ones among them.

    Args:
        model: On the CPU.
        path: Its ONNX file.
        images: (N, H, W, C), at least one; repeated where there are fewer than 3.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    height, width = images.shape[1:3]
    batches = [(1, height, width), (3, height, width), (3, height // 2 | 1, width // 2 | 1)]
    batches += [(1, height + EXTRA, width + 1), (1, 1, width)]
    most = model.fixed_size or MAX_SIDE
    return [
        compare(model, session, _of_size(images, count, min(height, most), min(width, most)))
        for count, height, width in batches
    ]


def _trace(model: PooledModel, opset: int) -> torch.onnx.ONNXProgram:
    levels = model.dense.levels
    most = levels.fixed_size or MAX_SIDE
    # Sides that are different, and no multiples: what is true of the example is not true of all images.
    height, width = (min(levels.multiple * count + extra, most - extra) for count, extra in ((2, 3), (3, 5)))
    images = torch.zeros(2, height, width, model.dense.config.channels, dtype=torch.uint8)
    return trace(
        model, images, {0: BATCH, 1: Dim("height", min=1, max=most), 2: Dim("width", min=1, max=most)}, opset=opset
    )


def _is_dynamic(program: torch.onnx.ONNXProgram) -> bool:
    """Whether torch kept height and width open; where it cannot, it says nothing."""
    shape = program.model.graph.inputs[0].shape
    return shape is not None and not any(isinstance(shape[axis], int) for axis in (1, 2))


def _with_fixed_size(model: DenseModel) -> DenseModel:
    """Return the model, of the same weights, that pads every image to one size."""
    fixed = copy.copy(model)
    size = round_up(model.config.image_size, model.levels.multiple)
    fixed.levels = model.levels._replace(multiple=size, fixed_size=size)
    return fixed


def _of_size(images: NDArray[np.uint8], count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return so many images, cut or repeated at their sides."""
    images = np.resize(images, (count, *images.shape[1:]))
    missing = [(0, 0), (0, max(0, height - images.shape[1])), (0, max(0, width - images.shape[2])), (0, 0)]
    return np.ascontiguousarray(np.pad(images, missing, mode="wrap")[:, :height, :width])
