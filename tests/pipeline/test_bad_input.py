"""What a user gets for a mistake: one message, exit code not 0, earlier results one `dvc checkout` away."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.pipeline

MODEL = "models/finetune/grpo_rm/model.safetensors"


def repro_fails(workspace, *stages: str, **environment: str) -> str:
    before = (workspace.root / MODEL).read_bytes()
    message = workspace.fail("dvc", "repro", *stages, **environment)
    workspace.succeed("git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    workspace.succeed("dvc", "checkout", "--quiet", "--force")
    assert (workspace.root / MODEL).read_bytes() == before
    return message


def write_images(root, sizes: dict[str, int]) -> None:
    for name, count in sizes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.effect_noise((8, 8), 50).save(root / name / f"{index}.png")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 3", "  epoch: 3", "finetune.epoch: unknown key; did you mean epochs?"),
        ("\nobjective:", "\nobjectiv:", "objectiv: unknown key; did you mean objective?"),
        ("learning_rate: 1.0e-3", "learning_rate: -1", "finetune.learning_rate: got -1, expected greater than 0"),
        ("scale: group", "scale: groups", "objective.scale: got 'groups', expected 'group' or 'none'"),
    ],
)
def test_params(workspace, old, new, message):
    text = (workspace.root / "params.yaml").read_text()
    head, found, tail = text.rpartition(old)
    assert found
    (workspace.root / "params.yaml").write_text(head + new + tail)
    assert message in repro_fails(workspace)


def test_unknown_encoder(workspace):
    workspace.set(encoder__name="resnet81")
    message = repro_fails(workspace)
    assert "timm has no encoder 'resnet81'" in message
    assert "resnet18" in message


def test_image_size_the_encoder_refuses(workspace):
    workspace.set(encoder__name="test_vit", encoder__image_size=50)
    assert "cannot take image_size 50: its patches are 16 pixels wide, so use a multiple such as 48" in repro_fails(
        workspace
    )


def test_source_that_does_not_exist(workspace):
    workspace.set(data__source="folder:data/raw/none")
    message = repro_fails(workspace)
    assert "data.source is folder:data/raw/none" in message
    assert "does not exist" in message


def test_class_with_a_single_image(workspace):
    write_images(workspace.root / "data/raw/pets", {"cat": 5, "dog": 1})
    workspace.set(data__source="folder:data/raw/pets")
    assert "'dog' has 1; expected at least 3" in repro_fails(workspace)


def test_nan_loss_stops_and_keeps_the_last_good_model(workspace):
    # the step that follows is so long that the weights overflow
    workspace.set(finetune__learning_rate="1.0e+30", finetune__warmup_epochs=0)
    message = repro_fails(workspace, "finetune@grpo_rm")
    assert "training stopped at step 2 (epoch 1)" in message
    assert "Lower learning_rate" in message


def test_tracking_server_that_refuses(workspace):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    message = repro_fails(workspace, "--force", "--single-item", "pretrain", MLFLOW_TRACKING_URI=uri)
    assert time.monotonic() - start < 10
    assert f"the tracking server {uri} does not answer" in message


def test_tracking_server_that_hangs(workspace):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        workspace.fail("python", "-m", "pipelines.pretrain", MLFLOW_TRACKING_URI=uri)
        assert time.monotonic() - start < 10


def test_validation_failure_names_rows_and_stops(workspace):
    write_images(workspace.root / "data/raw/broken", {"cat": 12, "dog": 12})
    (workspace.root / "data/raw/broken/cat/broken.png").write_bytes(b"not an image")
    workspace.set(data__source="folder:data/raw/broken")
    done = workspace.run("dvc", "repro", "validate")
    assert done.returncode != 0
    assert "cat/broken.png" in done.stdout + done.stderr
    assert "error: " in done.stderr


def test_stages_out_of_order(workspace):
    (workspace.root / "models/pretrain/config.json").unlink()
    assert "dvc repro" in workspace.fail("python", "-m", "pipelines.finetune", "grpo_rm")
    assert "expected `python -m pipelines.finetune" in workspace.fail("python", "-m", "pipelines.finetune", "ppo")


@contextmanager
def mlflow_server(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination", str(directory)]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(lambda: urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200, seconds=90)
        yield uri, server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError


@pytest.mark.service
def test_tracking_server_lost_on_the_way_loses_no_result(workspace, tmp_path):
    workspace.set(finetune__epochs=12)
    with mlflow_server(tmp_path) as (uri, server):
        training = subprocess.Popen(
            ["python", "-m", "pipelines.finetune", "grpo_rm"],
            cwd=workspace.root,
            env=workspace.environment | {"MLFLOW_TRACKING_URI": uri},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert training.stdout is not None
        lines = iter(training.stdout.readline, "")
        assert any("epoch 2/12" in line for line in lines)
        os.killpg(server.pid, signal.SIGKILL)
        output, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    assert "best epoch" in output
    assert errors.count("warning: tracking failed, the stage goes on") in (1, 2)
    assert "results are kept" in errors
    assert "Traceback" not in errors
    curve = (workspace.root / "reports/training/grpo_rm.csv").read_text().splitlines()
    assert len(curve) == 1 + 12
