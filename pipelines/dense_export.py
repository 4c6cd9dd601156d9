"""What stage export does otherwise for a dense model: images as they are, of one size."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_export import PooledModel
from grpo_rm.transforms import Pixels, decode
from pipelines.batches import PREPARED
from pipelines.held_out import too_long

LOOKED_AT = 64  # test images, for some that have one size
MAX_PIXELS = 1_000_000  # of all examples together: they travel with the model, and latency is measured on four


def dense_preprocessing(model: PooledModel, window: int | None) -> dict[str, Any]:
    """Return what a client has to know to feed the file, and to bring its logits to pixels.

    Args:
        model: As the file has it.
        window: Side of the windows that it was measured with; the file itself knows of none.
    """
    config = model.dense.config
    return {
        "channels": config.channels,
        "interpolation": config.interpolation,
        "image_size": config.image_size,
        "stride": model.dense.stride,
        "fixed_size": model.fixed_size,
        "window": window,
    }


def check_sizes(fixed_size: int, window: int | None, *, prepared: Path = PREPARED) -> None:
    """Refuse a file that the gate could not measure: it takes images of one size, and is to be given larger ones.

    Args:
        fixed_size: The largest side that the file takes.
        window: Side of the windows in evaluation; None: it gives whole images.
        prepared: Where the prepared data are.

    Raises:
        ValueError: An image of val or test is larger, and so is what evaluation takes of it.
    """
    largest = too_long(fixed_size, window, prepared=prepared)
    if largest:
        raise ValueError(
            f"the ONNX file takes images of at most {fixed_size} x {fixed_size} pixels, got segmentation.window: "
            f"{'null' if window is None else window} and images in val or test whose side is {largest}; expected "
            f"windows or images that fit. Set segmentation.window to at most {fixed_size}, or encoder.image_size to at "
            f"least {largest}, or use another encoder"
        )


def dense_examples(
    model: PooledModel, count: int, *, window: int | None, prepared: Path = PREPARED
) -> NDArray[np.uint8]:
    """Return test images, or their top left corners, that have the size of the first one: (N, H, W, C).

    Args:
        model: That takes them.
        count: N at most.
        window: The longest side; None: that of the images. None is longer than the model takes, either.
        prepared: Where the prepared data are.
    """
    files = read_dense_split(prepared, "test").files
    side = min(math.isqrt(MAX_PIXELS), window or MAX_PIXELS, model.fixed_size or MAX_PIXELS)
    channels = model.dense.config.channels
    corners = (_corner(files[row], side, channels=channels) for row in range(min(LOOKED_AT, len(files))))
    first = next(corners)
    same = itertools.chain([first], (corner for corner in corners if corner.shape == first.shape))
    count = min(count, MAX_PIXELS // math.prod(first.shape[:2]))
    return np.stack(list(itertools.islice(same, count)))


def _corner(file: bytes, side: int, *, channels: int) -> Pixels:
    image = decode(file, channels=channels)
    width, height = (min(length, side) for length in image.size)
    return np.asarray(image.crop((0, 0, width, height))).reshape(height, width, channels)
