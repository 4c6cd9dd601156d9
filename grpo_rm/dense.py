"""Dense features of any timm encoder: images of any size to (B, D, h, w) at one or several strides.

A stride is how many pixels of the image, each way, share a place. Images are padded to the right and below to
a multiple of a stride; what the padding adds is cropped from the result (`places`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpo_rm.encoder import create_encoder

Size = tuple[int, int]


class Levels(NamedTuple):
    """What is taken of an encoder, in its order.

    Attributes:
        indices: Of timm's `forward_intermediates`.
        strides: In pixels, of each.
        dims: D of each.
        multiple: Of which the sides of an image are, in pixels.
        fixed_size: Side of the only images that the encoder takes; None where it takes any multiple.
        is_normalized: Whether the encoder's last norm is applied, where it has one.
    """

    indices: tuple[int, ...]
    strides: tuple[int, ...]
    dims: tuple[int, ...]
    multiple: int
    fixed_size: int | None
    is_normalized: bool


def create_dense_encoder(
    name: str, *, pretrained: bool, channels: int, image_size: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a timm model that takes images of any size, where its architecture can; see `create_encoder`.

    Args:
        name: A timm model.
        pretrained: Load timm's weights.
        channels: 1 or 3.
        image_size: Side in pixels for which position embeddings are made, where there are any; the next multiple of
            the coarsest stride is used. For images of other sizes they are resampled.
        args: More arguments of timm.create_model.

    Raises:
        ValueError: See `create_encoder`; or the encoder has no dense features.
        ConnectionError: The weights could not be downloaded.
    """
    import timm  # slow to import

    arguments = dict(args or {})
    if timm.is_model(name):  # create_encoder says what is wrong with a name
        dynamic = {"dynamic_img_size": True} | arguments
        skeleton = _skeleton(name, dynamic)
        if skeleton is not None:
            arguments = dynamic
        else:
            skeleton = _skeleton(name, arguments)
        coarsest = 1 if skeleton is None else max(_reductions(skeleton, name))
        image_size = round_up(image_size, coarsest)
    return create_encoder(name, pretrained=pretrained, channels=channels, image_size=image_size, args=arguments)


def take_levels(encoder: nn.Module, strides: Sequence[int], *, channels: int, image_size: int) -> Levels:
    """Choose the features at these strides, and remove from the encoder what comes after the last of them.

    A stride is given as often as features of it are wanted: (4, 8, 16, 32) of a convnet, (16, 16, 16, 16) of a ViT.
    They are taken at even distances, among them always the last one of the stride.

    Args:
        encoder: A timm model. It is changed: a layer that nothing uses would have no gradient.
        strides: In pixels, in ascending order.
        channels: 1 or 3.
        image_size: That the encoder was made for.

    Raises:
        ValueError: The encoder has no such features, or they are not where their stride says.
    """
    name = type(encoder).__name__
    reductions = _reductions(encoder, name)
    if not strides or list(strides) != sorted(strides) or any(s not in reductions for s in strides):
        raise ValueError(f"strides are {list(strides)}, expected some of {name}'s, ascending: {reductions}")
    indices: list[int] = []
    for stride in sorted(set(strides)):
        indices += _spread([i for i, one in enumerate(reductions) if one == stride], strides.count(stride), stride)
    is_whole = indices[-1] == len(reductions) - 1
    encoder.prune_intermediate_layers(indices, prune_norm=not is_whole, prune_head=True)  # type: ignore[operator]
    whole_size = round_up(image_size, max(reductions))
    for multiple, fixed_size in ((max(strides), None), (max(reductions), None), (whole_size, whole_size)):
        for is_normalized in (True, False):  # a few architectures cannot
            levels = Levels(tuple(indices), tuple(strides), (), multiple, fixed_size, is_normalized)
            if dims := _trial(encoder, levels, channels):
                return levels._replace(dims=dims)
    raise ValueError(
        f"{name} gives no features at the strides {list(strides)}, neither of images of any size nor of {whole_size} x "
        f"{whole_size} pixels: use other strides, or another encoder"
    )


def pad_images(pixels: Tensor, levels: Levels) -> Tensor:
    """Pad normalized images (B, C, H, W) with 0, the mean color, to a size that the encoder takes.

    Raises:
        ValueError: The encoder takes images of one size, and these are larger.
    """
    height, width = pixels.shape[-2:]
    if levels.fixed_size is None:
        right, below = (round_up(length, levels.multiple) - length for length in (width, height))
        return F.pad(pixels, (0, right, 0, below))
    if max(height, width) > levels.fixed_size:
        raise ValueError(
            f"images are {height} x {width}, expected at most {levels.fixed_size} x {levels.fixed_size}, the one size "
            "that this encoder takes: use sliding windows of that size, a larger image_size, or another encoder"
        )
    return F.pad(pixels, (0, levels.fixed_size - width, 0, levels.fixed_size - height))


def dense_features(encoder: nn.Module, padded: Tensor, levels: Levels) -> list[Tensor]:
    """Return the features (B, D, H / stride, W / stride) of padded images (B, C, H, W), of each level."""
    features: list[Tensor] = encoder.forward_intermediates(  # type: ignore[operator]
        padded, indices=list(levels.indices), norm=levels.is_normalized, stop_early=True, intermediates_only=True
    )
    return features


def places(size: Size, stride: int) -> Size:
    """Return (h, w), how many places of a stride an image of (H, W) has; the last ones may reach beyond it."""
    height, width = ((length + stride - 1) // stride for length in size)
    return height, width


def _skeleton(name: str, args: Mapping[str, Any]) -> nn.Module | None:
    """Return the architecture without memory for its weights; None if it refuses the arguments."""
    import timm

    try:
        with torch.device("meta"):
            skeleton: nn.Module = timm.create_model(name.partition(".")[0], pretrained=False, num_classes=0, **args)
    except Exception:  # whatever an architecture raises; create_encoder tells the user
        return None
    return skeleton


def _reductions(encoder: nn.Module, name: str) -> list[int]:
    info: Any = getattr(encoder, "feature_info", None)
    if not info or not hasattr(encoder, "forward_intermediates"):
        raise ValueError(f"encoder {name!r} has no dense features (forward_intermediates), expected one that has")
    return [int(one["reduction"]) for one in info]


def _spread(indices: Sequence[int], count: int, stride: int) -> list[int]:
    """Take `count` of the indices at even distances, the last one among them."""
    if count > len(indices):
        raise ValueError(f"strides have {stride} {count} times, expected at most {len(indices)}: it has no more")
    return [indices[(i + 1) * len(indices) // count - 1] for i in range(count)]


def round_up(length: int, multiple: int) -> int:
    """Return the next multiple."""
    return (length + multiple - 1) // multiple * multiple  # ONNX, where this goes too, divides -length the other way


@torch.no_grad()
def _trial(encoder: nn.Module, levels: Levels, channels: int) -> tuple[int, ...] | None:
    """Return D of each level; None if the encoder does not take such images, or features are not at their strides."""
    size = (levels.multiple, levels.multiple * (1 if levels.fixed_size else 2))
    mode, weight = encoder.training, next(encoder.parameters())
    try:
        features = dense_features(encoder.eval(), weight.new_zeros(1, channels, *size), levels)
    except (RuntimeError, AssertionError, ValueError, ArithmeticError):
        return None
    finally:
        encoder.train(mode)
    sizes = [tuple(feature.shape[-2:]) for feature in features]
    if sizes != [places(size, stride) for stride in levels.strides]:
        return None
    return tuple(feature.shape[1] for feature in features)
