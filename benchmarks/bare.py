"""What the server is compared with: onnxruntime and the server's own decoding in a loop, without any server.

The functions run in a process of their own, which keeps its sessions from one call to the next.
"""

import functools
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.preprocessing import decode, evaluation_view

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Arrangement:
    """How the cores are used.

    Attributes:
        workers: Threads that each decode a batch and run it.
        intra_op: Threads of onnxruntime in each run.
        batch: Images in a run.
        is_spinning: onnxruntime's threads wait by spinning, its default.
    """

    workers: int
    intra_op: int
    batch: int
    is_spinning: bool = False

    def __str__(self) -> str:
        spinning = ", spinning" if self.is_spinning else ""
        return f"batch {self.batch}, {self.workers} x {self.intra_op} threads{spinning}"


def arrangements(cores: int, batches: Sequence[int] = BATCHES) -> list[Arrangement]:
    """Return those worth a try: a batch for each core, or all cores for one batch."""
    ways = {(cores, 1, False), (1, cores, False), (1, cores, cores > 1)}
    return [Arrangement(workers, intra, batch, spin) for batch in batches for workers, intra, spin in sorted(ways)]


def throughput(model: Path, files: Sequence[bytes], way: Arrangement, *, cores: int, seconds: float) -> float:
    """Return images a second, from encoded image to output."""
    session = open_session(model, way.intra_op, way.is_spinning)
    batches = [list(itertools.islice(itertools.cycle(files), n, n + way.batch)) for n in range(len(files))]
    pool = ThreadPoolExecutor(cores // way.workers)  # a lone worker decodes on all cores
    counts, start = [0] * way.workers, time.perf_counter()

    def work(worker: int) -> None:
        for batch in itertools.cycle(batches):
            decoded = pool.map(open_view(model), batch) if way.workers < cores else map(open_view(model), batch)
            session.run(None, {"images": np.stack(list(decoded))})
            counts[worker] += way.batch
            if time.perf_counter() - start > seconds:
                return

    threads = [threading.Thread(target=work, args=[worker]) for worker in range(way.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    pool.shutdown()
    return sum(counts) / elapsed


def latency(model: Path, files: Sequence[bytes], way: Arrangement, *, seconds: float) -> list[tuple[float, float]]:
    """Return what decoding and inference of one image take, in milliseconds, for image after image."""
    session, view = open_session(model, way.intra_op, way.is_spinning), open_view(model)
    times, end = [], time.perf_counter() + seconds
    for file in itertools.cycle(files):
        start = time.perf_counter()
        pixels = view(file)
        decoded = time.perf_counter()
        session.run(None, {"images": pixels[None]})
        times.append((1000 * (decoded - start), 1000 * (time.perf_counter() - decoded)))
        if time.perf_counter() > end:
            return times
    raise AssertionError


@functools.cache
def open_session(model: Path, intra_op: int, is_spinning: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = intra_op, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(is_spinning)))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def open_view(model: Path) -> Any:
    import json

    p = json.loads(open_session(model, 1, False).get_modelmeta().custom_metadata_map["grpo_rm.preprocessing"])

    def view(file: bytes) -> NDArray[np.uint8]:
        image = decode(file, channels=p["channels"])
        return evaluation_view(image, size=p["image_size"], crop_pct=p["crop_pct"], interpolation=p["interpolation"])

    return view
