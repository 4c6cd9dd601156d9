"""Lines for people that a scheduler reads too; speed and time left."""

import time

import pytest

from grpo_rm.progress import Progress, epoch_of

METRICS = {"train_loss": 0.5, "val_accuracy": 0.9, "val_nll": 0.3}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_line_of_an_epoch_is_read_back(capsys):
    progress = Progress("finetune@grpo_rm", epochs=12, images_per_epoch=100)
    progress.advance(100)
    progress.end_epoch(3, METRICS)
    assert epoch_of(capsys.readouterr().out) == (3, 12)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "epoch",
        "finetune@grpo_rm: best epoch 3, val_accuracy 0.9 -> models",
        "Running stage 'finetune@grpo_rm':",
    ],
)
def test_other_lines_end_no_epoch(line):
    assert epoch_of(line) is None


def test_where_it_resumes_ends_no_epoch(capsys):
    Progress("test", epochs=10, images_per_epoch=400).resume(epoch=3, step=120, steps=400)
    line = capsys.readouterr().out
    assert line == "test  resumes at epoch 3, step 120 of 400\n"
    assert epoch_of(line) is None


def test_speed_counts_what_this_process_did(clock, capsys):
    """250 of 400 images are done; it does 50 in 10 s, so the 100 of the last epoch take 20 s."""
    progress = Progress("test", epochs=4, images_per_epoch=100)
    progress.resume(epoch=3, step=25, steps=40)
    clock[0] += 10
    progress.advance(50)
    progress.end_epoch(3, METRICS)
    assert capsys.readouterr().out.endswith("  5 images/s  0:00:20 left\n")


def test_an_epoch_without_an_image_left_has_no_speed(capsys):
    progress = Progress("test", epochs=4, images_per_epoch=100)
    progress.resume(epoch=3, step=30, steps=40)
    progress.end_epoch(3, METRICS)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.endswith("val_nll 0.3000")
    assert epoch_of(line + "\n") == (3, 4)
