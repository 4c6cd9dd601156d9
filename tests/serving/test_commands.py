"""The command `grpo-rm`: help, errors in one line, what it imports, and a server that it starts."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server_process import ServerProcess, free_port, picture
from test_embed import command, write_images
from tiny_onnx import write_onnx

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "timm", "mlflow", "pandas", "prefect", "great_expectations", "sklearn", "faiss"}


def test_help():
    done = command("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in ("serve", "embed", "index"))
    for name in ("serve", "embed", "index"):
        done = command(name, "--help")
        assert done.returncode == 0 and f"Example: grpo-rm {name} " in done.stdout
    done = command()
    assert done.returncode == 2 and "embed" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["embed"], 2, "Missing argument"),
        (["embed", "nowhere", "--model", "m.onnx", "--out", "o.parquet", "--what"], 2, "No such option: --what"),
        (["embed", "nowhere", "--model", "m.onnx", "--out", "o.parquet"], 1, "nowhere does not exist"),
        (["embed", "images", "--model", "m.onnx", "--out", "o.parquet"], 1, "there is no model file m.onnx"),
        (["embed", "images", "--model", "models:/m/3", "--out", "o.parquet"], 1, "expected models:/NAME@ALIAS"),
        (["embed", "images", "--model", "models:/m@champion", "--out", "o.parquet"], 1, "there is no MLflow store"),
        (["index", "images", "--out", "indexes"], 2, "Invalid value for --model: images need one"),
        (["serve", "--what"], 2, "unrecognized arguments: --what; `grpo-rm serve --help`"),
        (["serve", "--model", "m.onnx", "--port", "x"], 1, "the port is 'x'"),
    ],
)
def test_errors_are_one_line(arguments, code, reason, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_images(tmp_path / "images", 1)
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and reason in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--help"], ["serve", "--model", "nowhere.onnx"]])
def test_slow_packages_are_not_imported(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines.commands", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported and not imported & SLOW


def test_serve(tmp_path):
    onnx, log, port = write_onnx(tmp_path / "tiny.onnx"), tmp_path / "log", free_port()
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.commands", "serve", "--model", onnx, "--port", str(port)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    server = ServerProcess(f"http://127.0.0.1:{port}", port, process, log)
    try:
        while True:
            assert process.poll() is None and time.monotonic() < started + 20, log.read_text()
            try:
                answer = server.request("/v1/embed", picture((255, 0, 51)))
                break
            except OSError:
                time.sleep(0.02)
        assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
