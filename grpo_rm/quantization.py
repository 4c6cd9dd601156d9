"""An ONNX file of float32 to one that computes in int8, on CPUs about twice as fast and a quarter of the size."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grpo_rm.export import INPUT

if TYPE_CHECKING:
    import onnx

PRECISION = "grpo_rm.precision"  # in the metadata of the int8 file
MATRIX_PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = (
    "Conv",
    "Relu",
    "Clip",
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
)  # what is between them too
CALIBRATION_BATCH = 32
# The quantizer asks for graphs simplified beforehand, and looks for this note. torch has folded what there is to fold.
PREPROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}


def quantize_onnx(source: Path, target: Path, images: NDArray[np.uint8]) -> None:
    """Write an int8 copy of a file that `grpo_rm.export` wrote: the same input, outputs and metadata.

    What is quantized follows from the graph. Where most layers are matrix products (ViT), these are, and the range of
    their inputs is measured anew in each batch (dynamic); convolutional networks have the ranges of all tensors
    measured once, on the images (static). The other way round either is slow or far off. Normalization and, in
    convolutional networks, the head stay float32.

    Weights have 7 bits and activations are unsigned: on x86 without VNNI the sum of two products of 8 bits does not fit
    into the 16 bits it is given, and the file would answer something else there (onnxruntime calls it `reduce_range`).
    Signed activations would be no faster than float32.

    Args:
        source: The float32 file.
        target: The file to write.
        images: (N, H, W, C), for the ranges; training images, spread over the classes.
    """
    import onnx

    model = onnx.load(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, PREPROCESSED)
    if is_convolutional(model):
        _quantize_static(model, target, images)
    else:
        _quantize_dynamic(model, target)
    quantized = onnx.load(target)
    onnx.helper.set_model_props(quantized, metadata | {PRECISION: "int8"})
    onnx.save(quantized, target)


def is_convolutional(model: "onnx.ModelProto") -> bool:
    """Whether more nodes with weights are convolutions than matrix products."""
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [node.op_type for node in model.graph.node if weights & set(node.input)]
    return layers.count("Conv") > sum(layers.count(kind) for kind in MATRIX_PRODUCTS)


def _quantize_dynamic(model: "onnx.ModelProto", target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(MATRIX_PRODUCTS),
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def _quantize_static(model: "onnx.ModelProto", target: Path, images: NDArray[np.uint8]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        model,
        target,
        _calibration_reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(CONVOLUTIONS),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=preprocessing_nodes(model),
    )


def preprocessing_nodes(model: "onnx.ModelProto") -> list[str]:
    """Return the names of all nodes before the first layer, which normalize the images."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    pending = list(next(node for node in model.graph.node if node.op_type == "Conv").input)
    names: list[str] = []
    while pending:
        node = made_by.get(pending.pop())
        if node is not None and node.name not in names:
            names.append(node.name)
            pending += node.input
    return names


def _calibration_reader(images: NDArray[np.uint8]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self, batches: Iterator[NDArray[np.uint8]]) -> None:
            self.batches = batches

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    starts = range(0, len(images), CALIBRATION_BATCH)
    return Reader(images[start : start + CALIBRATION_BATCH] for start in starts)
