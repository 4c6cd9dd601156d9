"""One ONNX file that says what torch says, whatever the batch, and is the same at every export."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from grpo_rm.checkpoint import load_model, save_model
from grpo_rm.export import PARITY_BATCHES, export_onnx, measure_parity
from grpo_rm.model import Model, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
METADATA = {"grpo_rm.classes": '["a", "b", "ü"]', "another": "value"}
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)

IN_ANOTHER_PROCESS = """
import sys, torch
from pathlib import Path
from grpo_rm.export import export_onnx
export_onnx(torch.load(sys.argv[1], weights_only=False), Path(sys.argv[2]), opset=20, metadata={"a": "b"})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = ModelConfig("test_resnet", 3, 16, 1.0, "bicubic", [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], ["a", "b", "ü"])
    config.encoder_args.update(channels=[8, 8, 8, 8], stem_width=8, layers=[1, 1, 1, 1])
    model = Model(config)
    with torch.no_grad():  # batch normalization and logits as after a training
        for _ in range(3):
            model.train()(torch.from_numpy(IMAGES))
        for name, parameter in model.named_parameters():
            if "bn" in name:  # timm starts the last norm of a block at 0, which would hide the block
                parameter.uniform_(0.5, 1.5)
        model.head.weight *= 5
    save_model(model, tmp_path_factory.mktemp("model"))
    return model.eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The ONNX file; beside it, the model it was made from."""
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    save_model(model, path.parent / "model")
    export_onnx(model, path, opset=20, metadata=METADATA)
    return path


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embedding", "logits"], {"images": images})


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_any_process(tmp_path):
    """A small network, so that the other process need not import timm."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.GELU()
    )
    encoder.num_features = 8
    model = Model(ModelConfig("", 3, 16, 1.0, "bicubic", [0.5] * 3, [0.5] * 3, ["a", "b"]), encoder=encoder)
    torch.save(model, tmp_path / "model.pt")
    files = [tmp_path / name for name in ("first.onnx", "again.onnx", "another_process.onnx")]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "model.pt"), str(files[2])]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        for path in files[:2]:
            export_onnx(model, path, opset=20, metadata={"a": "b"})
        assert process.wait() == 0
    first, again, another_process = (path.read_bytes() for path in files)
    assert first == again
    assert first == another_process
    assert len(list(tmp_path.iterdir())) == 4  # the weights are inside, not in files beside it


def test_no_path_of_this_machine_is_inside(exported):
    data = exported.read_bytes()
    for text in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", "forward", ".py"):
        assert text.encode() not in data, text


def test_the_file_says_what_it_is(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [20]
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [16, 16, 3])
    assert isinstance(images.shape[0], str)
    outputs = {output.name: (output.type, output.shape[1:]) for output in session.get_outputs()}
    assert outputs == {"embedding": ("tensor(float)", [8]), "logits": ("tensor(float)", [3])}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_any_batch_size_gives_what_torch_gives(exported, model, batch_size):
    embedding, logits = run(exported, IMAGES[:batch_size])
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(IMAGES[:batch_size]))]
    assert embedding.shape == (batch_size, 8)
    np.testing.assert_allclose(embedding, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected[1], rtol=1e-5, atol=1e-5)
    assert np.ptp(expected[1], axis=0).max() > 0.1 or batch_size == 1  # images that can be told apart


def test_parity_holds(exported, model):
    parity = measure_parity(model, exported, IMAGES)
    assert tuple(p.batch_size for p in parity) == PARITY_BATCHES == (1, 3, 32)
    assert all(p.max_abs_error < 1e-4 for p in parity)
    assert all(p.min_cosine > 0.9999 for p in parity)


def test_parity_repeats_images_where_there_are_few(exported, model):
    assert [p.batch_size for p in measure_parity(model, exported, IMAGES[:2])] == [1, 3, 32]


@pytest.mark.parametrize("part", ["encoder.conv1.0.weight", "encoder.layer4.0.bn2.weight", "head.weight", "head.bias"])
def test_parity_fails_where_the_file_is_of_other_weights(exported, tmp_path, part):
    tampered = load_model(exported.parent / "model")
    with torch.no_grad():
        tampered.get_parameter(part).view(-1)[::2] += 0.2
    save_model(tampered, tmp_path)
    parity = measure_parity(load_model(tmp_path), exported, IMAGES)
    assert min(p.max_abs_error for p in parity) > 1e-3
    if part.startswith("encoder"):
        assert min(p.min_cosine for p in parity) < 0.9999
    else:
        assert min(p.min_cosine for p in parity) > 0.9999


def test_parity_measures_the_largest_error_and_the_smallest_cosine(exported):
    """Against loops over images, with a model whose embeddings differ."""
    tampered = load_model(exported.parent / "model")
    with torch.no_grad():
        tampered.encoder.layer4[0].bn2.weight[::2] *= 1.5
        expected = [output.numpy().astype(np.float64) for output in tampered(torch.from_numpy(IMAGES))]
    actual = run(exported, IMAGES)
    error = max(abs(a - e).max() for a, e in zip(actual, expected, strict=True))
    cosines = [a @ e / np.linalg.norm(a) / np.linalg.norm(e) for a, e in zip(actual[0], expected[0], strict=True)]
    parity = measure_parity(tampered, exported, IMAGES)[-1]
    assert error > 0.01
    assert min(cosines) < 0.9999
    assert parity.max_abs_error == pytest.approx(error, rel=1e-3)
    assert parity.min_cosine == pytest.approx(min(cosines), abs=1e-6)


def test_attention_with_relative_positions(tmp_path):
    """BEiT's attention is exported only where no gradient is recorded."""
    torch.manual_seed(0)
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    config = ModelConfig("beit_base_patch16_224", 3, 32, 1.0, "bicubic", [0.5] * 3, [0.5] * 3, ["a", "b"], small)
    model = Model(config).eval()
    export_onnx(model, tmp_path / "beit.onnx", opset=20, metadata={})
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    assert all(parity.max_abs_error < 1e-4 for parity in measure_parity(model, tmp_path / "beit.onnx", images))
