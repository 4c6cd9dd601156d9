"""The model of all arms: normalization, a timm encoder, and a head over the output set. `dense_model` has that of a
dense task."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from grpo_rm.encoder import create_encoder, embedding_dim
from grpo_rm.head import create_head


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build the model and to feed it: the content of config.json beside the weights.

    Attributes:
        encoder: Name of a timm model.
        channels: 1 (gray) or 3 (RGB).
        image_size: Side in pixels.
        crop_pct: Side of the central square that is kept, as a share of the shorter side.
        interpolation: "bilinear" or "bicubic".
        mean: Per channel, in [0, 1].
        std: Per channel, in [0, 1].
        classes: Names of the output set, in the order of the logits.
        encoder_args: More arguments of timm.create_model.
        task: "classification".
        head: "linear", or "prototypes" for `PrototypeHead`.
        temperature: Of the prototypes.
    """

    encoder: str
    channels: int
    image_size: int
    crop_pct: float
    interpolation: str
    mean: list[float]
    std: list[float]
    classes: list[str]
    encoder_args: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    head: str = "linear"
    temperature: float = 0.07


@dataclass(frozen=True)
class DenseConfig:
    """All that is needed to build a model of a dense task and to feed it: the content of its config.json.

    Attributes:
        encoder: Name of a timm model.
        channels: 1 (gray) or 3 (RGB).
        image_size: Side in pixels for which the encoder is made; see `create_dense_encoder`.
        interpolation: "bilinear" or "bicubic", where an image is resized.
        mean: Per channel, in [0, 1].
        std: Per channel, in [0, 1].
        classes: Names of the output set, in the order of the logits.
        strides: Of the features, ascending; see `take_levels`. The head's stride is the first.
        encoder_args: More arguments of timm.create_model.
        task: "segmentation".
        head: "linear" or "decoder".
        width: Of the decoder's embedding.
    """

    encoder: str
    channels: int
    image_size: int
    interpolation: str
    mean: list[float]
    std: list[float]
    classes: list[str]
    strides: list[int]
    encoder_args: dict[str, Any] = field(default_factory=dict)
    task: str = "segmentation"
    head: str = "linear"
    width: int = 128


class VisionModel(nn.Module):
    """What all know of a model, whatever its task: images (B, H, W, C) uint8 to an embedding and logits.

    Attributes:
        config: What it was built from.
        encoder: timm's.
        head: Over the output set.
    """

    encoder: nn.Module
    head: nn.Module

    def __init__(self, config: ModelConfig | DenseConfig) -> None:
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Map images as they come from the data, (B, H, W, C) uint8, to (B, C, H, W)."""
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return (pixels - self.mean) / self.std


class Model(VisionModel):
    """Images as they come from the data, uint8 and channels last, to embedding and logits."""

    config: ModelConfig

    def __init__(self, config: ModelConfig, *, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        self.encoder = encoder or create_encoder(
            config.encoder,
            pretrained=False,
            channels=config.channels,
            image_size=config.image_size,
            args=config.encoder_args,
        )
        dim, num_outputs = embedding_dim(self.encoder), len(config.classes)
        self.head = create_head(config.head, dim, num_outputs, temperature=config.temperature)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, H, W, C) uint8 to the embedding (B, D) and the logits (B, K)."""
        embedding = self.encoder(self.normalize(images))
        return embedding, self.head(embedding)
