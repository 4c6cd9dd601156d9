"""Data: how fast images are prepared, a manifest is validated, a set is opened and batches are read; and their memory.

    python -m benchmarks.data --source folder:PATH    writes benchmarks/results/data-<machine>.json and its table
    python -m benchmarks.data --only loader           one part, prints only

The goals of prepare are for the 27,493 JPEG files of 64 x 64 pixels of 50 classes of Tiny-ImageNet. Without --source
they are looked for in ../shared/data/tinyimagenet50.tar.gz.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

from benchmarks import loader
from benchmarks.pipeline import ROOT, describe_machine
from benchmarks.training import commit
from benchmarks.training_table import machine_name
from pipelines.preparation.shards import ShardRow, plan_shards, write_shard

RESULTS, SOURCE_VARIABLE = ROOT / "benchmarks/results", "GRPO_RM_BENCH_SOURCE"
IMAGES = ROOT.parent / "shared/data/tinyimagenet50.tar.gz"
ROWS = 1_000_000
REPEATS = 3

OPEN = """
import time
from pathlib import Path
import psutil
from grpo_rm.datasets import read_split
before = psutil.Process().memory_info().rss
start = time.perf_counter()
split = read_split(Path("data/prepared"), "train")
print(time.perf_counter() - start, (psutil.Process().memory_info().rss - before) / 1e6, len(split.files))
"""


def main() -> None:
    """Measure, write the result, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="Measure what is done with data.")
    parser.add_argument("--source", default=os.environ.get(SOURCE_VARIABLE), help=f"data.source; ${SOURCE_VARIABLE}")
    parser.add_argument("--only", choices=["prepare", "validate", "loader", "open"], help="one part, without a file")
    options = parser.parse_args()
    parts = {
        "prepare": partial(measure_prepare, options.source),
        "validate": measure_validate,
        "loader": loader.measure,
        "open": measure_open,
    }
    result: dict[str, Any] = {"machine": describe_machine(), "commit": commit()}
    for name, measure in parts.items():
        if options.only in (None, name):
            result[name] = measure()
    if not options.only:
        path = RESULTS / f"data-{machine_name(result['machine'])}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_table(result))


def measure_prepare(source: str | None) -> dict[str, Any]:
    """Return images/s and the memory of all processes, on two cores; and the seconds to validate the same images."""
    if source is None and not IMAGES.exists():
        return {"skipped": f"neither --source nor ${SOURCE_VARIABLE} says where images are"}
    with tempfile.TemporaryDirectory() as unpacked:
        if source is None:
            with tarfile.open(IMAGES) as archive:
                archive.extractall(unpacked, filter="data")
            source = f"folder:{next(Path(unpacked).iterdir())}"
        return prepare_and_validate(source)


def prepare_and_validate(source: str) -> dict[str, Any]:
    """Return what `measure_prepare` does, of a source that is there."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    rounds = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            write_params(Path(folder), source)
            seconds, memory = watch("-m", "pipelines.prepare", workspace=Path(folder), cores=cores)
            images = pq.read_metadata(Path(folder) / "data/prepared/manifest.parquet").num_rows
            validated, _ = watch("-m", "pipelines.validate", "--report-only", workspace=Path(folder), cores=cores)
        rate = images / seconds
        rounds.append({"memory_mb": memory, "images_per_second": rate, "validate_seconds": validated})
    return {"images": images, "cores": len(cores), **summarize(rounds)}


def measure_validate() -> dict[str, Any]:
    """Return seconds, imports included, and memory with a manifest of a million rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_params(Path(folder), "folder:data/raw/generated")  # of benchmarks.manifest
        watch("-m", "benchmarks.manifest", str(ROWS), "data/prepared", workspace=Path(folder))
        rounds = []
        for _ in range(REPEATS):
            seconds, memory = watch("-m", "pipelines.validate", "--report-only", workspace=Path(folder))
            rounds.append({"seconds": seconds, "memory_mb": memory})
    return {"rows": ROWS, **summarize(rounds)}


