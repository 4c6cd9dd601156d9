"""`python -m serving` as a process of its own, on a free port."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: Any


@dataclass
class ServerProcess:
    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        request = urllib.request.Request(self.url + path, body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return answer(response)
        except urllib.error.HTTPError as error:
            with error:
                return answer(error)

    def wait_for(self, condition, seconds=10.0) -> Any:
        """Return the content of /readyz once the condition holds for it."""
        end = time.monotonic() + seconds
        while not condition(content := self.request("/readyz").content):
            assert time.monotonic() < end, f"{content}\n{self.log.read_text()}"
            time.sleep(0.02)
        return content

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def answer(response) -> Answer:
    """Read an answer. Its content is what its JSON means, else bytes."""
    headers, content = lower(response.headers), response.read()
    is_json = headers.get("content-type") == "application/json"
    return Answer(response.status, headers, json.loads(content) if is_json else content)


def lower(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(model: str | Path, directory: Path, **environment: str) -> Iterator[ServerProcess]:
    """Start the server in a directory, and end it."""
    port, log = free_port(), directory / "serving.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "--model", str(model), "--port", str(port)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = ServerProcess(f"http://127.0.0.1:{port}", port, process, log)
    try:
        end = time.monotonic() + 30
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                assert server.request("/healthz").content == {"status": "alive"}
                break
            time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def form(
    *files: bytes, content_type="multipart/form-data; boundary=b", name='name="image"; filename="a"'
) -> tuple[bytes, dict[str, str]]:
    """Return files as the body and the headers of multipart/form-data."""
    head = f"--b\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n"
    return body, {"Content-Type": content_type}


def picture(color: tuple[int, int, int], kind="PNG", size=(20, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()
