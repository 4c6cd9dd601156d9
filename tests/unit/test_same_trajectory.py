"""Settings that say where and how, not what: the weights come out the same.

With SGD: Adam divides by the gradient, and blows it up where it is nothing but rounding (the key biases of a ViT).
"""

from dataclasses import replace

import pytest
import torch
from toy_training import OBJECTIVE, TRAIN, augmented, batches_of, create_model, create_trainer, grpo, weights_of

from grpo_rm.datasets import Split
from grpo_rm.losses import GrpoRmLoss, cross_entropy_loss

SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def train(checkpoints, loss=grpo, *, encoder="test_vit", **recipe):
    trainer = create_trainer(checkpoints, loss, model=create_model(encoder), **(SGD | recipe))
    trainer.fit()
    return weights_of(trainer.model), trainer.history


def assert_close(left, right, *, rtol=1e-4, atol=1e-6):
    for name, value in left[0].items():
        torch.testing.assert_close(value, right[0][name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    for mine, other in zip(left[1], right[1], strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize(
    "recipe",
    [
        {"accumulation": 4},
        {"accumulation": 3},  # 16 images: 6, 5 and 5
        {"channels_last": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_how_it_is_computed_does_not_matter(tmp_path, reference, recipe):
    assert_close(train(tmp_path, **recipe), reference)


def test_that_test_can_fail(tmp_path, reference):
    """A change of the learning rate by a thousandth is seen."""
    with pytest.raises(AssertionError):
        assert_close(train(tmp_path, learning_rate=0.05005), reference)


def test_batch_normalization_sees_micro_batches(tmp_path):
    """Its statistics are those of the images that pass together: accumulation changes them, and so the weights."""
    whole = train(tmp_path / "whole", encoder="test_resnet")
    with pytest.raises(AssertionError):
        assert_close(train(tmp_path / "cut", encoder="test_resnet", accumulation=4), whole)


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo])
def test_micro_batches_count_by_their_labels(tmp_path, loss):
    """Where labels are missing, parts of a batch count by what they have: the mean is that of the whole batch."""
    labels = TRAIN.labels.copy()
    labels[::3] = -1

    def trained(accumulation):
        model = create_model("test_vit")
        trainer = create_trainer(tmp_path / str(accumulation), loss, model=model, accumulation=accumulation, **SGD)
        split = Split(TRAIN.ids, TRAIN.files, labels)
        trainer.train = batches_of(split, augmented, is_training=True)
        trainer.fit()
        return weights_of(trainer.model), trainer.history

    assert_close(trained(5), trained(1))


def test_micro_batches_remember_what_the_batch_does(tmp_path):
    """All parts of a batch see what was remembered before it."""
    loss = GrpoRmLoss(replace(OBJECTIVE, neighbor_weight=4.0))

    def trained(accumulation):
        options = {"memory_size": 32}
        recipe = SGD | {"accumulation": accumulation}
        model = create_model("test_vit")
        trainer = create_trainer(tmp_path / str(accumulation), loss, model=model, options=options, **recipe)
        trainer.fit()
        return weights_of(trainer.model), trainer.history

    assert_close(trained(4), trained(1))


def test_bf16_stays_near(tmp_path, reference):
    half = train(tmp_path, precision="bf16")
    assert half[0]["head.weight"].dtype == torch.float32
    assert not torch.equal(half[0]["head.weight"], reference[0]["head.weight"])
    assert_close((half[0], []), (reference[0], []), rtol=0.1, atol=0.02)
