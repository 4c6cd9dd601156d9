"""The one training loop: repeatable, comparable between arms, and quick to stop when it goes wrong."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_rm import trainer as trainer_module
from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import Batches, Split
from grpo_rm.inference import predict
from grpo_rm.losses import cross_entropy_loss, grpo_rm_loss
from grpo_rm.model import Model, ModelConfig
from grpo_rm.objective import LossOutput
from grpo_rm.task import classification_sites
from grpo_rm.trainer import Recipe, Trainer, best_epoch
from grpo_rm.transforms import evaluation_view, training_view

CPU = torch.device("cpu")


def grpo(log_probs, targets, valid):
    return grpo_rm_loss(log_probs, targets, valid, reward_weights={"accuracy": 1.0, "uniformity": 1.0}, eps=0.01)


def split_of(count, seed):
    """Noisy gray images: of class 1 the right half is brighter."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    files = []
    for label in labels:
        pixels = rng.integers(0, 120, (16, 16))
        pixels[:, 8 * label : 8 * label + 8] += 100
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return Split([str(i) for i in range(count)], files, labels.astype(np.int64))


TRAIN, VAL = split_of(48, 1), split_of(24, 2)


def augmented(image, rng):
    return training_view(image, size=16, min_crop=0.7, flip=False, interpolation="bilinear", rng=rng)


def plain(image, rng):  # noqa: ARG001
    return evaluation_view(image, size=16, crop_pct=1.0, interpolation="bilinear")


def create_model(encoder="test_resnet", **encoder_args):
    torch.manual_seed(0)
    tiny = {"channels": [8, 8, 8, 8], "stem_width": 8} if encoder == "test_resnet" else {"depth": 1}
    config = ModelConfig(encoder, 1, 16, 1.0, "bilinear", [0.4], [0.25], ["left", "right"], tiny | encoder_args)
    return Model(config)


def create_trainer(
    checkpoints, loss=cross_entropy_loss, *, model=None, seed=0, order_seed=0, workers=0, options=None, **recipe
):
    """A trainer of 3 steps an epoch."""
    defaults = {
        "epochs": 2,
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 1,
        "clip_grad_norm": 1.0,
        "freeze_encoder": False,
    }
    train = Batches(TRAIN, augmented, channels=1, batch_size=16, seed=order_seed, is_training=True, workers=workers)
    return Trainer(
        model or create_model(),
        loss,
        train,
        Batches(VAL, plain, channels=1, batch_size=16),
        Recipe(**(defaults | recipe)),
        seed=seed,
        device=CPU,
        checkpoints=checkpoints,
        title="test",
        **(options or {}),
    )


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def are_equal(left, right):
    return all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_learns_a_separable_problem(tmp_path, loss):
    trainer = create_trainer(tmp_path, loss, epochs=15, learning_rate=1e-2)
    before = predict(trainer.model, trainer.val.epoch(0), device=CPU)
    assert np.mean(before.logits.argmax(axis=1) == before.labels) < 0.8
    best = trainer.fit()
    after = predict(best, trainer.val.epoch(0), device=CPU)
    assert np.mean(after.logits.argmax(axis=1) == after.labels) > 0.9
    assert not best.training


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

        def record(model, images, labels, batches=seen[name]):
            batches.append((images, labels))
            return classification_sites(model, images, labels)

        create_trainer(tmp_path / name, loss, options={"sites_of": record}).fit()
    assert len(seen["cross_entropy"]) == len(seen["grpo_rm"]) == 6
    for left, right in zip(*seen.values(), strict=True):
        assert torch.equal(left[0], right[0])
        assert torch.equal(left[1], right[1])


def test_history_has_a_row_per_epoch(tmp_path):
    trainer = create_trainer(tmp_path, grpo, epochs=3)
    trainer.fit()
    assert [(row["epoch"], row["step"]) for row in trainer.history] == [(1, 3), (2, 6), (3, 9)]
    expected = {"epoch", "step", "learning_rate", "train_loss", "grad_norm", "val_accuracy", "val_nll"}
    expected |= {"reward", "reward_std", "entropy", "old_kl", "frac_reward_zero_std", "clip_ratio/region_mean"}
    expected |= {f"rewards/{name}/{what}" for name in ("accuracy", "uniformity") for what in ("mean", "std")}
    assert expected <= set(trainer.history[0])
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in trainer.history[0].values())


def test_validation_metrics_are_those_of_the_validation_images(tmp_path):
    trainer = create_trainer(tmp_path, epochs=1, warmup_epochs=0)
    trainer.fit()
    predictions = predict(trainer.model, trainer.val.epoch(0), device=CPU)
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
    assert set(steps[0][1]) == {"train_loss", "grad_norm", "entropy", "learning_rate"}
    for (_, row), history, first in zip(epochs, trainer.history, (0, 3), strict=True):
        assert row | {"epoch": history["epoch"], "step": history["step"]} == history
        for name in ("train_loss", "entropy", "grad_norm"):
            mean = np.mean([metrics[name] for _, metrics in steps[first : first + 3]])
            assert row[name] == pytest.approx(mean, rel=1e-5)


