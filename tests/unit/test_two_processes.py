"""Two processes, for real: the trajectory of one, one that writes, one error when one dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_same_trajectory import assert_close
from toy_training import TRAIN, batches_of
from two_processes import PLAIN, RICH, create, create_dense, save

from grpo_rm.checkpoint import STATE

HERE = Path(__file__).parent


def torchrun(scenario, folder):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, str(HERE / "two_processes.py"), scenario, str(folder)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def load(folder):
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    finished = torchrun("same", folder)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


@pytest.mark.parametrize(("name", "recipe"), [("plain", PLAIN), ("rich", RICH)])
def test_two_processes_give_the_trajectory_of_one(tmp_path, done, name, recipe):
    folder, _ = done
    trainer = create(tmp_path, **recipe)
    trainer.fit()
    save(trainer, tmp_path)
    assert_close(load(folder / name), load(tmp_path))
    assert {path.name for path in (folder / name).iterdir()} == {path.name for path in tmp_path.iterdir()}


def test_two_processes_give_the_trajectory_of_one_in_a_dense_task(tmp_path, done):
    folder, _ = done
    trainer = create_dense(tmp_path)
    trainer.fit()
    save(trainer, tmp_path)
    assert_close(load(folder / "dense"), load(tmp_path))


def test_one_process_reports(done):
    _, output = done
    assert output.count("test  epoch 1/2") == 5  # five trainings


def test_two_processes_resume(done):
    """With dropout, whose random numbers each process has for itself; one alone was told to stop."""
    folder, output = done
    assert output.count("test  resumes at epoch") == 2
    whole, resumed = load(folder / "whole"), load(folder / "resumed")
    assert all(torch.equal(value, resumed[0][name]) for name, value in whole[0].items())
    assert whole[1] == resumed[1]


def test_a_process_that_dies_ends_the_run_with_its_error(tmp_path):
    finished = torchrun("dies", tmp_path)
    assert finished.returncode == 1
    assert "ZeroDivisionError: division by zero" in finished.stderr
    assert (tmp_path / "dies" / STATE).is_file()  # of the first epoch: the next run goes on there
    assert {path.name for path in (tmp_path / "dies").iterdir()} == {STATE, "last", "epoch-1"}


@pytest.mark.slow
def test_all_processes_stop_where_the_loss_is_not_finite(tmp_path):
    finished = torchrun("diverges", tmp_path)
    assert finished.returncode == 1
    assert "FloatingPointError: training stopped at step" in finished.stderr
    assert not (tmp_path / "diverges" / STATE).exists()


def test_fewer_images_than_processes():
    with pytest.raises(ValueError, match="48 images for 49 processes, expected one for each: use fewer"):
        batches_of(TRAIN, processes=49)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="batch_size is 16 with 48 images and 3 processes, expected a multiple of 3"):
        batches_of(TRAIN, is_training=True, processes=3)
