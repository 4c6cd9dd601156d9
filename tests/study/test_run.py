"""The study, for real, with a small task in a copy of the code: interrupted, gone on, run again, and compared."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from study.results import read_table
from study.workspace import ROOT

EPOCHS = 3
DRIVER = f"""
from dataclasses import replace
import numpy as np
from pipelines.stage import run_stage
from study import protocol, tasks
from study.images import write_splits

def write_small(folder, shared):
    generator = np.random.default_rng(0)
    def part(count):
        labels = np.arange(count) % 2
        images = generator.integers(0, 100, (count, 8, 8), dtype=np.uint8)
        images[labels == 1, :, :4] += 60
        return images, labels
    write_splits(folder, {{"train": part(128), "val": part(40), "test": part(40)}}, ["0", "1"])

finetune = {{"epochs": {EPOCHS}, "batch_size": 32}}
params = {{"data": tasks.NPZ, "encoder": {{"image_size": 16}}, "finetune": finetune, "tracking": tasks.TRACKING}}
small = replace(tasks.TASKS["digits"], write=write_small, params=params, shifted="shifted", rates=(0.001,))
tasks.STUDIED, tasks.NAMES = (small,), ("digits", "shifted")
protocol.TUNING_SEEDS, protocol.FINAL_SEEDS = (100,), (0,)

from study.arms import ARMS
from study.comparisons import update_comparisons
from study.results import collect
from study.worker import work

def main():
    for _ in range(2):
        work(small, [ARMS["cross_entropy"], ARMS["neighbors"]], has_final=True)
    print(len(collect()), "rows", flush=True)
    update_comparisons()

from pathlib import Path
import os, signal, time
import mlflow, study.trial

log = Path("study/work/digits/log.txt")
child = os.fork()  # what is slow to import is imported once
if child:
    while not (log.is_file() and "epoch 1/" in log.read_text()):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
run_stage(main)
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The copy, and what two processes printed: one that was interrupted, and one that went on."""
    root = tmp_path_factory.mktemp("study") / "copy"
    for package in ("grpo_rm", "pipelines", "study"):
        ignored = shutil.ignore_patterns("work", "*.parquet")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=root,
        env=environment | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, done


def test_an_interrupted_trial_goes_on(studied):
    root, done = studied
    assert "ended with 130" in done.stdout
    assert re.search(r"interrupted at step \d+ of 12", done.stderr)
    log = (root / "study/work/digits/log.txt").read_text()
    assert re.search(r"resumes at epoch [23], step \d+ of 12", log)
    assert log.count(f"epoch 1/{EPOCHS}") == 4  # none began twice


def test_each_trial_runs_once_and_is_told_of(studied):
    _, done = studied
    lines = [line for line in done.stdout.splitlines() if line.startswith("digits")]
    told = [re.sub(r"  accuracy.*  (\d of 4), .*", r"  \1", line) for line in lines]
    assert told == [
        "digits     tune   cross_entropy  lr 0.001  seed 100  1 of 4",
        "digits     tune   neighbors      lr 0.001  seed 100  2 of 4",
        "digits     final  cross_entropy  lr 0.001  seed 0  3 of 4",
        "digits     final  neighbors      lr 0.001  seed 0  4 of 4",
    ]
    assert "6 rows" in done.stdout  # two are of the final models on shifted images


def rows_of(root, task):
    rows = [row for row in read_table(root / "study/results.parquet") if row["task"] == task]
    return {(row["stage"], row["arm"]): row for row in rows}


def test_the_table_has_a_row_per_trial(studied):
    rows = rows_of(studied[0], "digits")
    assert len(rows) == 4
    tuned, final = rows["tune", "neighbors"], rows["final", "neighbors"]
    assert not any(name.startswith("test/") for name in tuned)
    assert {"val/accuracy", "test/accuracy", "test/knn_top1_k20_t0.07", "test/ece", "run_id"} <= set(final)
    assert final["steps"] == 12
    assert final["curve/step"] == [4, 8, 12]
    assert json.loads(final["objective"])["rewards"] == {"accuracy": 1.0, "uniformity": 1.0}
    assert "objective" not in rows["final", "cross_entropy"]


def test_the_final_models_on_shifted_images_are_a_task_of_their_own(studied):
    clean, shifted = (rows_of(studied[0], task) for task in ("digits", "shifted"))
    assert set(shifted) == {("final", "cross_entropy"), ("final", "neighbors")}
    for name, row in shifted.items():
        assert (row["key"], row["run_id"]) == (clean[name]["key"], clean[name]["run_id"])
        assert row["test/nll"] != clean[name]["test/nll"]


@pytest.mark.parametrize("task", ["digits", "shifted"])
def test_answers_are_those_of_the_final_trials_and_are_compared(studied, task):
    root, _ = studied
    finals = {arm: row for (stage, arm), row in rows_of(root, task).items() if stage == "final"}
    kept = {path.stem for path in (root / f"study/work/{task}/answers").glob("*.npz")}
    assert kept == {row["key"] for row in finals.values()}
    compared = [row for row in read_table(root / "study/comparisons.parquet") if row["task"] == task]
    assert compared
    for row in compared:
        metric = f"test/{row['metric']}"
        difference = finals["neighbors"][metric] - finals["cross_entropy"][metric]
        assert row["difference"] == pytest.approx(difference, abs=1e-6), metric


def test_each_trial_has_one_finished_run_with_what_was_measured(studied):
    root, _ = studied
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as store:
        query = (
            "select experiments.name from experiments join runs using (experiment_id) where runs.status = 'FINISHED'"
        )
        assert store.execute(query).fetchall() == [("study",)] * 4
        measured = "select count(distinct run_uuid) from metrics where key = ?"
        counts = [store.execute(measured, (key,)).fetchone()[0] for key in ("val/accuracy", "test/accuracy")]
        assert counts == [4, 2]


def test_nothing_large_stays(studied):
    root, _ = studied
    assert not list(Path(root, "study/work").rglob("*.safetensors"))
