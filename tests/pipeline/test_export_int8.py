"""The int8 file, from the parameter to the server."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from server_process import serving

from grpo_rm.datasets import read_split
from pipelines.int8 import check_cosine, spread
from pipelines.lineage import sha256
from pipelines.onnx_model import self_test
from serving.registry import LocalRegistry

NAME = "grpo-rm-digits"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def registered(workspace) -> str:
    """Run the two stages, and return the version."""
    workspace.succeed("python", "-m", "pipelines.export")
    workspace.succeed("python", "-m", "pipelines.register")
    return read_json(workspace.root / "reports/registration.json")["version"]


@pytest.mark.slow
@pytest.mark.pipeline
def test_from_the_parameter_to_the_server(workspace, tmp_path, monkeypatch):
    before = read_json(workspace.root / "reports/registration.json")["version"]
    workspace.set(export__int8="true")
    version = registered(workspace)
    assert version != before
    check_report(read_json(workspace.root / "reports/export.json")["int8"])
    folder = workspace.root / "models/onnx"
    check_self_test(folder / "encoder.int8.onnx", folder / "self_test.int8.npz", tmp_path / "wrong.onnx")
    found = LocalRegistry(workspace.root / "mlruns/mlflow.db").find(NAME, "challenger")
    assert (found.version, found.tags["onnx.int8.sha256"]) == (version, sha256(folder / "encoder.int8.onnx"))
    assert f"version {version} (challenger)" in workspace.succeed("python", "-m", "pipelines.summary")
    workspace.succeed("python", "-m", "pipelines.promote")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    test = read_split(workspace.root / "data/prepared", "test")
    with serving(f"models:/{NAME}@champion", workspace.root, GRPO_RM_PRECISION="int8") as server:
        model = server.wait_for(lambda content: content["model"])["model"]
        assert (model["version"], model["precision"], model["warnings"]) == (version, "int8", [])
        answers = [server.request("/v1/classify?top_k=1", file).content for file in test.files[:20]]
        right = [
            a["predictions"][0]["classes"][0]["name"] == str(k) for a, k in zip(answers, test.labels, strict=False)
        ]
        assert np.mean(right) >= 0.9

    stored = next((workspace.root / "mlruns").rglob("model.int8.onnx"))
    stored.write_bytes(stored.read_bytes() + b"x")
    workspace.succeed("python", "-m", "pipelines.promote", before)
    error = workspace.fail("python", "-m", "pipelines.promote", version)
    assert f"model.int8.onnx of version {version} of {NAME} is not what was registered" in error

    workspace.set(export__int8="false")
    assert registered(workspace) == before, "the same files as in the beginning"
    assert not (folder / "encoder.int8.onnx").exists() and not (folder / "self_test.int8.npz").exists()


def check_report(report: dict) -> None:
    assert set(report) == {"bytes", "latency_ms", "cosine", "val"}
    assert report["bytes"] < 0.4 * 1_500_000
    assert 0.95 <= report["cosine"]["min"] <= report["cosine"]["median"] < 1
    assert report["cosine"]["median"] > 0.99
    assert abs(report["val"]["accuracy_difference"]) < 0.02 and abs(report["val"]["knn_top1_difference"]) < 0.02


def check_self_test(file: Path, stored: Path, wrong: Path) -> None:
    """It holds for the file, and not for one with a wrong head or a wrong layer."""
    self_test(file, stored)
    for name in ("head.weight", "encoder.layer3.0.conv1.weight_quantized"):
        model = onnx.load(file)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=0), name))
        onnx.save(model, wrong)
        with pytest.raises(ValueError, match="fails its self-test: largest difference from what is stored"):
            self_test(wrong, stored)


def test_a_model_that_does_not_stand_int8():
    check_cosine(0.95)
    for value in (0.94, float("nan")):
        with pytest.raises(ValueError, match=r"expected at least 0.95\. .* set export.int8 to false"):
            check_cosine(value)


def test_images_are_of_all_classes():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 256).tolist() == [0, 1, 2]
    assert spread(1, 256).tolist() == [0]
