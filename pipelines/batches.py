"""Batches of the prepared data as a saved model wants them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from grpo_rm.config import Training
from grpo_rm.datasets import Batches, Split, View, read_split
from grpo_rm.model import ModelConfig
from grpo_rm.transforms import Pixels, evaluation_view, training_view

PREPARED = Path("data/prepared")
EVALUATION_BATCH = 256


class TrainingBatches(NamedTuple):
    """What a training reads.

    Attributes:
        train: Augmented and shuffled.
        val: The validation images.
        gallery: The training images in order, without augmentation.
    """

    train: Batches
    val: Batches
    gallery: Batches


def training_batches(
    model: ModelConfig, training: Training, *, seed: int, rank: int = 0, processes: int = 1
) -> TrainingBatches:
    """Return the part that process `rank` of several has in the batches of a training."""
    images, plain = read_split(PREPARED, "train"), _evaluation_view(model)

    def create(split: Split, view: View, *, batch_size: int, is_training: bool = False) -> Batches:
        return Batches(
            split,
            view,
            channels=model.channels,
            batch_size=batch_size,
            seed=seed,
            is_training=is_training,
            workers=training.workers,
            rank=rank,
            processes=processes,
        )

    return TrainingBatches(
        create(images, _training_view(model, training), batch_size=training.batch_size, is_training=True),
        create(read_split(PREPARED, "val"), plain, batch_size=EVALUATION_BATCH),
        create(images, plain, batch_size=EVALUATION_BATCH),
    )


def evaluation_batches(model: ModelConfig, split: str) -> Batches:
    """Return the batches of a split in order, without augmentation."""
    view = _evaluation_view(model)
    return Batches(read_split(PREPARED, split), view, channels=model.channels, batch_size=EVALUATION_BATCH)


def _training_view(model: ModelConfig, training: Training) -> View:
    augmentation = training.augmentation

    def augmented(image: Image.Image, rng: np.random.Generator) -> Pixels:
        return training_view(
            image,
            size=model.image_size,
            min_crop=augmentation.min_crop,
            flip=augmentation.flip,
            interpolation=model.interpolation,
            rng=rng,
        )

    return augmented


def _evaluation_view(model: ModelConfig) -> View:
    def plain(image: Image.Image, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
        return evaluation_view(image, size=model.image_size, crop_pct=model.crop_pct, interpolation=model.interpolation)

    return plain
