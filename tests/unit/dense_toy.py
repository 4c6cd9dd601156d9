"""A training of a dense task small enough for unit tests: 48 images of two textures with exact masks."""

import io

import numpy as np
import torch
from PIL import Image
from toy_training import OBJECTIVE

from grpo_rm.datasets import Batches
from grpo_rm.dense_datasets import DenseSplit
from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_transforms import dense_training_view
from grpo_rm.devices import create_accelerator
from grpo_rm.losses import GrpoRmLoss
from grpo_rm.masks import Masks, class_table
from grpo_rm.model import DenseConfig
from grpo_rm.recipe import Recipe
from grpo_rm.sized_batches import SizedBatches
from grpo_rm.task import Segmentation
from grpo_rm.trainer import Trainer

VOID_VALUE = 9
grpo = GrpoRmLoss(OBJECTIVE)


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def dense_split(count, seed, sizes=((16, 16),)):
    """Noisy gray images: class 1 is a brighter rectangle. A column is void, and every seventh mask as a whole."""
    rng = np.random.default_rng(seed)
    files, masks = [], []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        mask = np.zeros((height, width), dtype=np.uint8)
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[top : top + 6, left : left + 9] = 1
        files.append(encoded(rng.integers(0, 120, mask.shape) + 100 * mask))
        mask[:, rng.integers(0, width)] = VOID_VALUE
        masks.append(encoded(mask if index % 7 else np.full_like(mask, VOID_VALUE)))
    table = class_table([0, 1], VOID_VALUE)
    return DenseSplit([str(index) for index in range(count)], files, Masks(masks, table))


TRAIN, VAL = dense_split(48, 1), dense_split(24, 2, sizes=[(16, 16), (13, 21)])


def augmented(image, mask, rng):
    settings = {"size": 16, "min_crop": 0.7, "flip": True, "interpolation": "bilinear", "fill": (102,)}
    return dense_training_view(image, mask, **settings, rng=rng)


def create_dense_model(encoder="test_convnext", strides=(4, 8), **encoder_args):
    torch.manual_seed(0)
    tiny = {"dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1]} if encoder == "test_convnext" else {}
    head = "decoder" if len(strides) > 1 else "linear"
    return DenseModel(
        DenseConfig(
            encoder,
            1,
            16,
            "bilinear",
            [0.4],
            [0.25],
            ["back", "front"],
            list(strides),
            tiny | encoder_args,
            head=head,
            width=8,
        )
    )


def create_dense_trainer(checkpoints, loss=grpo, *, model=None, task=None, workers=0, options=None, **recipe):
    """A trainer of 3 steps an epoch, with SGD."""
    defaults = {"epochs": 2, "learning_rate": 0.05, "warmup_epochs": 1, "monitor": "val_miou", "optimizer": "sgd"}
    recipe = Recipe(**(defaults | recipe))
    accelerator = create_accelerator(recipe.precision, cpu=True)
    part = {"workers": workers, "rank": accelerator.process_index, "processes": accelerator.num_processes}
    model = model or create_dense_model()
    return Trainer(
        model,
        loss,
        Batches(TRAIN, augmented, channels=1, batch_size=16, is_training=True, **part),
        SizedBatches(VAL, channels=1, **part),
        recipe,
        seed=0,
        accelerator=accelerator,
        checkpoints=checkpoints,
        title="test",
        fingerprint={},
        task=task or Segmentation(model.stride),
        **(options or {}),
    )
