"""A training small enough for unit tests: 48 images of two classes, a network of some thousand weights."""

import io

import numpy as np
import torch
from PIL import Image

from grpo_rm.datasets import Batches, Split
from grpo_rm.devices import create_accelerator
from grpo_rm.losses import GrpoRmLoss, Objective, cross_entropy_loss
from grpo_rm.model import Model, ModelConfig
from grpo_rm.recipe import Recipe
from grpo_rm.rewards import accuracy_reward, uniformity_reward
from grpo_rm.trainer import Trainer
from grpo_rm.transforms import evaluation_view, training_view

CPU = torch.device("cpu")


OBJECTIVE = Objective(
    rewards={"accuracy": accuracy_reward, "uniformity": uniformity_reward},
    reward_weights={"accuracy": 1.0, "uniformity": 1.0},
    eps=0.01,
)


grpo = GrpoRmLoss(OBJECTIVE)


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


def batches_of(split, view=plain, **options):
    return Batches(split, view, channels=1, **({"batch_size": 16} | options))


def create_trainer(
    checkpoints, loss=cross_entropy_loss, *, model=None, seed=0, order_seed=0, workers=0, options=None, **recipe
):
    """A trainer of 3 steps an epoch."""
    defaults = {"epochs": 2, "learning_rate": 3e-3, "warmup_epochs": 1}
    recipe = Recipe(**(defaults | recipe))
    options = dict(options or {})
    accelerator = options.pop("accelerator", None) or create_accelerator(recipe.precision, cpu=True)
    part = {"rank": accelerator.process_index, "processes": accelerator.num_processes}
    return Trainer(
        model or create_model(),
        loss,
        batches_of(TRAIN, augmented, seed=order_seed, is_training=True, workers=workers, **part),
        batches_of(VAL, **part),
        recipe,
        seed=seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        title="test",
        **({"fingerprint": {}, "gallery": batches_of(TRAIN, **part)} | options),
    )


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def are_equal(left, right):
    return all(torch.equal(value, right[name]) for name, value in left.items())
