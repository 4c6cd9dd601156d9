"""Promotion is deployment: a real MLflow server, its webhook, and the server that follows the alias."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from server_process import ServerProcess, picture, serving
from tiny_onnx import sha256, write_onnx, write_self_test

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
NAME = "grpo-rm-tiny shapes"  # a name that has to be quoted in URLs
SECRET = "a secret of this test"
POLL_SECONDS = 3
PICTURE = picture((0, 0, 0))
BIASES = {"1": (9, 0, 0), "2": (0, 9, 0), "3": (0, 0, 9)}  # so the first class tells which version answered
ANSWERS = {"1": "cat", "2": "dog", "3": "owl"}


@pytest.fixture(scope="module")
def mlflow_uri(team_mlflow):
    return team_mlflow.uri


@dataclass
class Stage:
    """MLflow with three good versions and a corrupt one, its webhook, and the server."""

    client: object
    server: ServerProcess
    webhook: str
    corrupt: str

    def promote(self, version: str) -> None:
        self.client.set_registered_model_alias(NAME, "champion", version)

    def wait_for_version(self, version: str, seconds: float = 3.0) -> None:
        self.server.wait_for(lambda content: content["model"] and content["model"]["version"] == version, seconds)

    def deliveries(self) -> int:
        """Return how many were answered, once no more are under way: the server is woken before it has answered."""
        count, latest = -1, self._count()
        while count != latest:
            time.sleep(0.3)
            count, latest = latest, self._count()
        return count

    def _count(self) -> int:
        text = self.server.request("/metrics").content.decode()
        counts = re.findall(r'route="/hooks/mlflow",status="202"} (\d+)', text)
        return int(counts[0]) if counts else 0


@pytest.fixture(scope="module")
def stage(mlflow_uri, tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving")
    environment = {
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "GRPO_RM_WEBHOOK_SECRET": SECRET,
        "GRPO_RM_POLL_SECONDS": str(POLL_SECONDS),
    }
    model = f"models:/{NAME}@champion"
    with serving(model, directory, **environment) as server:
        content = server.wait_for(lambda content: "being loaded" not in content["error"])
        assert content["error"] == (
            f"there is no registered model '{NAME}' in {mlflow_uri}: register one, or correct the name"
        )
        register_webhook(server, environment)
        webhook = register_webhook(server, environment)
        with warnings.catch_warnings(action="ignore"):
            client, corrupt = register_versions(mlflow_uri, directory)
        server.wait_for(lambda content: f"has no alias 'champion' in {mlflow_uri}" in content["error"])
        yield Stage(client, server, webhook, corrupt)
        assert server.end() == 0
        assert "Traceback" not in server.log.read_text()


def register_webhook(server: ServerProcess, environment: dict[str, str]) -> str:
    """Run the command, and return the webhook's id."""
    command = [sys.executable, "-m", "serving.webhook", "register", "--url", f"{server.url}/hooks/mlflow"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.split("(")[1].split(")")[0]


def register_versions(uri: str, directory: Path):
    """Register them as stage register does; the corrupt one is damaged where it is kept."""
    import mlflow
    import onnx

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    client.create_registered_model(NAME)
    for number, bias in {**BIASES, "4": (1, 1, 1)}.items():
        path = write_onnx(directory / "model.onnx", bias=bias)
        with mlflow.start_run():
            logged = mlflow.onnx.log_model(
                onnx.load(path),
                name="encoder",
                save_as_external_data=False,
                pip_requirements=["onnxruntime"],
                extra_files=[str(write_self_test(directory / "self_test.npz", bias=bias))] if number != "3" else None,
            )
        tags = {"onnx.sha256": sha256(path)}
        assert mlflow.register_model(logged.model_uri, NAME, tags=tags).version == number
    location = client.get_model_version_download_uri(NAME, number).removeprefix("mlflow-artifacts:/")
    url = f"{uri}/api/2.0/mlflow-artifacts/artifacts/{location}/model.onnx"
    with urllib.request.urlopen(urllib.request.Request(url, b"corrupt", method="PUT")):
        return client, number


@contextlib.contextmanager
def constant_requests(server: ServerProcess) -> Iterator[list[tuple[str, str]]]:
    """Ask from two threads all the time, and collect (version, class) of each answer."""
    answers, is_over, failures = [], threading.Event(), []

    def ask():
        try:
            while not is_over.is_set():
                answer = server.request("/v1/classify", PICTURE)
                assert answer.status == 200, answer
                assert answer.headers["x-model-version"] == answer.content["model"]["version"]
                answers.append(
                    (answer.content["model"]["version"], answer.content["predictions"][0]["classes"][0]["name"])
                )
        except BaseException as error:  # shown by the test, which is in another thread
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        assert not failures


def test_the_webhook_is_registered_once(stage):
    webhooks = stage.client.list_webhooks()
    assert [webhook.webhook_id for webhook in webhooks] == [stage.webhook]


def test_promotion_and_rollback_without_a_failed_request(stage):
    stage.promote("1")
    stage.wait_for_version("1")
    before, start = stage.deliveries(), time.monotonic()
    with constant_requests(stage.server) as answers:
        for version in ("2", "1", "3", "2"):
            stage.promote(version)
            stage.wait_for_version(version, seconds=2.0)
    assert time.monotonic() - start < 2 * POLL_SECONDS, "polling alone would take three intervals and more"
    assert stage.deliveries() == before + 4
    assert len(answers) > 20 and {version for version, _ in answers} == {"1", "2", "3"}
    assert all(ANSWERS[version] == name for version, name in answers)


def test_a_version_without_self_test_says_so(stage):
    stage.promote("3")
    stage.wait_for_version("3")
    (warning,) = stage.server.request("/readyz").content["model"]["warnings"]
    assert "no extra_files/self_test.npz" in warning


def test_a_corrupt_version_does_not_go_live(stage):
    stage.promote("1")
    stage.wait_for_version("1")
    with constant_requests(stage.server) as answers:
        stage.promote(stage.corrupt)
        content = stage.server.wait_for(lambda content: content["error"])
    assert "the SHA-256 of model.onnx is" in content["error"]
    assert content["status"] == "ready" and content["model"]["version"] == "1"
    assert set(answers) == {("1", "cat")}
    stage.promote("1")
    stage.server.wait_for(lambda content: content["error"] is None)


def test_a_deleted_alias_keeps_the_model(stage):
    stage.promote("2")
    stage.wait_for_version("2")
    stage.client.delete_registered_model_alias(NAME, "champion")
    content = stage.server.wait_for(lambda content: content["error"])
    assert "has no alias 'champion'" in content["error"] and content["model"]["version"] == "2"
    stage.promote("2")
    stage.server.wait_for(lambda content: content["error"] is None)


def test_only_mlflow_may_call_the_hook(stage):
    body = json.dumps({"entity": "model_version_alias", "data": {}}).encode()
    answer = stage.server.request("/hooks/mlflow", body, {"X-MLflow-Signature": "v1,AAAA"})
    assert answer.status == 401


def test_polling_is_the_fallback(stage):
    """Last, because the webhook is gone afterwards."""
    stage.promote("1")
    stage.wait_for_version("1")
    stage.client.delete_webhook(stage.webhook)
    time.sleep(1.1)  # MLflow caches its webhooks, here for 1 s
    before = stage.deliveries()
    stage.promote("2")
    stage.wait_for_version("2", seconds=POLL_SECONDS + 2)
    assert stage.deliveries() == before
