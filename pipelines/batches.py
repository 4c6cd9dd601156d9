"""Batches of the prepared data as a saved model wants them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from grpo_rm.config import Loader, Training
from grpo_rm.datasets import Batches, EvaluationBatches, Split, View, read_split
from grpo_rm.dense_datasets import DenseView, read_dense_split
from grpo_rm.dense_transforms import dense_training_view
from grpo_rm.masks import Mask
from grpo_rm.model import DenseConfig, ModelConfig
from grpo_rm.sized_batches import SizedBatches
from grpo_rm.transforms import Pixels, evaluation_view, training_view

PREPARED = Path("data/prepared")
EVALUATION_BATCH = 256


class TrainingBatches(NamedTuple):
    """What a training reads.

    Attributes:
        train: Augmented and shuffled.
        val: The validation images.
        gallery: The training images in order, without augmentation; None in a dense task.
    """

    train: Batches
    val: EvaluationBatches
    gallery: EvaluationBatches | None


def training_batches(
    model: ModelConfig | DenseConfig,
    training: Training,
    loader: Loader,
    *,
    seed: int,
    rank: int = 0,
    processes: int = 1,
) -> TrainingBatches:
    """Return the part that process `rank` of several has in the batches of a training.

    They share the memory for decoded images, each by its number of images, and with the other processes of the machine.
    """
    create = _dense_batches if isinstance(model, DenseConfig) else _image_batches
    return create(model, training, loader, seed=seed, rank=rank, processes=processes)  # type: ignore[arg-type]


def _image_batches(
    model: ModelConfig, training: Training, loader: Loader, *, seed: int, rank: int, processes: int
) -> TrainingBatches:
    train, val, plain = read_split(PREPARED, "train"), read_split(PREPARED, "val"), _evaluation_view(model)
    has_gallery = training.knn_every > 0 or model.head == "prototypes"
    cached = len(val.files) + len(train.files) * (2 if has_gallery else 1)
    gib_per_image = _cache_gib(loader, processes) / cached

    def create(split: Split, view: View, *, batch_size: int, is_training: bool = False) -> Batches:
        return Batches(
            split,
            view,
            channels=model.channels,
            batch_size=batch_size,
            seed=seed,
            is_training=is_training,
            workers=loader.workers,
            cache_gib=gib_per_image * len(split.files),
            rank=rank,
            processes=processes,
        )

    return TrainingBatches(
        create(train, _training_view(model, training), batch_size=training.batch_size, is_training=True),
        create(val, plain, batch_size=EVALUATION_BATCH),
        create(train, plain, batch_size=EVALUATION_BATCH),
    )


def _dense_batches(
    model: DenseConfig, training: Training, loader: Loader, *, seed: int, rank: int, processes: int
) -> TrainingBatches:
    train, val = read_dense_split(PREPARED, "train"), read_dense_split(PREPARED, "val")
    gib_per_image = _cache_gib(loader, processes) / (len(train.files) + len(val.files))
    part = {"workers": loader.workers, "rank": rank, "processes": processes}
    return TrainingBatches(
        Batches(
            train,
            _dense_training_view(model, training),
            channels=model.channels,
            batch_size=training.batch_size,
            seed=seed,
            is_training=True,
            cache_gib=gib_per_image * len(train.files),
            **part,
        ),
        SizedBatches(val, channels=model.channels, cache_gib=gib_per_image * len(val.files), **part),
        None,
    )


def _cache_gib(loader: Loader, processes: int) -> float:
    """Return what a process has of the memory for decoded images."""
    return loader.cache_gib / int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if loader.cache == "auto" else 0.0


def dense_evaluation_batches(model: DenseConfig, split: str, *, workers: int = 0) -> SizedBatches:
    """Return the whole images of a split in batches of one size each. They are read once, so nothing is kept."""
    return SizedBatches(read_dense_split(PREPARED, split), channels=model.channels, workers=workers)


def evaluation_batches(model: ModelConfig, split: str, *, prepared: Path = PREPARED, workers: int = 0) -> Batches:
    """Return the batches of a split in order, without augmentation. They are read once, so nothing is kept."""
    return _plain_batches(model, read_split(prepared, split), workers)


def chosen_batches(model: ModelConfig, split: str, rows: Sequence[int], *, workers: int = 0) -> Batches:
    """Return the batches of some images of a split, in the order of `rows`, without augmentation."""
    whole = read_split(PREPARED, split)
    chosen = Split([whole.ids[row] for row in rows], [whole.files[row] for row in rows], whole.labels[list(rows)])
    return _plain_batches(model, chosen, workers)


def _plain_batches(model: ModelConfig, split: Split, workers: int) -> Batches:
    return Batches(
        split,
        _evaluation_view(model),
        channels=model.channels,
        batch_size=EVALUATION_BATCH,
        workers=workers,
        cache_gib=0,
    )


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


def _dense_training_view(model: DenseConfig, training: Training) -> DenseView:
    augmentation = training.augmentation
    mean_color = tuple(round(255 * value) for value in model.mean)

    def augmented(image: Image.Image, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
        return dense_training_view(
            image,
            mask,
            size=model.image_size,
            min_crop=augmentation.min_crop,
            flip=augmentation.flip,
            interpolation=model.interpolation,
            fill=mean_color,
            rng=rng,
        )

    return augmented


def _evaluation_view(model: ModelConfig) -> View:
    def plain(image: Image.Image, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
        return evaluation_view(image, size=model.image_size, crop_pct=model.crop_pct, interpolation=model.interpolation)

    return plain
