"""The model that a run starts from: the encoder that params.yaml names, and a head of the task."""

from collections.abc import Mapping
from typing import Any

import torch

from grpo_rm.config import Config
from grpo_rm.dense import create_dense_encoder
from grpo_rm.dense_model import DenseModel
from grpo_rm.encoder import create_encoder, pretrained_normalization
from grpo_rm.model import DenseConfig, Model, ModelConfig, VisionModel


def create_initial_model(config: Config, dataset: Mapping[str, Any]) -> VisionModel:
    """Create it, with weights that follow from the seed, or timm's.

    Args:
        config: Its seed, task, and the blocks `encoder` and `segmentation` are read.
        dataset: The content of dataset.json.

    Raises:
        ValueError: timm has no such encoder, or it does not fit the task.
        ConnectionError: The weights could not be downloaded.
    """
    encoder = config.encoder
    torch.manual_seed(config.seed)
    create = create_dense_encoder if config.task == "segmentation" else create_encoder
    network = create(
        encoder.name,
        pretrained=encoder.pretrained,
        channels=encoder.channels,
        image_size=encoder.image_size,
        args=encoder.args,
    )
    mean, std = pretrained_normalization(network) if encoder.pretrained else (dataset["mean"], dataset["std"])
    shared: dict[str, Any] = {
        "encoder": encoder.name,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "interpolation": encoder.interpolation,
        "mean": to_channels(mean, encoder.channels),
        "std": to_channels(std, encoder.channels),
        "classes": dataset["classes"],
        "encoder_args": encoder.args,
    }
    if config.task == "segmentation":
        dense = config.segmentation
        return DenseModel(
            DenseConfig(**shared, strides=dense.strides, head=dense.head, width=dense.width), encoder=network
        )
    return Model(
        ModelConfig(**shared, crop_pct=encoder.crop_pct, head=encoder.head, temperature=encoder.temperature),
        encoder=network,
    )


def to_channels(statistics: list[float], channels: int) -> list[float]:
    """Return a value per channel of the model: for gray images the mean over the colors."""
    return statistics if channels == 3 else [sum(statistics) / len(statistics)]
