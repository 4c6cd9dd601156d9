"""The server against bare onnxruntime, LitServe and `mlflow models serve`, and its latency under load.

    python -m benchmarks.serving                      writes benchmarks/results/serving-<machine>.json
    python -m benchmarks.serving --only test_resnet   one encoder, prints only
    python -m benchmarks.serving soak                 see benchmarks/soak.py

All that is compared is measured in turn, `ROUNDS` times: the claims are the medians of the ratios within a round. Who
is not measured at the moment is stopped (SIGSTOP), so that nobody takes anything from the others.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import bare, servers
from benchmarks.load import Load, closed_loop, open_loop
from benchmarks.pipeline import ROOT, describe_machine
from benchmarks.serving_table import format_tables, result_path
from benchmarks.subjects import SUBJECTS, Subject, export, image_files

ROUNDS, SECONDS, WARM_UP, HALF_LOAD_SECONDS = 5, 6.0, 2.0, 20.0
CLIENTS = 32
SOAKED = "vit_tiny_patch16_224"
TRIAL_SECONDS = 2.0  # to find the best settings of bare onnxruntime and mlflow
PACKAGES = ("onnxruntime", "fastapi", "uvicorn", "litserve", "mlflow")


@dataclass(frozen=True)
class Worker:
    """A process for the functions of bare.py or load.py, on some cores."""

    pool: ProcessPoolExecutor

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.pool.submit(function, *arguments, **options).result()


@dataclass(frozen=True)
class Case:
    """An encoder with its files, where the server runs and where its client."""

    model: Path
    files: Sequence[bytes]
    cores: set[int]
    client: Worker
    reference: Worker


def main() -> None:
    """Measure, write the result, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Measure the server.")
    parser.add_argument("what", nargs="?", choices=["compare", "soak"], default="compare")
    parser.add_argument("--only", choices=[subject.encoder for subject in SUBJECTS], help="one encoder, without a file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the soak")
    options = parser.parse_args()
    if options.what == "soak":
        from benchmarks.soak import soak

        print(json.dumps(soak(options.seconds, options.only or SOAKED), indent=2))
        return
    subjects = [subject for subject in SUBJECTS if options.only in (None, subject.encoder)]
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "machine": describe_machine(),
            "commit": _commit(),
            "packages": {name: version(name) for name in PACKAGES},
            "rounds": options.rounds,
            "subjects": {s.encoder: measure(s, Path(folder) / s.encoder, options.rounds) for s in subjects},
        }
    if not options.only:
        path = result_path(result)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_tables(result))


def measure(subject: Subject, folder: Path, rounds: int) -> dict[str, Any]:
    """Return all measurements of an encoder."""
    folder.mkdir()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # torch's threads end with it
        pool.submit(export, subject, folder / "model.onnx").result()
    files = image_files(subject)
    cores = os.sched_getaffinity(0)
    result: dict[str, Any] = {"images": {"kind": subject.kind, "kb": statistics.mean(map(len, files)) / 1000}}
    with _case(folder / "model.onnx", files, cores, cores) as case:
        result["start_s"] = _spread([_start_seconds(case) for _ in range(rounds)])
        result["shared"] = compare_with_bare(case, rounds, is_latency_measured=True)
        result["rivals"] = compare_with_rivals(case, rounds)
    if len(cores) > 1:
        first, *others = sorted(cores)
        with _case(folder / "model.onnx", files, set(others), {first}) as case:
            result["pinned"] = compare_with_bare(case, rounds, is_latency_measured=False)
    return result


def compare_with_bare(case: Case, rounds: int, *, is_latency_measured: bool) -> dict[str, Any]:
    """Return throughput beside bare onnxruntime on the same cores, and latency beside decoding and inference."""
    way, rates = _best_way(case)
    rows: list[dict[str, float]] = []
    half_load: list[Load] = []
    with servers.ours(case.model, case.files, cores=case.cores) as server:
        lone = _best_lone_way(case) if is_latency_measured else way
        for number in range(rounds):
            row = {"bare": _bare(case, way, SECONDS)}
            with server.awake():
                load: Load = case.client(
                    closed_loop, server.port, server.requests, clients=CLIENTS, seconds=SECONDS, warm_up=WARM_UP
                ).check()
            row |= {"server": load.rate, "ratio": load.rate / row["bare"], "p50": load.quantile(0.5)}
            row["client_cpu_ms"] = 1000 * load.cpu_seconds / len(load.latencies)
            if is_latency_measured:
                row |= _one_client(case, server, lone)
                with server.awake():
                    half = case.client(
                        open_loop,
                        server.port,
                        server.requests,
                        rate=load.rate / 2,
                        seconds=HALF_LOAD_SECONDS,
                        seed=number,
                    ).check()
                half_load.append(half)
                row["half_load_ratio"] = half.quantile(0.99) / half.quantile(0.5)
            rows.append(row)
    result: dict[str, Any] = {"way": str(way), "trials": rates, **_spreads(rows)}
    if is_latency_measured:
        pooled = Load(latencies=[latency for load in half_load for latency in load.latencies])
        quantiles = {name: pooled.quantile(q) for name, q in (("p50", 0.5), ("p99", 0.99))}
        result["half_load"] = {"n": len(pooled.latencies), **quantiles, "ratio": quantiles["p99"] / quantiles["p50"]}
        result["lone"] = str(lone)
    return result


