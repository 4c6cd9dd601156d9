"""A training that is cancelled, or killed, goes on with the next run of its stage: for real, as a process group."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml

from grpo_rm.progress import epoch_of
from pipelines.lineage import sha256

pytestmark = pytest.mark.pipeline

COMMAND = ("python", "-m", "pipelines.finetune", "grpo_rm")
CHECKPOINTS, MODEL = "checkpoints/finetune/grpo_rm", "models/finetune/grpo_rm"
CURVE = "reports/training/grpo_rm.csv"


def signal_after(
    workspace, epoch: int, number: signal.Signals, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Signal the whole group when an epoch is done, as a cancelled flow does; return exit code and output.

    Its other processes, such as those that decode images, are gone soon afterwards.
    """
    training = subprocess.Popen(
        COMMAND,
        cwd=workspace.root,
        env=workspace.environment | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert training.stdout is not None
    lines = []
    for line in training.stdout:
        lines.append(line)
        if epoch_of(line) == (epoch, 3):
            break
    workers = psutil.Process(training.pid).children(recursive=True)
    assert len(workers) >= 2, lines
    os.killpg(training.pid, number)
    output, errors = training.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=15)[1] == []
    return training.returncode, "".join(lines) + output, errors


def query(workspace, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(workspace.root / "mlruns/mlflow.db")) as database:
        return database.execute(sql).fetchall()


def series(workspace, run: str, key: str) -> list[int]:
    rows = query(workspace, f"select step from metrics where key = '{key}' and run_uuid = '{run}'")
    return sorted(step for (step,) in rows)


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def is_finished(checkpoints: Path) -> bool:
    """Whether the last and one best model are there, and nothing to go on from."""
    last, best = sorted(files_in(checkpoints), reverse=True)
    return last == "last" and best.startswith("epoch-")


def code_of_the_stage(workspace) -> set[str]:
    """Return what dvc.yaml names, without what comes after the training."""
    deps = yaml.safe_load((workspace.root / "dvc.yaml").read_text())["stages"]["finetune"]["do"]["deps"]
    return {name for name in deps if name.endswith(".py")} - {"pipelines/lineage.py", "pipelines/tables.py"}


