"""The one training loop: repeatable, comparable between arms, and reported."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import CPU, TRAIN, are_equal, augmented, create_model, create_trainer, grpo, weights_of

from grpo_rm import trainer as trainer_module
from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import Batches
from grpo_rm.inference import predict
from grpo_rm.losses import cross_entropy_loss
from grpo_rm.validation import Validator


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_learns_a_separable_problem(tmp_path, loss):
    trainer = create_trainer(tmp_path, loss, epochs=15, learning_rate=1e-2)
    before = predict(trainer.model, trainer.validator.val.epoch(0), device=CPU)
    assert np.mean(before.logits.argmax(axis=1) == before.labels) < 0.8
    best = trainer.fit()
    after = predict(best, trainer.validator.val.epoch(0), device=CPU)
    assert np.mean(after.logits.argmax(axis=1) == after.labels) > 0.9
    assert not best.training


def test_equals_a_plain_loop(tmp_path):
    """Bit by bit: fresh gradients at every step, the images of every epoch, training mode whatever it was before."""
    model = create_model().eval()
    trainer = create_trainer(tmp_path, model=model, clip_grad_norm=0.5)
    plain_model = create_model()
    decayed = [p for p in plain_model.parameters() if p.ndim > 1]
    others = [p for p in plain_model.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    factors = iter([1 / 4, 2 / 4, 3 / 4, 1, 0.5 * (1 + math.cos(math.pi / 3)), 0.5 * (1 + math.cos(math.pi * 2 / 3))])
    train = Batches(TRAIN, augmented, channels=1, batch_size=16, seed=0, is_training=True)
    for epoch in (1, 2):
        for images, labels in train.epoch(epoch):
            rate = 3e-3 * next(factors)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            log_probs = torch.log_softmax(plain_model.train()(images)[1], dim=-1)
            (-log_probs[range(16), labels].mean()).backward()
            torch.nn.utils.clip_grad_norm_(plain_model.parameters(), 0.5)
            optimizer.step()
    trainer.fit()
    assert are_equal(weights_of(plain_model), weights_of(model))


def test_same_seed_same_weights_to_the_last_bit(tmp_path):
    def train(name, **options):
        model = create_model(drop_path_rate=0.5)
        return weights_of(create_trainer(tmp_path / name, grpo, model=model, **options).fit())

    reference = train("a", seed=1)
    torch.rand(5)  # what happened before does not matter
    assert are_equal(reference, train("b", seed=1))
    assert are_equal(reference, train("c", seed=1, workers=2))
    assert not are_equal(reference, train("d", seed=2))
    assert not are_equal(reference, train("e", seed=1, order_seed=1))


def test_both_arms_see_the_same_images_in_the_same_order(tmp_path):
    seen = {}
    for name, loss in [("cross_entropy", cross_entropy_loss), ("grpo_rm", grpo)]:
        seen[name] = []

        trainer = create_trainer(tmp_path / name, loss)

        def record(images, targets, batches=seen[name], learn=trainer.learner.learn):
            batches.append((images, targets))
            return learn(images, targets)

        trainer.learner.learn = record
        trainer.fit()
    assert len(seen["cross_entropy"]) == len(seen["grpo_rm"]) == 6
    for left, right in zip(*seen.values(), strict=True):
        assert torch.equal(left[0], right[0])
        assert torch.equal(left[1], right[1])


def test_history_has_a_row_per_epoch(tmp_path):
    trainer = create_trainer(tmp_path, grpo, epochs=3)
    trainer.fit()
    assert [(row["epoch"], row["step"]) for row in trainer.history] == [(1, 3), (2, 6), (3, 9)]
    expected = {"epoch", "step", "learning_rate", "train_loss", "grad_norm", "val_accuracy", "val_nll"}
    expected |= {"reward", "reward_std", "entropy", "old_kl", "frac_reward_zero_std", "max_abs_logit"}
    expected |= {f"rewards/{name}/{what}" for name in ("accuracy", "uniformity") for what in ("mean", "std")}
    assert expected <= set(trainer.history[0])
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in trainer.history[0].values())


def test_validation_metrics_are_those_of_the_validation_images(tmp_path):
    trainer = create_trainer(tmp_path, epochs=1, warmup_epochs=0)
    trainer.fit()
    predictions = predict(trainer.model, trainer.validator.val.epoch(0), device=CPU)
    row = trainer.history[0]
    assert row["val_accuracy"] == np.mean(predictions.logits.argmax(axis=1) == predictions.labels)
    log_probs = torch.log_softmax(torch.from_numpy(predictions.logits).double(), dim=1)
    nll = -log_probs[range(24), predictions.labels].mean().item()
    assert row["val_nll"] == pytest.approx(nll, rel=1e-5)


def test_reports_of_steps_and_epochs(tmp_path):
    steps, epochs = [], []
    options = {"on_step": lambda *report: steps.append(report), "on_epoch": lambda *report: epochs.append(report)}
    trainer = create_trainer(tmp_path, options=options)
    trainer.fit()
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in epochs] == [3, 6]
    assert set(steps[0][1]) == {"train_loss", "grad_norm", "entropy", "max_abs_logit", "learning_rate"}
    for (_, row), history, first in zip(epochs, trainer.history, (0, 3), strict=True):
        assert row == {name: history[name] for name in ("val_accuracy", "val_nll")}
        for name in ("train_loss", "entropy", "grad_norm"):
            mean = np.mean([metrics[name] for _, metrics in steps[first : first + 3]])
            assert history[name] == pytest.approx(mean, rel=1e-5)


def test_long_runs_report_some_steps_only(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_LOGGED_STEPS", 4)
    steps = []
    options = {"on_step": lambda step, metrics: steps.append(step)}  # noqa: ARG005
    create_trainer(tmp_path, epochs=3, options=options).fit()  # 9 steps: every third
    assert steps == [3, 6, 9]


def rig_validation(monkeypatch, results):
    rows = iter([{"val_accuracy": accuracy, "val_nll": nll} for accuracy, nll in results])
    measure = Validator.measure

    def rigged(self, model, *, epoch):
        metrics, predictions = measure(self, model, epoch=epoch)
        return metrics | next(rows), predictions

    monkeypatch.setattr(Validator, "measure", rigged)


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ([(0.5, 1.0), (0.9, 2.0), (0.8, 0.1)], 2),
        ([(0.9, 1.0), (0.5, 0.1), (0.8, 0.1)], 1),
        ([(0.5, 1.0), (0.6, 1.0), (0.7, 1.0)], 3),
        ([(0.9, 1.0), (0.9, 0.8), (0.9, 0.9)], 2),  # ties: the lower NLL
        ([(0.9, 1.0), (0.9, 0.8), (0.9, 0.8)], 2),  # then the earlier
        ([(0.9, 0.8), (0.9, 0.8), (0.1, 0.1)], 1),
    ],
)
def test_the_best_epoch_is_kept(tmp_path, monkeypatch, results, best):
    rig_validation(monkeypatch, results)
    after = []
    trainer = create_trainer(tmp_path, epochs=3)
    trainer.on_epoch = lambda step, row: after.append(weights_of(trainer.model))  # noqa: ARG005
    returned = weights_of(trainer.fit())
    assert trainer.best["epoch"] == best
    assert [are_equal(returned, weights) for weights in after] == [epoch == best for epoch in (1, 2, 3)]
    assert are_equal(weights_of(load_model(tmp_path / f"epoch-{best}")), returned)
    assert are_equal(weights_of(load_model(tmp_path / "last")), after[-1])


def test_progress_prints_a_line_per_epoch(tmp_path: Path, capsys):
    create_trainer(tmp_path, grpo).fit()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "epoch 2/2" in lines[1]
    assert "rewards/accuracy/mean" in lines[1]
    assert "images/s" in lines[1]
