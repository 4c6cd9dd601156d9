"""Training beside a bare loop, its objective alone, training beside other trainers, and on a GPU.

    python -m benchmarks.training                writes benchmarks/results/training-<machine>.json and its table
    python -m benchmarks.training --only loop    one part, prints only

What cannot be measured here is named with the reason.
"""

import argparse
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, loop, objective, peers
from benchmarks.pipeline import ROOT, describe_machine
from benchmarks.training_table import format_table, machine_name, with_table

RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs/benchmarks.md"
PACKAGES = ("torch", "timm", "accelerate")


def main() -> None:
    """Measure, write the result and the table, print the table."""
    parts = {"loop": measure_loop, "objective": objective.measure, "peers": peers.measure, "gpu": gpu.measure}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description="Measure the training.")
    parser.add_argument("--only", choices=parts, help="one part, without a file")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": describe_machine() | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "commit": commit(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            result[name] = measure()
    table = format_table(result)
    if not options.only:
        write(result, table)
    print(table)


def measure_loop() -> list[dict[str, Any]]:
    """Return the trainer beside a bare loop and GRPO-RM beside cross-entropy, on the CPU and on a GPU."""
    with_gpu = [loop.GPU_SUBJECT] if torch.cuda.is_available() else []
    return [loop.measure(subject) for subject in [loop.CPU_SUBJECT, *with_gpu]]


def write(result: dict[str, Any], table: str) -> None:
    """Write the raw numbers, and the table into docs/benchmarks.md."""
    name = machine_name(result["machine"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"training-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if DOCS.is_file():
        DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8"), name, table), encoding="utf-8")


def commit() -> str:
    """Return the commit, or that there is none: a copy of the files may have been brought to a GPU without it."""
    if not Path(ROOT / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