@pytest.mark.slow
def test_an_interrupted_training_goes_on(workspace):
    """Interrupted in its second epoch and killed in its third; workers change no weight, so the model is the same."""
    checkpoints = workspace.root / CHECKPOINTS
    names = (f"{MODEL}/model.safetensors", f"{MODEL}/config.json", CURVE)
    reference = {name: (workspace.root / name).read_bytes() for name in names}
    provenance = json.loads((workspace.root / MODEL / "training.json").read_text())
    assert is_finished(checkpoints)
    workspace.set(loader__workers=2)
    began = int(time.time() * 1000)
    runs = f"select run_uuid, status from runs where name = 'finetune@grpo_rm' and start_time > {began}"

    code, _, errors = signal_after(workspace, 1, signal.SIGTERM)
    assert code == 143, errors
    step, message = errors.removeprefix("interrupted at step ").split(" ", maxsplit=1)
    assert 16 <= int(step) < 48
    assert message == f"of 48; {CHECKPOINTS} keeps it: the next run of this stage goes on from there\n"
    assert {"run.json", "state.pt"} <= files_in(checkpoints)
    fingerprint = json.loads((checkpoints / "run.json").read_text())["fingerprint"]
    assert code_of_the_stage(workspace) <= set(fingerprint)
    ((run, status),) = query(workspace, runs)
    assert status == "KILLED"

    code, output, errors = signal_after(workspace, 2, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    assert f"finetune@grpo_rm  resumes at epoch 2, step {step} of 48\n" in output

    assert "  resumes at epoch " in workspace.succeed(*COMMAND)
    assert {name: (workspace.root / name).read_bytes() for name in names} == reference
    assert (workspace.root / MODEL / "training.json").read_text() == json.dumps(provenance, indent=2) + "\n"
    assert is_finished(checkpoints)
    assert query(workspace, runs) == [(run, "FINISHED")]
    steps = query(workspace, f"select distinct step from metrics where key = 'train_loss' and run_uuid = '{run}'")
    assert sorted(step for (step,) in steps) == list(range(1, 49))
    ((resumed,),) = query(workspace, f"select value from tags where key = 'resumed_at_step' and run_uuid = '{run}'")
    assert int(step) <= int(resumed) < 48


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(workspace, tmp_path):
    """While it starts, trains, validates or writes: `dvc repro` again, and the weights are those of a training that was
    left alone. Every other time the training alone is killed, after an epoch, however slow the machine is.
    """
    repro = ("dvc", "repro", "--force", "--single-item", "finetune@grpo_rm")
    reference = (workspace.root / MODEL / "model.safetensors").read_bytes()
    began = time.monotonic()
    workspace.succeed(*repro)
    duration = time.monotonic() - began
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    resumed = 0
    for kill in range(10):
        log = tmp_path / f"{kill}.log"
        with log.open("w") as output:
            training = subprocess.Popen(
                repro, cwd=workspace.root, env=workspace.environment, stdout=output, start_new_session=True
            )
        while kill % 2 and training.poll() is None and not any(map(epoch_of, log.read_text().splitlines())):
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(
                timeout=moments.uniform(0, 0.1) * duration if kill % 2 else moments.uniform(0.3, 1.1) * duration
            )
        assert training.returncode in (None, 0), f"seed {seed}, kill {kill}"
        if training.returncode is None:
            children = psutil.Process(training.pid).children(recursive=True)
            for process in children if kill % 2 else [*children, training]:  # dvc itself may be killed while it writes
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            training.wait(timeout=60)
        resumed += "  resumes at epoch " in log.read_text()
    workspace.succeed(*repro)
    assert (workspace.root / MODEL / "model.safetensors").read_bytes() == reference, f"seed {seed}"
    assert resumed > 0, f"seed {seed}"


@pytest.mark.slow
def test_several_processes_are_one_training(workspace):
    """Interrupted and killed too; one run, one line per epoch, and the weights of an undisturbed training."""
    two = {"GRPO_RM_PROCESSES": "2"}
    weights = workspace.root / MODEL / "model.safetensors"
    output = workspace.succeed(*COMMAND, **two)
    assert [epoch_of(line) for line in output.splitlines() if epoch_of(line)] == [(1, 3), (2, 3), (3, 3)]
    assert output.count("best epoch") == 1
    undisturbed = weights.read_bytes()

    began = int(time.time() * 1000)
    started = time.monotonic()
    code, _, errors = signal_after(workspace, 1, signal.SIGTERM, two)
    assert code == 143, errors
    assert errors.splitlines()[-1].startswith("interrupted at step ")
    assert errors.count("interrupted") == 1
    code, output, errors = signal_after(workspace, 2, signal.SIGKILL, two)
    assert code == -signal.SIGKILL, errors
    assert "  resumes at epoch 2, step " in output
    assert "  resumes at epoch " in workspace.succeed(*COMMAND, **two)
    assert time.monotonic() - started < 300
    assert weights.read_bytes() == undisturbed
    ((run, status),) = query(
        workspace,
        f"select run_uuid, status from runs where name = 'finetune@grpo_rm' and start_time > {began}",
    )
    assert status == "FINISHED"
    assert series(workspace, run, "val_accuracy") == [16, 32, 48]


@pytest.mark.slow
def test_a_reward_that_changed_starts_the_training_anew(workspace):
    reward = workspace.root / "data/rewards/example.py"
    workspace.set(objective__candidates=5)
    text = (workspace.root / "params.yaml").read_text()
    own = "    accuracy: 1.0\n    data.rewards.example:ordinal_reward: 0.5\n"
    (workspace.root / "params.yaml").write_text(text.replace("    accuracy: 1.0\n", own))
    workspace.set(loader__workers=2)
    signal_after(workspace, 1, signal.SIGTERM)
    reward.write_text(reward.read_text() + "\n# changed\n")
    output = workspace.succeed(*COMMAND)
    assert "starts anew; the state in checkpoints/finetune/grpo_rm is not used: " in output
    assert "data.rewards.example:ordinal_reward" in output
    trained = json.loads((workspace.root / MODEL / "training.json").read_text())
    assert trained["reward_files"] == {"data.rewards.example:ordinal_reward": sha256(reward)}
