"""The engine on a CUDA device. Nothing of it runs without one."""

import math

import pytest
import torch
from toy_training import batches_of, create_model, create_trainer, grpo, split_of, weights_of

from grpo_rm.devices import create_accelerator
from grpo_rm.losses import cross_entropy_loss
from grpo_rm.trainer import Interrupted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]


def create(checkpoints, loss=grpo, *, options=None, **recipe):
    accelerator = create_accelerator(recipe.get("precision", "fp32"))
    model = create_model("test_vit", depth=2)
    return create_trainer(
        checkpoints, loss, model=model, options={"accelerator": accelerator} | (options or {}), **recipe
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_learns(tmp_path, loss, precision):
    trainer = create(tmp_path, loss, precision=precision, epochs=15, learning_rate=1e-2)
    trainer.fit()
    assert trainer.model.head.weight.is_cuda
    assert trainer.best["val_accuracy"] > 0.9


def test_agrees_with_the_cpu(tmp_path):
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    on_gpu, on_cpu = (
        create(tmp_path / "gpu", **sgd),
        create_trainer(tmp_path / "cpu", grpo, model=create_model("test_vit", depth=2), **sgd),
    )
    on_gpu.fit()
    on_cpu.fit()
    for name, value in weights_of(on_cpu.model).items():
        torch.testing.assert_close(weights_of(on_gpu.model)[name].cpu(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resumes(tmp_path, precision):
    """Every random state and the scaler of fp16 go on; sums on a GPU may differ in their last bits."""
    rich = {"precision": precision, "num_iterations": 2, "ema_decay": 0.8}
    options = {"old_policy_steps": 2}
    whole = create(tmp_path / "whole", options=options, **rich)
    whole.fit()
    stopping = create(tmp_path / "resumed", options=options, **rich)
    stopping.should_stop = lambda: stopping.step == 6
    with pytest.raises(Interrupted):
        stopping.fit()
    resumed = create(tmp_path / "resumed", options=options, **rich)
    assert resumed.step == 6
    resumed.fit()
    for name, value in weights_of(whole.learner.result).items():
        torch.testing.assert_close(weights_of(resumed.learner.result)[name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_a_step_later_at_most(tmp_path):
    calls = []

    def loss(sites):
        calls.append(1)
        output = cross_entropy_loss(sites)
        output.loss.data *= math.nan if len(calls) == 5 else 1
        return output

    with pytest.raises(FloatingPointError, match="stopped at step 5"):
        create(tmp_path, loss, epochs=3).fit()
    assert len(calls) <= 6
    assert not (tmp_path / "state.pt").exists()


def test_batches_are_pinned():
    images, _ = next(batches_of(split_of(8, 0)).epoch(1))
    assert images.is_pinned()
