"""A model as stage export makes them, in a few bytes: the embedding is the mean of each channel, in [0, 1]."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("cat", "dog", "owl")
SIZE, CHANNELS = 8, 3


def write_onnx(
    path: Path,
    *,
    bias=(0.0, 0.0, 0.0),
    metadata=None,
    num_outputs=3,
    channels=CHANNELS,
    is_fragile=False,
    is_dense=False,
    fixed_size=None,
) -> Path:
    """Write a model whose logits are the means of red, green and blue, plus the bias.

    A fragile one fails on every image that is not black. A dense one takes images of any size, and has every second
    pixel each way as logits (N, 3, h, w): its stride is 2.
    """
    weight = np.eye(CHANNELS, num_outputs, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    if is_fragile:  # an index that only 0 is in range for
        nodes += [
            helper.make_node("ReduceMax", ["float"], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one", "index"], ["offset"]),
            helper.make_node("Add", ["divided", "offset"], ["embedding"]),
        ]
        nodes[2].output[0] = nodes[3].input[0] = "divided"
    if is_dense:
        nodes[3:] = [
            helper.make_node("Slice", ["float", "starts", "ends", "axes", "steps"], ["places"]),
            helper.make_node("Transpose", ["places"], ["logits"], perm=[0, 3, 1, 2]),
        ]
        metadata = metadata or describe(channels) | describe_dense(channels, fixed_size)
    constants = {
        "axes": np.array([1, 2]),
        "starts": np.zeros(2, np.int64),
        "ends": np.full(2, 1 << 31),
        "steps": np.full(2, 2),
        "white": np.array(255, np.float32),
        "one": np.zeros(1, np.float32),
        "weight": weight,
        "bias": np.array(bias, np.float32)[:num_outputs],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.UINT8, ["N", *(["H", "W"] if is_dense else [SIZE, SIZE]), CHANNELS]
            )
        ],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", CHANNELS]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_outputs] + ["h", "w"] * is_dense),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, describe(channels) if metadata is None else metadata)
    onnx.save(model, path)
    return path


def describe(channels=CHANNELS, **more: str) -> dict[str, str]:
    preprocessing = {"image_size": SIZE, "channels": channels, "crop_pct": 1.0, "interpolation": "bicubic"}
    return {
        "grpo_rm.task": "classification",
        "grpo_rm.classes": json.dumps(CLASSES),
        "grpo_rm.preprocessing": json.dumps(preprocessing),
        "grpo_rm.model_sha256": "5" * 64,
        "grpo_rm.training": json.dumps({"data": "0123456789abcdef0123456789abcdef.dir"}),
        **{f"grpo_rm.{name}": value for name, value in more.items()},
    }


def describe_dense(channels=CHANNELS, fixed_size=None) -> dict[str, str]:
    preprocessing = {"image_size": SIZE, "channels": channels, "interpolation": "bicubic"}
    preprocessing |= {"stride": 2, "fixed_size": fixed_size}
    return {"grpo_rm.task": "segmentation", "grpo_rm.preprocessing": json.dumps(preprocessing)}


def write_self_test(path: Path, *, bias=(0.0, 0.0, 0.0), error=0.0, **limits: float) -> Path:
    """Write what numpy says of some images, wrong by `error`."""
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    embedding = (images.mean(axis=(1, 2)) / 255).astype(np.float32)
    np.savez(
        path, images=images, embedding=embedding + np.float32(error), logits=embedding + np.float32(bias), **limits
    )
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
