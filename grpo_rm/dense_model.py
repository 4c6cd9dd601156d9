"""The model of all arms of a dense task: normalization, dense features of a timm encoder, and a head at each place."""

from torch import Tensor, nn

from grpo_rm.dense import create_dense_encoder, dense_features, pad_images, places, take_levels
from grpo_rm.dense_head import create_dense_head
from grpo_rm.model import DenseConfig, VisionModel


class DenseModel(VisionModel):
    """Images as they come from the data, uint8, channels last and of any size, to embedding and logits at a stride.

    Args:
        config: What to build.
        encoder: The encoder, with its weights. What comes after the last stride is removed from it.

    Attributes:
        stride: That of the head, in pixels.
    """

    config: DenseConfig

    def __init__(self, config: DenseConfig, *, encoder: nn.Module | None = None) -> None:
        super().__init__(config)
        self.encoder = encoder or create_dense_encoder(
            config.encoder,
            pretrained=False,
            channels=config.channels,
            image_size=config.image_size,
            args=config.encoder_args,
        )
        self.levels = take_levels(self.encoder, config.strides, channels=config.channels, image_size=config.image_size)
        self.stride = config.strides[0]
        self.head = create_dense_head(config.head, self.levels.dims, len(config.classes), width=config.width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, H, W, C) uint8 to the embedding (B, D, h, w) and the logits (B, K, h, w).

        h = H / stride, rounded up, and w likewise: see `upsample` for logits of the image's size.
        """
        padded = pad_images(self.normalize(images), self.levels)
        embedding, logits = self.head(dense_features(self.encoder, padded, self.levels))
        height, width = places((images.shape[1], images.shape[2]), self.stride)
        return embedding[..., :height, :width], logits[..., :height, :width]
