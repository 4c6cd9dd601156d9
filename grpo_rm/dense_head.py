"""From dense features to an embedding and logits at each place: a linear layer, or a light multi-scale decoder."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """A 1 x 1 convolution; the embedding is the features themselves.

    Args:
        dim: D of the features.
        num_outputs: K.
    """

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(dim, num_outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features [(B, D, h, w)] to them, and the logits (B, K, h, w)."""
        (embedding,) = features
        return embedding, self.classify(embedding)


class DecoderHead(nn.Module):
    """Features of several strides, projected to one width, brought to the finest and added up; layer norm; 1 x 1.

    The normalization is over the channels of a place, so that none depends on padding, or on another image.

    Args:
        dims: D of the features of each stride.
        width: D of the embedding.
        num_outputs: K.
    """

    def __init__(self, dims: Sequence[int], width: int, num_outputs: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Conv2d(width, num_outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features [(B, D, h, w)], the first the finest, to the embedding (B, width, h, w) and logits."""
        projected = [project(one) for project, one in zip(self.projections, features, strict=True)]
        total = projected[0]
        for coarse in projected[1:]:
            total = total + _resize(coarse, total)
        embedding = self.norm(total.movedim(1, -1)).movedim(-1, 1)
        return embedding, self.classify(embedding)


def _resize(coarse: Tensor, fine: Tensor) -> Tensor:
    if coarse.shape[-2:] == fine.shape[-2:]:
        return coarse
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)


def create_dense_head(kind: str, dims: Sequence[int], num_outputs: int, *, width: int) -> nn.Module:
    """Return a head: features [(B, D, h, w)], the first the finest, to embedding and logits at the finest stride.

    Args:
        kind: "linear" or "decoder".
        dims: D of each.
        num_outputs: K.
        width: Of the decoder's embedding.

    Raises:
        ValueError: There is no such head, or a linear one is given several features.
    """
    if kind == "decoder":
        return DecoderHead(dims, width, num_outputs)
    if kind != "linear":
        raise ValueError(f'head is {kind!r}, expected "linear" or "decoder"')
    if len(dims) != 1:
        raise ValueError(f'head is "linear" and there are {len(dims)} strides, expected one, or the head "decoder"')
    return LinearHead(dims[0], num_outputs)
