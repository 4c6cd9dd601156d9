"""Batches of the prepared data as a saved model wants them."""

from pathlib import Path

import numpy as np
from PIL import Image

from grpo_rm.config import Training
from grpo_rm.datasets import Batches, read_split
from grpo_rm.model import ModelConfig
from grpo_rm.transforms import Pixels, evaluation_view, training_view

PREPARED = Path("data/prepared")


def training_batches(model: ModelConfig, training: Training, *, seed: int) -> tuple[Batches, Batches]:
    """Return the augmented, shuffled training batches and the validation batches."""
    size, interpolation = model.image_size, model.interpolation
    augmentation = training.augmentation

    def augmented(image: Image.Image, rng: np.random.Generator) -> Pixels:
        return training_view(
            image,
            size=size,
            min_crop=augmentation.min_crop,
            flip=augmentation.flip,
            interpolation=interpolation,
            rng=rng,
        )

    train = Batches(
        read_split(PREPARED, "train"),
        augmented,
        channels=model.channels,
        batch_size=training.batch_size,
        seed=seed,
        is_training=True,
        workers=training.workers,
    )
    return train, evaluation_batches(model, "val", workers=training.workers)


def evaluation_batches(model: ModelConfig, split: str, *, workers: int = 0) -> Batches:
    """Return the batches of a split in order, without augmentation."""

    def plain(image: Image.Image, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
        return evaluation_view(image, size=model.image_size, crop_pct=model.crop_pct, interpolation=model.interpolation)

    return Batches(read_split(PREPARED, split), plain, channels=model.channels, batch_size=256, workers=workers)