def compare_with_rivals(case: Case, rounds: int) -> dict[str, Any]:
    """Return requests a second of the server and of others at 32 clients. Of mlflow the best of three settings."""
    import numpy as np

    cores = len(case.cores)
    images = np.stack(case.reference(_decode, case.model, case.files))
    rows: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(servers.ours(case.model, case.files, cores=case.cores))
        litserve, documented = (
            stack.enter_context(servers.litserve(case.model, case.files, cores=case.cores, style=style))
            for style in ("tuned", "documented")
        )
        settings = [(1, 0), (1, cores), (cores, 1)]
        trials = {}
        for workers, intra_op in settings:
            with servers.mlflow(case.model, images, cores=case.cores, workers=workers, intra_op=intra_op) as trial:
                trials[workers, intra_op] = _rate(case, trial, SECONDS)  # without an answer it is 0
        workers, intra_op = max(trials, key=lambda setting: trials[setting])
        mlflow = stack.enter_context(
            servers.mlflow(case.model, images, cores=case.cores, workers=workers, intra_op=intra_op)
        )
        for _ in range(rounds):
            rivals = {"litserve": litserve, "litserve_documented": documented, "mlflow": mlflow}
            row = {name: _rate(case, server, SECONDS) for name, server in {"server": ours, **rivals}.items()}
            rows.append(row | {f"over_{name}": row["server"] / row[name] for name in rivals})
    return {
        "mlflow_setting": mlflow.label,
        "mlflow_trials": {f"{workers} workers, {intra or 'default'}": r for (workers, intra), r in trials.items()},
        **_spreads(rows),
    }


def _start_seconds(case: Case) -> float:
    start = time.perf_counter()
    with servers.ours(case.model, case.files, cores=case.cores):
        return time.perf_counter() - start


def _rate(case: Case, server: servers.Server, seconds: float) -> float:
    with server.awake():
        load: Load = case.client(
            closed_loop, server.port, server.requests, clients=CLIENTS, seconds=seconds, warm_up=WARM_UP
        )
    load.check()
    return load.rate


def _one_client(case: Case, server: servers.Server, lone: bare.Arrangement) -> dict[str, float]:
    times = case.reference(bare.latency, case.model, case.files, lone, seconds=SECONDS / 2)
    decoding, inference = (statistics.median(column) for column in zip(*times, strict=True))
    with server.awake():
        load: Load = case.client(closed_loop, server.port, server.requests, clients=1, seconds=SECONDS / 2).check()
    one = load.quantile(0.5)
    return {"decode_ms": decoding, "inference_ms": inference, "one_ms": one, "added_ms": one - decoding - inference}


def _best_way(case: Case) -> tuple[bare.Arrangement, dict[str, float]]:
    rates = {way: _bare(case, way, TRIAL_SECONDS) for way in bare.arrangements(len(case.cores))}
    return max(rates, key=lambda way: rates[way]), {str(way): rate for way, rate in rates.items()}


def _best_lone_way(case: Case) -> bare.Arrangement:
    def milliseconds(way: bare.Arrangement) -> float:
        times = case.reference(bare.latency, case.model, case.files, way, seconds=TRIAL_SECONDS)
        return statistics.median(decoding + inference for decoding, inference in times)

    return min(bare.arrangements(len(case.cores), [1]), key=milliseconds)


def _bare(case: Case, way: bare.Arrangement, seconds: float) -> float:
    rate: float = case.reference(bare.throughput, case.model, case.files, way, cores=len(case.cores), seconds=seconds)
    return rate


def _decode(model: Path, files: Sequence[bytes]) -> list[Any]:
    return [bare.open_view(model)(file) for file in files]


@contextlib.contextmanager
def _case(model: Path, files: Sequence[bytes], cores: set[int], client_cores: set[int]) -> Iterator[Case]:
    with _worker(client_cores) as client, _worker(cores) as reference:
        yield Case(model, files, cores, client, reference)


@contextlib.contextmanager
def _worker(cores: set[int]) -> Iterator[Worker]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=os.sched_setaffinity, initargs=(0, cores)) as pool:
        yield Worker(pool)


def _spreads(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the spread of each column."""
    return {name: _spread([row[name] for row in rows]) for name in rows[0]}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
