"""A training that is interrupted or killed goes on, and ends as if nothing had happened: to the last bit."""

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import OBJECTIVE, are_equal, create_model, create_trainer, grpo, split_of, weights_of

from grpo_rm import trainer as trainer_module
from grpo_rm.checkpoint import FORMER_STATE, STATE, load_model, remove_state
from grpo_rm.datasets import Batches
from grpo_rm.losses import GrpoRmLoss, cross_entropy_loss
from grpo_rm.trainer import Interrupted

EPOCHS, STEPS = 3, 9


# all that has a state of its own: a moving average, a snapshot, iterations, frozen weights, layers, bfloat16
EVERYTHING = {
    "accumulation": 2,
    "num_iterations": 2,
    "ema_decay": 0.8,
    "freeze_blocks": 1,
    "keep_best": 2,
    "knn_every": 2,
    "layer_decay": 0.7,
    "monitor": "val_nll",
    "optimizer": "nadamw",
    "precision": "bf16",
}


class Training:
    """What a training leaves behind, over as many attempts as it takes."""

    def __init__(self, checkpoints, *, encoder="test_resnet", workers=0, loss=grpo, **recipe):
        self.checkpoints, self.workers, self.recipe = checkpoints, workers, {"epochs": EPOCHS} | recipe
        self.encoder, self.loss = encoder, loss
        self.reports = {}  # by step, the last one counts

    def create(self, *, stop=lambda trainer: False, **options):  # noqa: ARG005
        trainer = create_trainer(
            self.checkpoints,
            self.loss,
            model=create_model(self.encoder, drop_path_rate=0.5),
            workers=self.workers,
            options={"on_step": self.report, "on_epoch": self.report, "should_stop": lambda: stop(trainer), **options},
            **self.recipe,
        )
        return trainer

    def report(self, step, metrics):
        self.reports[(step, *metrics)] = metrics

    def result(self, trainer):
        best = trainer.fit()
        models = [weights_of(model) for model in (best, trainer.model, load_model(self.checkpoints / "last"))]
        return models, trainer.history, self.reports