def test_long_runs_report_some_steps_only(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_LOGGED_STEPS", 4)
    steps = []
    options = {"on_step": lambda step, metrics: steps.append(step)}  # noqa: ARG005
    create_trainer(tmp_path, epochs=3, options=options).fit()  # 9 steps: every third
    assert steps == [3, 6, 9]


@pytest.mark.parametrize(
    ("recipe", "factors"),
    [
        ({"warmup_epochs": 1}, [1 / 4, 2 / 4, 3 / 4, 1, 3 / 4, 1 / 4]),
        ({"warmup_epochs": 0}, [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]),
        ({"warmup_epochs": 0.7}, [1 / 3, 2 / 3, *[(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]]),
        ({"warmup_epochs": 0.9, "epochs": 1}, [1 / 3, 2 / 3, 1]),  # .9 of 3 steps is rounded to all of them
    ],
)
def test_learning_rate_warms_up_and_falls_like_a_cosine(tmp_path, recipe, factors):
    rates = []
    options = {"on_step": lambda step, metrics: rates.append(metrics["learning_rate"])}  # noqa: ARG005
    trainer = create_trainer(tmp_path, learning_rate=1e-3, options=options, **recipe)
    applied = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: applied.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.fit()
    assert rates == pytest.approx([1e-3 * factor for factor in factors])
    assert applied == [[rate, rate] for rate in rates]
    assert trainer.schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    assert trainer.history[0]["learning_rate"] == rates[2]


def test_norms_and_biases_do_not_decay(tmp_path):
    model = create_model("test_vit")
    trainer = create_trainer(tmp_path, model=model, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups
    }
    assert set(groups) == {0.0, 0.3}
    assert groups[0.0] | groups[0.3] == set(names.values())
    assert not groups[0.0] & groups[0.3]
    assert {"head.bias", "encoder.norm.weight", "encoder.pos_embed", "encoder.patch_embed.proj.bias"} <= groups[0.0]
    assert {"head.weight", "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"} <= groups[0.3]
    assert all(
        "norm" in name or name.endswith("bias") or "encoder.pos" in name or "token" in name for name in groups[0.0]
    )


def test_weight_decay_is_decoupled_from_the_gradient(tmp_path):
    """Without a gradient AdamW multiplies each weight by 1 - lr * decay, and leaves the biases alone."""
    model = create_model()
    before = weights_of(model)

    def zero(log_probs, targets, valid):  # noqa: ARG001
        return LossOutput(0 * log_probs.sum(), {})

    create_trainer(tmp_path, zero, model=model, epochs=1, warmup_epochs=0, learning_rate=0.1, weight_decay=0.5).fit()
    factor = math.prod(1 - 0.1 * (1 + math.cos(math.pi * step / 3)) / 2 * 0.5 for step in range(3))
    torch.testing.assert_close(model.head.weight.detach(), factor * before["head.weight"])
    assert torch.equal(model.head.bias, before["head.bias"])


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_a_frozen_encoder_does_not_change(tmp_path, loss):
    model = create_model(drop_path_rate=0.9)
    before = weights_of(model)
    trainer = create_trainer(tmp_path, loss, model=model, freeze_encoder=True, learning_rate=1e-2)
    assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == 8 * 2 + 2
    after = weights_of(trainer.fit())
    assert are_equal(
        {name: value for name, value in before.items() if name.startswith("encoder.")}, after
    )  # running statistics of batch normalization too
    assert any("running_mean" in name for name in after)
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(before["head.bias"], after["head.bias"])
    assert not model.encoder.training or model.training


def test_an_encoder_that_was_frozen_can_be_trained_again(tmp_path):
    model = create_model()
    create_trainer(tmp_path / "frozen", model=model, freeze_encoder=True, epochs=1, warmup_epochs=0).fit()
    before = weights_of(model)
    create_trainer(tmp_path / "free", model=model).fit()
    assert not torch.equal(before["encoder.conv1.0.weight"], model.state_dict()["encoder.conv1.0.weight"])
    assert not torch.equal(before["encoder.bn1.running_mean"], model.state_dict()["encoder.bn1.running_mean"])


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_the_gradient_is_clipped_to_its_norm(tmp_path, limit):
    applied, reported = [], []
    options = {"on_step": lambda step, metrics: reported.append(metrics["grad_norm"])}  # noqa: ARG005
    trainer = create_trainer(tmp_path, clip_grad_norm=limit, options=options)

    def measure(*_):
        applied.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item())

    trainer.optimizer.register_step_pre_hook(measure)
    trainer.fit()
    assert min(reported) > 1e-3  # what is reported is the norm before
    assert applied == pytest.approx([min(norm, limit) for norm in reported], rel=1e-3)


def rig_validation(monkeypatch, results):
    rows = iter([{"val_accuracy": accuracy, "val_nll": nll} for accuracy, nll in results])
    monkeypatch.setattr(Trainer, "_validate", lambda self: next(rows))  # noqa: ARG005


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
    assert best_epoch(trainer.history)["epoch"] == best
    assert [are_equal(returned, weights) for weights in after] == [epoch == best for epoch in (1, 2, 3)]
    assert are_equal(weights_of(load_model(tmp_path / "best")), returned)
    assert are_equal(weights_of(load_model(tmp_path / "last")), after[-1])


def failing_at(call, how):
    """Cross-entropy until the call-th step, then a loss (or only its gradient) that is not finite."""
    calls = []

    def loss(log_probs, targets, valid):
        calls.append(1)
        output = cross_entropy_loss(log_probs, targets, valid)
        if len(calls) < call:
            return output
        if how == "gradient":  # sqrt has an infinite slope at 0
            return LossOutput(output.loss + (log_probs - log_probs.detach()).sum().sqrt(), output.stats)
        return LossOutput(output.loss * float(how), output.stats)

    return loss


@pytest.mark.parametrize(
    ("how", "said"), [("nan", "the loss is nan"), ("inf", "the loss is inf"), ("gradient", "gradient (nan|inf)")]
)
def test_a_loss_that_is_not_finite_stops_at_once(tmp_path, how, said):
    trainer = create_trainer(tmp_path, failing_at(5, how), epochs=3)
    steps, after = [], []
    trainer.on_epoch = lambda step, row: after.append(weights_of(trainer.model))  # noqa: ARG005
    trainer.on_step = lambda step, metrics: steps.append(  # noqa: ARG005
        {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    )
    message = (
        rf"stopped at step 5 \(epoch 2\): .*{said}.*; the model of epoch 1 is kept in .*last\. Lower learning_rate"
    )
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit()
    assert len(steps) == 4
    assert are_equal(steps[-1], dict(trainer.model.named_parameters()))  # the step was not taken
    assert len(after) == 1
    assert are_equal(weights_of(load_model(tmp_path / "last")), after[0])
    assert are_equal(weights_of(load_model(tmp_path / "best")), after[0])


def test_a_failure_in_the_first_epoch_says_so(tmp_path):
    trainer = create_trainer(tmp_path, failing_at(1, "nan"))
    with pytest.raises(FloatingPointError, match=r"step 1 \(epoch 1\): .*; no epoch was finished yet\."):
        trainer.fit()
    assert list(tmp_path.iterdir()) == []


def test_a_validation_that_is_not_finite_stops(tmp_path):
    """Damaged statistics of batch normalization: training does not use them, evaluation does."""
    trainer = create_trainer(tmp_path)

    def damage(step, metrics):  # noqa: ARG001
        if step == 6:
            trainer.model.encoder.bn1.running_var.fill_(float("nan"))

    trainer.on_step = damage
    with pytest.raises(
        FloatingPointError, match=r"step 6 \(epoch 2\): the validation loss is nan; the model of epoch 1"
    ):
        trainer.fit()
    assert load_model(tmp_path / "last").encoder.bn1.running_var.isfinite().all()
    assert len(trainer.history) == 1


@pytest.mark.parametrize("is_training", [True, False])
def test_predict_uses_evaluation_mode_and_restores_the_mode(is_training):
    model = create_model(drop_path_rate=0.9).train(is_training)
    before = weights_of(model)
    batches = Batches(VAL, plain, channels=1, batch_size=5)
    first, second = (predict(model, batches.epoch(0), device=CPU) for _ in range(2))
    assert model.training is is_training
    assert are_equal(before, weights_of(model))
    assert np.array_equal(first.logits, second.logits)
    assert first.embeddings.shape == (24, 8)
    assert first.logits.shape == (24, 2)
    assert first.embeddings.dtype == first.logits.dtype == np.float32
    assert first.labels.tolist() == VAL.labels.tolist()
    whole = predict(model, Batches(VAL, plain, channels=1, batch_size=24).epoch(0), device=CPU)
    np.testing.assert_allclose(first.logits, whole.logits, atol=1e-6)


def test_progress_prints_a_line_per_epoch(tmp_path: Path, capsys):
    create_trainer(tmp_path, grpo).fit()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "epoch 2/2" in lines[1]
    assert "rewards/accuracy/mean" in lines[1]
    assert "images/s" in lines[1]
