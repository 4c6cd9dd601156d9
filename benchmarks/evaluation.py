"""Evaluation: four models; k-NN beside the bare matrix product and top-k, and its memory; retrieval.

    python -m benchmarks.evaluation               writes benchmarks/results/evaluation-<machine>.json, prints its table
    python -m benchmarks.evaluation --only knn    one part, prints only

The embeddings of k-NN and retrieval are noise: their time hardly depends on what they are.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import four_models, knn
from benchmarks.data import summarize
from benchmarks.pipeline import ROOT, describe_machine
from benchmarks.training import commit
from benchmarks.training_table import machine_name
from grpo_rm.evaluation.retrieval import retrieve

RESULTS = ROOT / "benchmarks/results"
ROUNDS, MODEL_ROUNDS = 5, 3
MODEL_TRAIN_IMAGES = (10_000, 40_000)


def main() -> None:
    """Measure, write the result, print the table."""
    parts = {"models": measure_models, "knn": measure_knn, "retrieval": measure_retrieval}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description="Measure the evaluation.")
    parser.add_argument("--only", choices=parts, help="one part, without a file")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "commit": commit()}
    for name, measure in parts.items():
        if options.only in (None, name):
            result[name] = measure()
    if not options.only:
        path = RESULTS / f"evaluation-{machine_name(result['machine'])}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_table(result))


def measure_models() -> dict[str, Any]:
    """Return seconds to evaluate four models, with those of each part."""
    sizes = {
        str(size): summarize(four_models.evaluate_models(size, rounds=MODEL_ROUNDS)) for size in MODEL_TRAIN_IMAGES
    }
    return {"threads": torch.get_num_threads(), "train_images": sizes}


def measure_knn() -> dict[str, Any]:
    """Return seconds of our k-NN and of the bare product and top-k, in turn, their ratio, and the most memory."""
    train, labels, test = knn.make_inputs()
    points, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    rounds = []
    for _ in range(ROUNDS):
        bare = seconds_of(lambda: knn.run_bare(points, queries))
        ours = seconds_of(lambda: knn.run_ours(train, labels, test))
        rounds.append({"bare_seconds": bare, "seconds": ours, "ratio": ours / bare})
    return {"threads": torch.get_num_threads(), "memory_mb": knn_memory(), **summarize(rounds)}


def measure_retrieval() -> dict[str, Any]:
    """Return seconds to rank as many images as there are in test for each of them."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(knn.NUM_TEST, knn.DIMENSIONS)).astype(np.float32)
    labels = rng.integers(0, knn.NUM_CLASSES, knn.NUM_TEST)
    rounds = [{"seconds": seconds_of(lambda: retrieve(embeddings, labels))} for _ in range(ROUNDS)]
    return {"threads": torch.get_num_threads(), **summarize(rounds)}


def knn_memory() -> float:
    """Return the most MB that a process had which ran our k-NN, interpreter and libraries included."""
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.knn"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(answer.stdout)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def format_table(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    machine, rows = result["machine"], []
    if "models" in result:
        for size, part in result["models"]["train_images"].items():
            test, models = four_models.SIZES["test"], four_models.NUM_MODELS
            what = f"evaluating {models} models on {test:,} images of 32 x 32, {int(size):,} training images"
            rows.append((what, f"{_spread(part['seconds'])} s, {result['models']['threads']} threads", "at most 60"))
            names = ("predict", *(f"measure/{name}" for name in four_models.PARTS), "compare")
            of_it = ", ".join(f"{name.rpartition('/')[2]} {part[name]['median']:.1f}" for name in names)
            rows.append(("of it", f"{of_it} s", ""))
    if "knn" in result:
        part = result["knn"]
        pair = f"{part['seconds']['median']:.2f} and {part['bare_seconds']['median']:.2f} s"
        measured = f"{_spread(part['ratio'])}: {pair}, {part['threads']} threads"
        what = f"k-NN of {knn.NUM_TRAIN:,} x {knn.DIMENSIONS} against {knn.NUM_TEST:,}"
        rows.append((f"{what}, over the bare product and top-k", measured, "at most 1.2"))
        rows.append(("the same, memory of its process", f"{part['memory_mb']:,.0f} MB", "at most 1,000"))
    if "retrieval" in result:
        part = result["retrieval"]
        measured = f"{_spread(part['seconds'])} s, {part['threads']} threads"
        rows.append((f"retrieval among {knn.NUM_TEST:,} x {knn.DIMENSIONS}", measured, ""))
    head = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, commit {result['commit']}"
    lines = [f"| {what} | {measured} | {goal} |" for what, measured, goal in rows]
    return "\n".join([head, "", "| what | measured | goal |", "| --- | --- | --- |", *lines])


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


if __name__ == "__main__":
    main()
