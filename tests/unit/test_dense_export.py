"""An ONNX file of a dense model says what torch says at any size, also where its encoder takes one size alone."""

import numpy as np
import onnxruntime
import pytest
import torch

from grpo_rm.dense_export import PooledModel, measure_dense_parity, trace_dense
from grpo_rm.dense_model import DenseConfig, DenseModel
from grpo_rm.export import save_onnx

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 45, 60, 3), dtype=np.uint8)
RESNET = {"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": (2, 2, 1, 1), "num_heads": (1, 1, 1, 1)}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def create(encoder="test_resnet", strides=(4, 8, 16, 32), head="decoder", args=RESNET, image_size=32) -> DenseModel:
    torch.manual_seed(0)
    config = DenseConfig(
        encoder=encoder,
        channels=3,
        image_size=image_size,
        interpolation="bicubic",
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.3, 0.4],
        classes=["a", "b", "c"],
        strides=list(strides),
        encoder_args=args,
        head=head,
        width=8,
    )
    return DenseModel(config).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its file."""
    model, path = create(), tmp_path_factory.mktemp("dense") / "encoder.onnx"
    program, pooled = trace_dense(model, opset=20)
    save_onnx(program, path, {"a": "b"})
    return model, pooled, path


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embedding", "logits"], {"images": images})


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (32, 64), (45, 60), (97, 33)])
def test_any_size_and_any_batch(exported, size):
    """The reference is the dense model itself: the mean over the places of the image, not over those of its padding."""
    model, pooled, path = exported
    assert pooled.fixed_size is None
    for count in (1, 3):
        images = RNG.integers(0, 256, (count, *size, 3), dtype=np.uint8)
        with torch.inference_mode():
            places, logits = (output.numpy() for output in model(torch.from_numpy(images)))
        embedding = [[channel.mean() for channel in image] for image in places]
        actual = run(path, images)
        assert actual[1].shape == (count, 3, -(-size[0] // 4), -(-size[1] // 4))
        np.testing.assert_allclose(actual[0], embedding, atol=1e-5)
        np.testing.assert_allclose(actual[1], logits, atol=1e-5)


def test_parity(exported):
    _, pooled, path = exported
    parity = measure_dense_parity(pooled, path, IMAGES)
    assert {(p.batch_size, p.size) for p in parity} == {
        (1, (45, 60)),
        (3, (45, 60)),
        (3, (23, 31)),
        (1, (58, 61)),
        (1, (1, 60)),
    }
    assert all(p.max_abs_error < 1e-4 and p.min_cosine > 0.9999 for p in parity)


def test_parity_fails_where_the_file_is_of_other_weights(exported):
    _, _, path = exported
    tampered = create()
    with torch.no_grad():
        tampered.head.classify.bias += 0.01
    assert min(p.max_abs_error for p in measure_dense_parity(PooledModel(tampered), path, IMAGES)) > 5e-3


def test_the_same_model_gives_the_same_bytes(exported, tmp_path):
    _, _, path = exported
    program, _ = trace_dense(create(), opset=20)
    save_onnx(program, tmp_path / "again.onnx", {"a": "b"})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "strides", "args", "in_torch", "in_the_file"),
    [
        ("test_vit", (16,), VIT, None, None),  # position embeddings are resampled in the file
        ("test_vit", (16,), VIT | {"dynamic_img_size": False}, 32, 32),
        ("swin_tiny_patch4_window7_224", (8,), SWIN, None, 32),  # torch cannot write shifted windows of any size
    ],
)
def test_transformers(encoder, strides, args, in_torch, in_the_file, tmp_path):
    model = create(encoder, strides, "linear", args)
    assert model.levels.fixed_size == in_torch
    program, pooled = trace_dense(model, opset=20)
    assert pooled.fixed_size == in_the_file
    assert model.levels.fixed_size == in_torch, "it stays as it was"
    save_onnx(program, tmp_path / "encoder.onnx", {})
    parity = measure_dense_parity(pooled, tmp_path / "encoder.onnx", IMAGES)
    assert all(p.max_abs_error < 1e-4 and p.min_cosine > 0.9999 for p in parity)
    if in_the_file:
        assert {p.size for p in parity} == {(32, 32), (23, 31), (1, 32)}
