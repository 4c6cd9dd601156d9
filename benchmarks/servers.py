"""The server and those it is compared with, each with all its processes in a group that can be stopped for a while."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Request, post

SECONDS_TO_START = 120
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: On 127.0.0.1.
        process: Its first one.
        requests: An image each, as this server wants it.
        label: What it is, with its settings.
    """

    port: int
    process: "subprocess.Popen[bytes]"
    requests: Sequence[Request]
    label: str

    @contextlib.contextmanager
    def awake(self) -> Iterator["Server"]:
        """Let it run within the block only: it starts stopped, and takes nothing from the others."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield self
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)


@contextlib.contextmanager
def ours(model: Path, files: Sequence[bytes], *, cores: set[int], **environment: str) -> Iterator[Server]:
    """Start `python -m serving` on a file, with its default settings; images are raw bodies."""
    requests = [post("/v1/embed", file) for file in files]
    port = free_port()
    command = [sys.executable, "-m", "serving", "--model", str(model), "--port", str(port)]
    with _started(command, port, "/readyz", cores, environment) as process:
        yield Server(port, process, requests, "this server")


@contextlib.contextmanager
def following(name: str, *, cores: set[int], **environment: str) -> Iterator[Server]:
    """Start `python -m serving` on the champion of a registered model."""
    port = free_port()
    command = [sys.executable, "-m", "serving", "--model", f"models:/{name}@champion", "--port", str(port)]
    with _running(command, port, "/readyz", cores, environment) as process:
        yield Server(port, process, [], "this server")


@contextlib.contextmanager
def litserve(model: Path, files: Sequence[bytes], *, cores: set[int], style: str) -> Iterator[Server]:
    """Start LitServe in one of the styles of litserve_app."""
    if style == "documented":
        bodies = [json.dumps({"image": base64.b64encode(file).decode()}).encode() for file in files]
        requests = [post("/predict", body, "application/json") for body in bodies]
    else:
        requests = [post("/predict", file) for file in files]
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.litserve_app", str(model), str(port), style]
    with _started(command, port, "/health", cores, {}) as process:
        yield Server(port, process, requests, f"LitServe, {style}")


@contextlib.contextmanager
def mlflow(model: Path, images: NDArray[np.uint8], *, cores: set[int], workers: int, intra_op: int) -> Iterator[Server]:
    """Start `mlflow models serve`. Images are decoded already, as it takes arrays only: uint8 as JSON.

    Args:
        model: The ONNX file; it is saved anew beside it, as mlflow wants it.
        images: (N, H, W, C) uint8.
        cores: Its own.
        workers: Processes.
        intra_op: Threads of onnxruntime in each; 0 is its default, all cores, which spin.
    """
    saved = model.with_name(f"mlflow-{intra_op}")
    if not saved.exists():
        _save(model, saved, images.shape, intra_op)
    requests = [
        post("/invocations", json.dumps({"inputs": {"images": [image.tolist()]}}).encode(), "application/json")
        for image in images
    ]
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(saved), "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    with _started(command, port, "/ping", cores, {}) as process:
        yield Server(port, process, requests, f"mlflow, {workers} workers, {intra_op or 'default'} threads")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _save(model: Path, saved: Path, shape: Sequence[int], intra_op: int) -> None:
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    options: dict[str, Any] = {"intra_op_num_threads": intra_op} if intra_op else {}
    mlflow.onnx.save_model(
        onnx.load(model),
        str(saved),
        signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *shape[1:]), "images")])),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options=options,
        save_as_external_data=False,
        pip_requirements=["onnxruntime"],
    )


@contextlib.contextmanager
def _started(
    command: Sequence[str], port: int, path: str, cores: set[int], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    with _running(command, port, path, cores, environment) as process:
        os.killpg(process.pid, signal.SIGSTOP)
        yield process


@contextlib.contextmanager
def _running(
    command: Sequence[str], port: int, path: str, cores: set[int], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    folder = Path(sys.executable).parent
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}  # mlflow looks for uvicorn there
    process = subprocess.Popen(
        command,
        env={**os.environ, **paths, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    try:
        _wait_for(process, f"http://127.0.0.1:{port}{path}")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} does not answer at {url}")
