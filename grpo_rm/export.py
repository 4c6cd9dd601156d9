"""A trained model to one ONNX file, and the proof that both say the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from grpo_rm.model import Model

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUTS = "images", ("embedding", "logits")
PARITY_BATCHES = (1, 3, 32)
BATCH = Dim("batch", min=1, max=65_536)


@dataclass(frozen=True)
class Parity:
    """How far ONNX and torch are apart on one batch.

    Attributes:
        batch_size: Number of images.
        max_abs_error: Largest difference of any embedding entry or logit.
        min_cosine: Smallest cosine of two embeddings of one image.
        size: (H, W) of the images.
    """

    batch_size: int
    max_abs_error: float
    min_cosine: float
    size: tuple[int, int]


def export_onnx(model: Model, path: Path, *, opset: int, metadata: Mapping[str, str]) -> None:
    """Write the model as one ONNX file with a dynamic batch.

    Input `images` (N, H, W, C) uint8, as decoded and resized; normalization is inside. Outputs `embedding` (N, D) and
    `logits` (N, K), float32. The same model gives the same bytes: paths of source files are removed.

    Args:
        model: On the CPU.
        path: The file to write.
        opset: ONNX operator set.
        metadata: Written into the file's own metadata.

    Raises:
        ValueError: torch cannot express the encoder in this opset.
    """
    size = model.config.image_size
    images = torch.zeros(2, size, size, model.config.channels, dtype=torch.uint8)
    try:
        program = trace(model, images, {0: BATCH}, opset=opset)
    except torch.onnx.OnnxExporterError as error:
        raise no_export(model.config.encoder, opset, error) from error
    save_onnx(program, path, metadata)


def trace(model: nn.Module, images: Tensor, dynamic: Mapping[int, Dim], *, opset: int) -> torch.onnx.ONNXProgram:
    """Return an image model as ONNX.

    Args:
        model: From images to embedding and logits.
        images: An example, (N, H, W, C).
        dynamic: The dimensions of the images that may be others in the file.
        opset: ONNX operator set.

    Raises:
        torch.onnx.OnnxExporterError: torch cannot express it.
    """
    with torch.no_grad():  # with gradients, some attention layers (BEiT, MaxViT) become views ONNX has no word for
        program = torch.onnx.export(
            model.eval(),
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=(dict(dynamic),),
            verbose=False,
        )
    assert program is not None
    return program


def no_export(encoder: str, opset: int, error: Exception) -> ValueError:
    """Return what a person is told whose encoder torch cannot express."""
    return ValueError(
        f"encoder {encoder!r} cannot be exported with opset {opset}: "
        f"{str(error).strip().splitlines()[0]}. Try another export.opset, or another encoder"
    )


def save_onnx(program: torch.onnx.ONNXProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write one file, which names no path of this machine."""
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def measure_parity(model: Model, path: Path, images: NDArray[np.uint8]) -> list[Parity]:
    """Run ONNX (onnxruntime, CPU) and torch on batches of 1, 3 and 32 of the images.

    Args:
        model: On the CPU.
        path: Its ONNX file.
        images: (N, H, W, C), at least one; repeated where there are fewer than 32.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    repeated = np.resize(images, (max(PARITY_BATCHES), *images.shape[1:]))
    return [compare(model, session, repeated[:size]) for size in PARITY_BATCHES]


@torch.inference_mode()
def compare(model: nn.Module, session: "onnxruntime.InferenceSession", images: NDArray[np.uint8]) -> Parity:
    """Run ONNX and torch on one batch."""
    expected = [output.numpy() for output in model.eval()(torch.from_numpy(images))]
    actual = session.run(list(OUTPUTS), {INPUT: images})
    error = max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True))
    return Parity(len(images), error, float(cosines(actual[0], expected[0]).min()), images.shape[1:3])


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of embeddings, (N, D) and (N, D); 1 where one of them is 0."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.where(norms > 0, (a64 * b64).sum(axis=1) / np.maximum(norms, 1e-30), 1.0)