def assert_same(left, right):
    for mine, reference in zip(left[0], right[0], strict=True):
        assert are_equal(mine, reference)
    assert left[1:] == right[1:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    training = Training(tmp_path_factory.mktemp("uninterrupted"))
    return training.result(training.create())


@pytest.mark.parametrize(("stops", "workers"), [([1], 0), ([3], 0), ([9], 0), ([2, 5, 6], 0), ([3, 4], 2)])
def test_resumed_equals_uninterrupted(tmp_path, uninterrupted, stops, workers):
    """3, 6 and 9 are the last steps of an epoch."""
    training = Training(tmp_path, workers=workers)
    for stop in stops:
        with pytest.raises(Interrupted, match=rf"interrupted at step {stop} of 9; .* keeps it") as interrupted:
            training.create(stop=lambda trainer, stop=stop: trainer.step == stop).fit()
        assert interrupted.value.step == stop
        torch.rand(7)  # what happens in between does not matter
    trainer = training.create()
    assert trainer.step == stop
    assert_same(training.result(trainer), uninterrupted)


@pytest.mark.parametrize(("encoder", "stops"), [("test_vit", [2]), ("test_vit", [4, 12, 14]), ("test_resnet", [8])])
def test_everything_resumes(tmp_path, encoder, stops):
    """With a snapshot renewed every second batch, and remembered images; a batch is two steps."""
    # torch 2.15 gives random gradients of some bfloat16 convolutions over a single pixel on the CPU
    recipe = EVERYTHING if encoder == "test_vit" else EVERYTHING | {"precision": "fp32"}
    options = {"old_policy_steps": 2, "use_reference": True, "memory_size": 24}
    recipe |= {"loss": GrpoRmLoss(replace(OBJECTIVE, neighbor_weight=1.0))}
    reference = Training(tmp_path / "reference", encoder=encoder, **recipe)
    reference = reference.result(reference.create(**options))
    training = Training(tmp_path / "resumed", encoder=encoder, **recipe)
    for stop in stops:
        with pytest.raises(Interrupted, match=f"interrupted at step {stop} of 18"):
            training.create(stop=lambda trainer, stop=stop: trainer.step >= stop, **options).fit()
    assert_same(training.result(training.create(**options)), reference)
    assert {path.name for path in training.checkpoints.glob("epoch-*")} == {
        path.name for path in (tmp_path / "reference").glob("epoch-*")
    }


def test_random_numbers_of_any_library_go_on(tmp_path):
    """A reward of the user's may draw them; that it is checked once more on the first batch changes nothing."""

    def noisy(drawn):
        def reward(group):
            drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
            return torch.zeros(group.outputs.shape)

        rewards = OBJECTIVE.rewards | {"noisy": reward}
        return GrpoRmLoss(replace(OBJECTIVE, rewards=rewards, reward_weights=OBJECTIVE.reward_weights | {"noisy": 0}))

    def draw(checkpoints, *stops):
        drawn = []
        for stop in [*stops, None]:
            checked = len(drawn)
            trainer = create_trainer(checkpoints, noisy(drawn))
            trainer.should_stop = lambda trainer=trainer, stop=stop: trainer.step == stop
            with contextlib.suppress(Interrupted):
                trainer.fit()
            del drawn[checked]
        return drawn

    assert draw(tmp_path / "resumed", 2, 3) == draw(tmp_path / "uninterrupted")


def test_interrupted_validation(tmp_path, uninterrupted, monkeypatch):
    training = Training(tmp_path)
    asked = []
    with pytest.raises(Interrupted):  # after 3 steps and the first of two batches of the validation
        training.create(stop=lambda trainer: asked.append(trainer.step) or len(asked) == 4).fit()
    assert asked == [1, 2, 3, 3]
    trainer = training.create()
    monkeypatch.setattr(trainer.learner, "learn", None)
    with pytest.raises(TypeError):  # no step of the first epoch is left, so the first one is of the second
        trainer.fit()
    assert trainer.epoch == 2
    assert_same(training.result(training.create()), uninterrupted)


def test_long_epochs_are_saved_on_the_way(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0)
    training = Training(tmp_path)

    def crash(step, metrics):
        if step == 5:
            raise ZeroDivisionError
        training.report(step, metrics)

    with pytest.raises(ZeroDivisionError):
        training.create(on_step=crash).fit()
    trainer = training.create()
    assert trainer.step == 4
    assert_same(training.result(trainer), uninterrupted)


def test_a_crash_at_any_write_costs_nothing(tmp_path, monkeypatch):
    """In turn at every file that a training replaces, of the state and of both models."""
    uninterrupted = Training(tmp_path, epochs=2)
    uninterrupted = uninterrupted.result(uninterrupted.create())
    replace, writes = Path.replace, []

    def fail_at(number):
        writes.clear()

        def crash(source, target):
            writes.append(target.name)
            if len(writes) == number:
                raise ZeroDivisionError
            return replace(source, target)

        monkeypatch.setattr(Path, "replace", crash)

    for number in range(1, 100):
        training = Training(tmp_path / str(number), epochs=2)
        fail_at(number)
        try:
            assert_same(training.result(training.create()), uninterrupted)
            break
        except ZeroDivisionError:
            fail_at(0)
            assert_same(training.result(training.create()), uninterrupted)
    assert writes.count(STATE) == 2
    assert number == len(writes) + 1 == 2 + 2 * 2 + 2 * 2 + 1  # state, last and best, whose files are two


def test_batches_that_are_skipped_are_not_decoded():
    decoded = []

    def view(image, rng):  # noqa: ARG001
        decoded.append(image)
        return np.asarray(image)[:, :, None]

    batches = Batches(split_of(10, 0), view, channels=1, batch_size=4)
    whole = list(batches.epoch(1))
    decoded.clear()
    rest = list(batches.epoch(1, start=2))
    assert len(decoded) == 2
    assert len(rest) == 1 and torch.equal(rest[0][0], whole[2][0])
    assert list(batches.epoch(1, start=3)) == []
    assert len(list(batches.epoch(2))) == 3


def interrupt(training):
    with pytest.raises(Interrupted):
        training.create(stop=lambda trainer: trainer.step == 4).fit()
    assert (training.checkpoints / STATE).is_file()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"options": {"fingerprint": {"grpo_rm/rewards.py": "2"}}}, "grpo_rm/rewards.py changed"),
        ({"learning_rate": 1e-3}, "recipe changed"),
        ({"seed": 1}, "seed changed"),
        ({"model": create_model("test_vit")}, "initial weights changed"),
    ],
)
def test_another_training_starts_anew_and_says_why(tmp_path, capsys, changed, reason):
    first = {"options": {"fingerprint": {"grpo_rm/rewards.py": "1"}}}
    with pytest.raises(Interrupted):
        create_trainer(tmp_path, options=first["options"] | {"should_stop": lambda: True}).fit()
    capsys.readouterr()
    trainer = create_trainer(tmp_path, **(first | changed))
    assert trainer.step == 0
    assert capsys.readouterr().out == f"test  starts anew; the state in {tmp_path} is not used: {reason}\n"
    assert not (tmp_path / STATE).exists()
    assert (tmp_path / FORMER_STATE).is_file()  # another setting by mistake does not cost what was trained


def test_a_damaged_state_is_not_used(tmp_path, capsys, uninterrupted):
    training = Training(tmp_path)
    interrupt(training)
    content = (tmp_path / STATE).read_bytes()
    for damaged in (b"", content[:1000], content[:-1000]):
        (tmp_path / STATE).write_bytes(damaged)
        capsys.readouterr()
        trainer = training.create()
        assert "is not used: state.pt cannot be read" in capsys.readouterr().out
    assert_same(training.result(trainer), uninterrupted)


def test_what_is_done_is_not_done_again(tmp_path, uninterrupted):
    """Killed between the last epoch and whatever its caller does with the model."""
    training = Training(tmp_path)
    training.result(training.create())
    trainer = training.create()
    assert trainer.step == STEPS
    assert_same(training.result(trainer), uninterrupted)
    remove_state(tmp_path)
    assert training.create().step == 0


def test_a_loss_that_is_not_finite_leaves_no_state(tmp_path):
    calls = []

    def loss(sites):
        calls.append(1)
        output = cross_entropy_loss(sites)
        output.loss.data *= float("nan") if len(calls) == 5 else 1
        return output

    with pytest.raises(FloatingPointError, match="step 5"):
        create_trainer(tmp_path, loss).fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1", "last"]
    assert create_trainer(tmp_path, loss).step == 0


def test_the_display_says_where_it_goes_on(tmp_path, capsys):
    training = Training(tmp_path)
    interrupt(training)
    capsys.readouterr()
    training.create().fit()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test  resumes at epoch 2, step 4 of 9"
    assert [line.partition("  ")[2][:9] for line in lines[1:]] == ["epoch 2/3", "epoch 3/3"]


def test_the_state_holds_no_code(tmp_path):
    interrupt(Training(tmp_path))
    content = torch.load(tmp_path / STATE, weights_only=True)
    assert content["state"]["learner"]["steps"] == 4
    assert set(json.loads(content["fingerprint"])) >= {"initial weights", "recipe", "seed", "device", "torch"}
