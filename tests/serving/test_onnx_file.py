"""What the server learns from an ONNX file, and which files it refuses."""

import numpy as np
import pytest
from server_process import picture
from tiny_onnx import CHANNELS, CLASSES, SIZE, describe, write_onnx, write_self_test

from serving.deployment import load_file
from serving.model import OnnxModel
from serving.preprocessing import ImageError
from serving.selftest import check_self_test


def test_predict(tmp_path):
    model = OnnxModel(write_onnx(tmp_path / "tiny.onnx", bias=(0, 0, 2)))
    prediction = model.predict([picture((255, 0, 51)), picture((0, 255, 0), "BMP", (5, 5))])
    np.testing.assert_allclose(prediction.embedding, [[1, 0, 0.2], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(prediction.logits, [[1, 0, 2.2], [0, 1, 2]], atol=1e-6)
    total = np.exp(1) + 1 + np.exp(2.2)
    np.testing.assert_allclose(prediction.probabilities()[0], np.exp([1, 0, 2.2]) / total, rtol=1e-6)
    assert model.classes == list(CLASSES)
    assert model.training["data"].endswith(".dir") and model.model_sha256 == "5" * 64


def test_probabilities_of_large_logits(tmp_path):
    model = OnnxModel(write_onnx(tmp_path / "tiny.onnx", bias=(1000, 0, -1000)))
    assert model.predict([picture((0, 0, 0))]).probabilities().tolist() == [[1, 0, 0]]


def test_one_bad_image_fails_the_batch(tmp_path):
    model = OnnxModel(write_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(ImageError, match="not an image"):
        model.predict([picture((1, 2, 3)), b"no image"])


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*model.onnx: run `make pipeline`"):
        load_file(path)
    path.write_bytes(b"no ONNX")
    with pytest.raises(ValueError, match="is no ONNX file that onnxruntime can run"):
        OnnxModel(path)
    write_onnx(path, metadata={"made.by": "another tool"})
    with pytest.raises(
        ValueError, match=r"not made by this pipeline: its metadata lack classes, preprocessing, .*Serve"
    ):
        OnnxModel(path)
    without_lineage = {key: value for key, value in describe().items() if key != "grpo_rm.training"}
    write_onnx(path, metadata=without_lineage)
    with pytest.raises(ValueError, match="lack training"):
        OnnxModel(path)
    write_onnx(path, num_outputs=2)
    with pytest.raises(ValueError, match=r"logits \(1, 2\), expected \(1, D\) and \(1, 3\)"):
        OnnxModel(path)
    write_onnx(path, bias=(np.nan, 0, 0))
    with pytest.raises(ValueError, match="not finite: export it anew"):
        OnnxModel(path)
    write_onnx(path, channels=1)
    with pytest.raises(ValueError, match="does not run on an image as it describes it"):
        OnnxModel(path)


def test_a_file_says_which_model_it_is(tmp_path):
    live = load_file(write_onnx(tmp_path / "tiny ö.onnx"))
    assert live.headers()["X-Data-Hash"] == "0123456789abcdef0123456789abcdef.dir"
    assert live.headers()["X-Model-Name"] == "tiny%20%C3%B6.onnx"
    assert len(live.version) == 12


def test_self_test(tmp_path):
    model = OnnxModel(write_onnx(tmp_path / "tiny.onnx", bias=(0, 1, 0)))
    check_self_test(model, write_self_test(tmp_path / "right.npz", bias=(0, 1, 0)))
    check_self_test(model, write_self_test(tmp_path / "almost.npz", bias=(0, 1, 0), error=9e-5))
    check_self_test(model, write_self_test(tmp_path / "wide.npz", bias=(0, 1, 0), error=2e-4, max_abs_error=3e-4))
    for name, options in {
        "narrow": {"bias": (0, 1, 0), "error": 9e-5, "max_abs_error": 1e-5},
        "cosine": {"bias": (0, 1, 0), "min_cosine": 1.1},
        "other": {"bias": (0, 1.001, 0)},
        "error": {"bias": (0, 1, 0), "error": 2e-4},
        "nan": {"bias": (0, 1, 0), "error": np.nan},
    }.items():
        with pytest.raises(
            ValueError, match=r"the self-test failed: on its 5 images .* expected at most (0.0001|1e-05) and"
        ):
            check_self_test(model, write_self_test(tmp_path / f"{name}.npz", **options))


def test_self_tests_that_cannot_be_used(tmp_path):
    model, path = OnnxModel(write_onnx(tmp_path / "tiny.onnx")), tmp_path / "self_test.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="cannot be read"):
        check_self_test(model, path)
    np.savez(path, images=np.zeros((1, SIZE, SIZE, CHANNELS), np.uint8))
    with pytest.raises(ValueError, match=r"cannot be read: .*embedding"):
        check_self_test(model, path)
    np.savez(path, images=np.zeros((1, 9, 9, 1), np.uint8), embedding=np.zeros((1, 3)), logits=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="does not fit the model"):
        check_self_test(model, path)
