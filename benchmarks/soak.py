"""An hour of use in five minutes: mixed requests, malformed images, slow clients, three promotions; memory stays flat.

The registry is a real one: MLflow's SQLite store in a temporary folder, which the server polls every second.
"""

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.load import Request, closed_loop, post
from benchmarks.subjects import SUBJECTS, Subject, export, image_files

NAME, PROMOTIONS, CLIENTS, SLOW_CLIENTS = "grpo-rm-soak", 3, 16, 4
WARM_UP, WINDOW = 0.2, 0.1  # of the whole: before memory counts; how long each end of it is looked at
PROMOTION_SECONDS = 30
PAUSE_SECONDS = 0.5  # between two bytes of a slow client


def soak(seconds: float, encoder: str) -> dict[str, Any]:
    """Return what happened to requests, memory and promotions.

    Raises:
        RuntimeError: A good request failed, a malformed one was not refused with 4xx, or a promotion did not happen.
    """
    subject = next(subject for subject in SUBJECTS if subject.encoder == encoder)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor(1, context) as registrar:
        store = f"sqlite:///{folder}/mlruns/mlflow.db"
        registrar.submit(register, subject, Path(folder), store).result()
        environment = {"MLFLOW_TRACKING_URI": store, "GRPO_RM_POLL_SECONDS": "1"}
        with servers.following(NAME, cores=os.sched_getaffinity(0), **environment) as server:
            requests = mix(server.port, subject)
            with concurrent.futures.ProcessPoolExecutor(1, context) as client, _slow_clients(server.port) as slow:
                answers = client.submit(
                    closed_loop, server.port, requests, clients=CLIENTS, seconds=seconds, warm_up=0.0
                )
                rss: list[tuple[float, float]] = []
                delays: list[float] = []
                start = time.monotonic()
                while not answers.done():
                    time.sleep(min(1.0, seconds / 100))
                    rss.append((time.monotonic() - start, _rss_mb(server.process.pid)))
                    share = (len(delays) + 1) / (PROMOTIONS + 1)
                    if len(delays) < PROMOTIONS and time.monotonic() - start > share * seconds:
                        registrar.submit(promote, len(delays) + 2, store).result()
                        delays.append(_wait_for_version(server.port, str(len(delays) + 2)))
                load = answers.result()
    statuses = {f"{kind} {status}": count for (kind, status), count in sorted(load.statuses.items())}
    unexpected = {
        name: count
        for name, count in load.statuses.items()
        if not (400 <= name[1] < 500 if name[0] == "malformed" else name[1] == 200)
    }
    if unexpected or len(delays) < PROMOTIONS:
        raise RuntimeError(f"unexpected: {unexpected}; {len(delays)} promotions; all: {statuses}")
    return {
        "encoder": encoder,
        "seconds": load.seconds,
        "requests": statuses,
        "requests_per_second": load.rate,
        "slow_clients": dict(slow),
        "seconds_until_promoted": delays,
        "rss_mb": _memory(rss, seconds),
    }


def register(subject: Subject, folder: Path, store: str) -> None:
    """Register as many versions as there will be, of different weights, and promote the first."""
    os.environ["MLFLOW_TRACKING_URI"] = store
    from pipelines.lineage import sha256
    from pipelines.onnx_model import SELF_TEST
    from pipelines.tracking.registry import ONNX_TAG, SELF_TEST_TAG, create_version

    (folder / "mlruns").mkdir()
    for seed in range(PROMOTIONS + 1):
        path = folder / "encoder.onnx"
        export(subject, path, seed=seed)
        tags = {ONNX_TAG: sha256(path), SELF_TEST_TAG: sha256(path.with_name(SELF_TEST))}
        create_version(NAME, path, tags=tags, model_sha256=str(seed), experiment=NAME)
    promote(1, store)


def promote(version: int, store: str) -> None:
    """Make a version the champion."""
    from mlflow import MlflowClient

    MlflowClient(store).set_registered_model_alias(NAME, "champion", str(version))


def mix(port: int, subject: Subject) -> list[Request]:
    """Return requests of all kinds that this server has routes for, in a fixed order."""
    routes = json.loads(_get(port, "/openapi.json"))["paths"]
    photographs = image_files(SUBJECTS[0])
    requests = []
    for number, file in enumerate([*photographs, *image_files(subject)]):
        requests += [post("/v1/embed", file, kind="embed"), post("/v1/classify?top_k=3", file, kind="classify")]
        if number % 4 == 0:
            requests.append(post("/v1/classify", malformed(file)[number // 4 % 4], kind="malformed"))
            if any(route.endswith("/infer") for route in routes):
                requests.append(_v2(file, subject))
    return requests


def malformed(file: bytes) -> list[bytes]:
    """Return a truncated image, noise, nothing, and a small file of very many pixels."""
    from PIL import Image

    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    return [file[: len(file) // 2], bytes(range(256)) * 40, b"", bomb.getvalue()]


def _v2(file: bytes, subject: Subject) -> Request:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        pixels = image.convert("RGB").resize((subject.size, subject.size)).tobytes()
    tensor = {"name": "images", "shape": [1, subject.size, subject.size, 3], "datatype": "UINT8", "data": list(pixels)}
    return post(f"/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json", "v2")


@contextlib.contextmanager
def _slow_clients(port: int) -> Any:
    """Let some clients send their image byte after byte until they are cut off; counts how they end."""
    ends: dict[str, int] = {}
    is_over = threading.Event()
    image = image_files(SUBJECTS[-1])[0]

    def dribble() -> None:
        while not is_over.is_set():
            end = _dribble(port, post("/v1/embed", image).data, is_over)
            ends[end] = ends.get(end, 0) + 1

    threads = [threading.Thread(target=dribble) for _ in range(SLOW_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield ends
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _dribble(port: int, data: bytes, is_over: threading.Event) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=PAUSE_SECONDS) as connection:
        try:
            for byte in data:
                connection.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    answer = connection.recv(65536)
                    return f"cut off, {answer[9:12].decode() or 'without an answer'}"
                if is_over.is_set():
                    return "not cut off before the end"
        except OSError:
            return "cut off, without an answer"
    return "answered"


def _wait_for_version(port: int, version: str) -> float:
    start = time.monotonic()
    while json.loads(_get(port, "/readyz"))["model"]["version"] != version:
        if time.monotonic() - start > PROMOTION_SECONDS:
            raise RuntimeError(f"version {version} is not live: {_get(port, '/readyz').decode()}")
        time.sleep(0.05)
    return time.monotonic() - start


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
        content: bytes = response.read()
    return content


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _memory(samples: Sequence[tuple[float, float]], seconds: float) -> dict[str, float]:
    """Return the medians after the warm-up and at the end, and the growth between them."""
    first = [mb for at, mb in samples if WARM_UP * seconds <= at < (WARM_UP + WINDOW) * seconds]
    last = [mb for at, mb in samples if at >= (1 - WINDOW) * seconds]
    begin, end = statistics.median(first), statistics.median(last)
    return {"after_warm_up": begin, "end": end, "growth": end / begin - 1, "most": max(mb for _, mb in samples)}