def measure_open() -> dict[str, Any]:
    """Return how long a training waits for a split of a million images, and what it takes of memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder) / "data/prepared/train", ROWS)
        rounds = []
        for _ in range(REPEATS + 2):
            answer = run("-c", OPEN, workspace=Path(folder)).communicate()[0].split()
            rounds.append({"seconds": float(answer[0]), "memory_mb": float(answer[1])})
    return {"rows": int(answer[2]), **summarize(rounds)}


def write_split(directory: Path, rows: int) -> None:
    """Write shards as stage prepare does, with noise of about 200 bytes in the place of images."""
    rng = np.random.default_rng(0)
    ids = [f"class_{row // 1000:04}/image_{row:08}.jpg" for row in range(rows)]
    sizes = rng.integers(150, 250, rows)
    directory.mkdir(parents=True)
    for number, part in enumerate(plan_shards(ids, sizes)):
        shard = [ShardRow(ids[row], rng.bytes(int(sizes[row])), row // 1000) for row in part]
        write_shard(directory / f"{number:05d}.parquet", shard, classes=["any"], key="")


def write_params(workspace: Path, source: str) -> None:
    """Write params.yaml with another source."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"]["source"] = source
    (workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def run(*command: str, workspace: Path, cores: list[int] | None = None) -> "subprocess.Popen[str]":
    """Start Python in a workspace, with this repository's modules and a store of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{workspace}/mlflow.db",
    }
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=workspace,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if cores:
        psutil.Process(process.pid).cpu_affinity(cores)
    return process


def watch(*command: str, workspace: Path, cores: list[int] | None = None) -> tuple[float, float]:
    """Return seconds, and the most MB that it and its children had at once; shared memory is counted once."""
    start, most = time.perf_counter(), 0.0
    process = run(*command, workspace=workspace, cores=cores)
    while process.poll() is None:
        most = max(most, memory_of(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    return time.perf_counter() - start, most


def memory_of(pid: int) -> float:
    """Return the MB of a process and its children."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one has ended
        return 0.0
    return total / 1e6


def summarize(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return median, least and most of each quantity."""
    columns = {name: [one[name] for one in rounds] for name in rounds[0]}
    return {"rounds": len(rounds)} | {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in columns.items()
    }


def format_table(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    machine = result["machine"]
    head = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, commit {result['commit']}"
    rows = [row for name in ("prepare", "validate", "loader", "open") if name in result for row in _rows(name, result)]
    lines = [f"| {what} | {measured} | {goal} |" for what, measured, goal in rows]
    return "\n".join([head, "", "| what | measured | goal |", "| --- | --- | --- |", *lines])


def _rows(name: str, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    part = result[name]
    if name == "loader":
        return [_loader_row(one) for one in part]
    if "skipped" in part:
        return [(name, f"not measured: {part['skipped']}", "")]
    if name == "prepare":
        return [
            (f"prepare, {part['images']:,} images", f"{_spread(part['images_per_second'])} images/s", "at least 4,000"),
            ("prepare, memory of all processes", f"{_spread(part['memory_mb'])} MB", "at most 600"),
            (f"validate, {part['images']:,} images", f"{_spread(part['validate_seconds'], 2)} s", "at most 6"),
        ]
    what = f"{name}, {part['rows']:,} rows"
    seconds, memory = ("at most 20", "at most 2,000") if name == "validate" else ("at most 2", "")
    return [
        (what, f"{_spread(part['seconds'], 2)} s", seconds),
        (f"{what}: memory", f"{_spread(part['memory_mb'])} MB", memory),
    ]


def _loader_row(one: dict[str, Any]) -> tuple[str, str, str]:
    rates = f"{one['loader']['median']:,.0f} and {one['bare']['median']:,.0f} images/s, n = {one['rounds']}"
    what = f"loader over a bare loop, {one['images']}, {one['workers']} workers"
    return what, f"{_spread(one['ratio'], 3)}: {rates}", "at least 0.9"


def _spread(values: dict[str, float], digits: int = 0) -> str:
    return " ".join([f"{values['median']:,.{digits}f}", f"({values['min']:,.{digits}f}-{values['max']:,.{digits}f})"])


if __name__ == "__main__":
    main()
