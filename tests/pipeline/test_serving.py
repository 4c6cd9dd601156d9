"""The server on what the pipeline registered, without an MLflow server."""

import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from server_process import form, serving

from grpo_rm.datasets import read_split
from serving.registry import LocalRegistry

pytestmark = pytest.mark.pipeline

NAME = "grpo-rm-digits"


@pytest.fixture
def moved_store(finished, tmp_path):
    """The store where it was not written, as after the repository has moved: its paths are absolute, and wrong now."""
    store = shutil.move(finished.root / "mlruns", tmp_path / "mlruns")
    yield store
    shutil.move(store, finished.root / "mlruns")


def test_the_server_says_what_evaluation_said(finished, moved_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    test = read_split(finished.root / "data/prepared", "test")
    predictions = pq.read_table(
        finished.root / "reports/predictions/grpo_rm.parquet", filters=pc.field("split") == "test"
    )
    logits = np.stack(predictions["logits"].to_pylist()).astype(float)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with serving(f"models:/{NAME}@challenger", moved_store.parent) as server:
        content = server.wait_for(lambda content: content["model"])
        for index in range(0, len(test.files), len(test.files) // 10):
            answer = server.request("/v1/classify?top_k=10", test.files[index])
            probabilities = {
                entry["name"]: entry["probability"] for entry in answer.content["predictions"][0]["classes"]
            }
            assert [probabilities[str(k)] for k in range(10)] == pytest.approx(expected[index], abs=1e-4)
        files, headers = form(*test.files[:60])
        raw = server.request("/v1/embed", files, headers | {"Accept": "application/octet-stream"}).content
        embeddings = np.frombuffer(raw, "<f4").reshape(60, -1)
        evaluated = np.stack(predictions["embedding"].to_pylist())[:60]
        assert cosines(embeddings, evaluated).min() >= 0.9999
        assert answer.headers["x-model-version"] == content["model"]["version"]
        assert answer.headers["x-data-hash"] == content["model"]["data_hash"] != ""
        assert server.end() == 0


def cosines(a, b):
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_what_is_not_in_the_store(finished, tmp_path):
    registry = LocalRegistry(finished.root / "mlruns/mlflow.db")
    with pytest.raises(FileNotFoundError, match="there is no registered model 'grpo-rm-flowers' in"):
        registry.find("grpo-rm-flowers", "champion")
    with pytest.raises(
        FileNotFoundError, match=r"model 'grpo-rm-digits' has no alias 'nobody' in .*: set it in the MLflow"
    ):
        registry.find(NAME, "nobody")
    version = registry.find(NAME, "challenger")
    assert version.tags["onnx.sha256"] and version.tags["dvc.data"].endswith(".dir")
    with pytest.raises(FileNotFoundError, match=rf"{NAME} version {version.version} has no nothing.txt"):
        registry.fetch(version, "nothing.txt", tmp_path / "nothing.txt")
