"""What the optimizer is given: learning rate, weight decay, frozen weights, clipped gradients, finite ones only."""

import math

import pytest
import torch
from toy_training import are_equal, create_model, create_trainer, grpo, weights_of

from grpo_rm.checkpoint import load_model
from grpo_rm.losses import LossOutput, cross_entropy_loss


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
    trainer.learner.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: applied.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.fit()
    assert rates == pytest.approx([1e-3 * factor for factor in factors])
    assert applied == [[rate, rate] for rate in rates]
    assert trainer.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert trainer.history[0]["learning_rate"] == rates[2]


def test_norms_and_biases_do_not_decay(tmp_path):
    model = create_model("test_vit")
    trainer = create_trainer(tmp_path, model=model, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}
        for group in trainer.learner.optimizer.param_groups
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

    def zero(sites):
        return LossOutput(0 * sites.logits.sum(), {})

    create_trainer(tmp_path, zero, model=model, epochs=1, warmup_epochs=0, learning_rate=0.1, weight_decay=0.5).fit()
    factor = math.prod(1 - 0.1 * (1 + math.cos(math.pi * step / 3)) / 2 * 0.5 for step in range(3))
    torch.testing.assert_close(model.head.weight.detach(), factor * before["head.weight"])
    assert torch.equal(model.head.bias, before["head.bias"])


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_a_frozen_encoder_does_not_change(tmp_path, loss):
    model = create_model(drop_path_rate=0.9)
    before = weights_of(model)
    trainer = create_trainer(tmp_path, loss, model=model, freeze_encoder=True, learning_rate=1e-2)
    assert sum(p.numel() for group in trainer.learner.optimizer.param_groups for p in group["params"]) == 8 * 2 + 2
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

    trainer.learner.optimizer.optimizer.register_step_pre_hook(measure)
    trainer.fit()
    assert min(reported) > 1e-3  # what is reported is the norm before
    assert applied == pytest.approx([min(norm, limit) for norm in reported], rel=1e-3)


def failing_at(call, how):
    """Cross-entropy until the call-th step, then a loss, its gradient or both that are not finite."""
    calls = []

    def loss(sites):
        calls.append(1)
        output = cross_entropy_loss(sites)
        if len(calls) < call:
            return output
        if how == "gradient":  # sqrt has an infinite slope at 0
            return LossOutput(output.loss + (sites.logits - sites.logits.detach()).sum().sqrt(), output.stats)
        if how == "constant":
            return LossOutput(output.loss + float("inf"), output.stats)
        return LossOutput(output.loss * float(how), output.stats)

    return loss


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "the loss is nan"),
        ("inf", "the loss is inf"),
        ("constant", "the loss is inf and the norm of its gradient [0-9]"),
        ("gradient", "the loss is [0-9.]+ and the norm of its gradient (nan|inf)"),
    ],
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
    assert are_equal(weights_of(load_model(tmp_path / "epoch-1")), after[0])


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
