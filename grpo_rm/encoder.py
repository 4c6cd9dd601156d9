"""Any timm encoder by name: images to pooled embeddings."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def create_encoder(
    name: str, *, pretrained: bool, channels: int, image_size: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a timm model without a classifier: (B, channels, image_size, image_size) float -> (B, D).

    Args:
        name: A timm model, such as "resnet18" or "vit_small_patch14_dinov2.lvd142m".
        pretrained: Load timm's weights. They are downloaded once.
        channels: 1 or 3. timm sums the first layer's pretrained weights for gray images.
        image_size: Side in pixels. Given to the model where its architecture depends on it.
        args: More arguments of timm.create_model.

    Raises:
        ValueError: timm has no such model (the message names the nearest), it has no pretrained weights, it refuses an
            argument, or it cannot take images of this size.
        ConnectionError: The weights could not be downloaded.
    """
    import timm  # slow to import

    _check_name(name, pretrained=pretrained)
    size = {"img_size": image_size} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    try:
        encoder: nn.Module = timm.create_model(
            name, pretrained=pretrained, in_chans=channels, num_classes=0, **(size | dict(args or {}))
        )
    except OSError as error:
        raise ConnectionError(
            f"the weights of encoder {name!r} could not be downloaded: {_first_line(error)}. Connect to the network "
            "once (they are cached), or set encoder.pretrained to false"
        ) from error
    except Exception as error:  # whatever an architecture raises for arguments it cannot take
        raise ValueError(
            f"timm refuses encoder {name!r} with image_size {image_size} and arguments {dict(args or {})}: "
            f"{_first_line(error)}"
        ) from error
    _check_size(encoder, name, channels=channels, image_size=image_size)
    return encoder


def embedding_dim(encoder: nn.Module) -> int:
    """Return D, the length of the encoder's pooled embedding."""
    return int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)  # type: ignore[arg-type]


def pretrained_normalization(encoder: nn.Module) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per RGB channel, in [0, 1], that timm's weights were trained with."""
    config: Mapping[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    return list(config["mean"]), list(config["std"])


def _check_name(name: str, *, pretrained: bool) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"timm has no encoder {name!r}; nearest: {', '.join(near) or 'none'}. See timm.list_models()")
    tagged = timm.list_pretrained(f"{architecture}.*") if tag or pretrained else []
    if tag and name not in tagged:
        raise ValueError(f"timm has no weights {name!r}; it has {', '.join(tagged) or 'none for this encoder'}")
    if pretrained and not tagged:
        raise ValueError(f"timm has no pretrained weights of {name!r}: set encoder.pretrained to false")


def _check_size(encoder: nn.Module, name: str, *, channels: int, image_size: int) -> None:
    patch = _patch_size(encoder)
    if patch and image_size % patch:
        multiple = max(1, round(image_size / patch)) * patch
        raise ValueError(
            f"encoder {name!r} cannot take image_size {image_size}: its patches are {patch} pixels wide, so use a "
            f"multiple such as {multiple}"
        )
    mode = encoder.training
    try:
        with torch.no_grad():
            shape = encoder.eval()(torch.zeros(1, channels, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"encoder {name!r} cannot take image_size {image_size}: {_first_line(error)}. It was made for "
            f"{encoder.pretrained_cfg['input_size'][-1]} pixels"  # type: ignore[index]
        ) from error
    finally:
        encoder.train(mode)
    if shape != (1, embedding_dim(encoder)):
        raise ValueError(
            f"encoder {name!r} gives {tuple(shape)}, expected a pooled embedding (1, D): check encoder.args"
        )


def _patch_size(encoder: nn.Module) -> int | None:
    """Return the side of the patches that an image is cut into; None where there are none, or they overlap."""
    embed = getattr(encoder, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    step = getattr(getattr(embed, "proj", None), "stride", (patch,))
    return patch if isinstance(patch, int) and step[0] == patch else None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
