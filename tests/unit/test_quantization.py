"""An int8 file that says nearly what float32 says, whatever kind of network it is."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from grpo_rm.export import cosines, export_onnx
from grpo_rm.model import Model, ModelConfig
from grpo_rm.quantization import is_convolutional, preprocessing_nodes, quantize_onnx

METADATA = {"grpo_rm.classes": '["a", "b", "ü"]'}
SIZE = 32


def smooth_images(count: int, seed: int) -> np.ndarray:
    """Images with shapes in them, unlike noise, which looks the same to a network that averages."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


IMAGES = smooth_images(32, 0)


@pytest.fixture(scope="module", params=["test_vit", "test_resnet"])
def files(request, tmp_path_factory):
    """Encoder name, float32 file and int8 file."""
    torch.manual_seed(0)
    model = Model(ModelConfig(request.param, 3, SIZE, 1.0, "bicubic", [0.5] * 3, [0.25] * 3, ["a", "b", "ü"]))
    with torch.no_grad():  # batch normalization as after a training
        for name, parameter in model.named_parameters():
            if "bn" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
        for _ in range(3):
            model.train()(torch.from_numpy(IMAGES))
    full = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    int8 = full.with_name("encoder.int8.onnx")
    export_onnx(model.eval(), full, opset=20, metadata=METADATA)
    quantize_onnx(full, int8, smooth_images(64, 1))
    return request.param, full, int8


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embedding", "logits"], {"images": images})


def interface(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]


def test_it_says_nearly_what_float32_says(files):
    _, full, int8 = files
    expected, actual = run(full, IMAGES), run(int8, IMAGES)
    assert cosines(actual[0], expected[0]).min() > 0.99
    assert np.abs(actual[1] - expected[1]).max() < 0.1 * np.ptp(expected[1])
    assert cosines(expected[0][1:], expected[0][:-1]).min() < 0.98  # images that can be told apart
    assert not np.array_equal(actual[0], expected[0])


def test_it_is_a_third_of_the_size_and_says_what_it_is(files):
    _, full, int8 = files
    assert (
        int8.stat().st_size < 0.45 * full.stat().st_size
    )  # a quarter, but for a graph that is as large as its weights
    model = onnx.load(int8)
    onnx.checker.check_model(model)
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA | {"grpo_rm.precision": "int8"}
    assert interface(full) == interface(int8)


def test_the_graph_decides_what_is_quantized(files):
    name, full, int8 = files
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert is_convolutional(onnx.load(full)) == (name == "test_resnet")
    assert ("QuantizeLinear" in kinds) == (name == "test_resnet")
    assert ("MatMulInteger" in kinds) == (name == "test_vit")
    assert "ConvInteger" not in kinds


def test_the_normalization_stays_as_it_is(files):
    _, full, int8 = files
    assert set(preprocessing_nodes(onnx.load(full))) >= {"node_permute", "node__to_copy", "node_sub"}
    for before, after in zip(*(chain_to_first_layer(onnx.load(path)) for path in (full, int8)), strict=True):
        assert before == after


def chain_to_first_layer(model):
    """Return what is done to the images, up to the first quantizer or convolution."""
    chain, name = [], "images"
    while True:
        node = next(n for n in model.graph.node if name in n.input and n.op_type != "Shape")
        if node.op_type in ("QuantizeLinear", "Conv"):
            return chain
        chain.append((node.op_type, list(node.input)))
        name = node.output[0]


def test_weights_leave_room_for_sums_of_16_bits(files):
    """Two products of an unsigned activation and a weight: 2 * 255 * 64 < 2**15. Else AVX2 answers something else."""
    _, _, int8 = files
    model = onnx.load(int8)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in tensors.values()
        if tensor.data_type == TensorProto.INT8 and tensor.dims
    ]
    matrices = [weight for weight in weights if weight.ndim > 1]
    assert len(matrices) > 10
    assert max(int(np.abs(weight.astype(int)).max()) for weight in matrices) <= 64
    zero_points = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert all(tensors[name].data_type == TensorProto.UINT8 for name in zero_points)


def test_the_same_file_gives_the_same_bytes(files, tmp_path):
    _, full, int8 = files
    quantize_onnx(full, tmp_path / "again.onnx", smooth_images(64, 1))
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()
    assert str(full.parent).encode() not in int8.read_bytes()


def test_products_of_activations_are_no_layers():
    """Attention multiplies two activations; a convolutional network with some of it stays one."""
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"]), *[helper.make_node("MatMul", ["y", "y"], ["z"])] * 3]
    kernel = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "kernel")
    graph = helper.make_graph(nodes, "graph", [], [], [kernel])
    assert is_convolutional(helper.make_model(graph))
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "y"))
    assert not is_convolutional(helper.make_model(graph))
