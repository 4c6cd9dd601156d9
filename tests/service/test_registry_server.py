"""The registry as a team runs it, on PostgreSQL and S3: registration, promotion, rollback, `mlflow models serve`."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import onnx
import pytest
from servers import BUCKET, S3_CREDENTIALS, Server, answers, free_port, serving

from grpo_rm.config import load_config
from pipelines.promote import promote
from pipelines.register import register

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.service,
    pytest.mark.filterwarnings("ignore"),  # of libraries that mlflow imports
]

NAME = "grpo-rm-digits-of-this-test"
ONNX, SELF_TEST = Path("models/onnx/encoder.onnx"), Path("models/onnx/self_test.npz")


@pytest.fixture
def client(workspace, team_mlflow: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Two versions on the server, of a model that no other test has: 1 is champion, 2 the challenger."""
    import mlflow

    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team_mlflow.uri)
    mlflow.set_tracking_uri(team_mlflow.uri)
    dataset = Path("data/prepared/dataset.json")
    replace(dataset, json.dumps(json.loads(dataset.read_text()) | {"name": NAME.removeprefix("grpo-rm-")}).encode())
    assert "the first version that passed" in register(load_config())["promotion"]
    model = onnx.load(ONNX)
    onnx.helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | {"note": "second"})
    replace(ONNX, model.SerializeToString())
    assert register(load_config())["version"] == "2"
    client = mlflow.MlflowClient()
    yield client
    client.delete_registered_model(NAME)


def replace(file: Path, content: bytes) -> None:
    """Write a new file: the old one may be a link into DVC's cache."""
    file.unlink()
    file.write_bytes(content)


def champion(client) -> str:
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def answers_of_mlflow(log: Path) -> dict:
    """Return what `mlflow models serve` answers to the images of the self-test, by the name of the output."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = ["mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@challenger", "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with np.load(SELF_TEST) as stored:
        body = json.dumps({"inputs": {"images": stored["images"].tolist()}}).encode()
    request = urllib.request.Request(f"{uri}/invocations", body, {"Content-Type": "application/json"})
    server = Server(command, uri, lambda: answers(f"{uri}/ping"), log, dict(os.environ))
    with serving(server, signal.SIGKILL), urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["predictions"]


def test_a_team_serves_promotes_and_rolls_back(client, team_mlflow, monkeypatch, tmp_path):
    answered = answers_of_mlflow(tmp_path / "log")
    with np.load(SELF_TEST) as stored:
        for name in ("embedding", "logits"):
            np.testing.assert_allclose(answered[name], stored[name], atol=1e-4)

    promoted = promote(name=NAME, reason="ready", by="ada")
    assert (promoted.previous, promoted.version, champion(client)) == ("1", "2", "2")
    assert client.get_model_version(NAME, "2").tags["promotion.by"] == "ada"
    assert promote("1", name=NAME).previous == "2"
    assert champion(client) == "1"
    assert "was champion before and was taken down" in register(load_config())["promotion"]

    client.delete_registered_model_alias(NAME, "champion")
    assert "there is no champion" in register(load_config())["promotion"]
    logged_model = client.get_model_version(NAME, "2").source.rpartition("/")[2]
    assert {metric.dataset_name for metric in client.get_logged_model(logged_model).metrics} == {NAME[8:]}

    for key, value in S3_CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    storage = boto3.client("s3", endpoint_url=team_mlflow.environment["MLFLOW_S3_ENDPOINT_URL"])
    stored = client.get_logged_model(logged_model).artifact_location.removeprefix("mlflow-artifacts:/")
    storage.put_object(Bucket=BUCKET, Key=f"{stored}/model.onnx", Body=b"something else")
    with pytest.raises(ValueError, match=r"model.onnx of version 2 .* is not what was registered"):
        promote("2", name=NAME, force=True, reason="I want it")
