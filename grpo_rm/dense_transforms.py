"""Views of an image together with its mask: what is cut out of one is cut out of the other.

A view is a window, in pixels of the image, that becomes a square of a given size. Where the window is beyond the image,
the image has one color and the mask is void. A pixel of the mask is the one below the center of the view's pixel
(nearest neighbor), so no view has a class that the mask does not have there.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from grpo_rm.masks import VOID, Mask
from grpo_rm.transforms import INTERPOLATIONS, Pixels


class Window(NamedTuple):
    """A part of an image, and around it: in pixels, left and top may be below 0."""

    left: float
    top: float
    width: float
    height: float


def whole_view(image: Image.Image, mask: Mask) -> tuple[Pixels, Mask]:
    """Return the image as it is, (H, W, channels) uint8, and its mask, (H, W).

    Raises:
        ValueError: The mask is not as large as the image.
    """
    _check_sizes(image, mask)
    return np.asarray(image).reshape(image.height, image.width, -1), mask


def dense_training_view(
    image: Image.Image,
    mask: Mask,
    *,
    size: int,
    min_crop: float,
    flip: bool,
    interpolation: str,
    fill: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[Pixels, Mask]:
    """Return a part of the image chosen at random, (size, size, channels) uint8, and the mask's, (size, size).

    Args:
        image: As `decode` gives it.
        mask: As large as the image.
        size: Side of the result in pixels.
        min_crop: The window's area over size * size is log-uniform in [min_crop, 1 / min_crop], its width over height
            in [3/4, 4/3] (nearer to 1 where min_crop is above 3/4). So objects are shown as large as they are in the
            mean, and with 1 always. A window that fits neither into the image nor into (size, size) is shrunk: only an
            image that is smaller than the result is ever padded.
        flip: Mirror left and right with probability 1/2.
        interpolation: "bilinear" or "bicubic", of the image.
        fill: The color around the image, a value per channel: the mean color, as a model pads images.
        rng: Where all the randomness comes from.

    Raises:
        ValueError: The mask is not as large as the image.
    """
    _check_sizes(image, mask)
    log_area, log_ratio, x, y, mirror = rng.random(5)
    side = size * min_crop ** (0.5 - log_area)
    ratio = max(3 / 4, min_crop) ** (0.5 - log_ratio)  # the square root of width over height
    width, height = side * ratio, side / ratio
    fit = min(1.0, max(size, image.width) / width, max(size, image.height) / height)
    width, height = width * fit, height * fit
    window = Window(x * (image.width - width), y * (image.height - height), width, height)
    pixels, classes = _view(image, mask, _on_pixels(window, size), size, interpolation, fill)
    if flip and mirror < 0.5:
        return np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(classes[:, ::-1])
    return pixels, classes


def _on_pixels(window: Window, size: int) -> Window:
    """Move a window that is not resized to whole pixels: they stay what they are, instead of being blurred."""
    if window.width != size or window.height != size:
        return window
    return window._replace(left=round(window.left), top=round(window.top))


def _check_sizes(image: Image.Image, mask: Mask) -> None:
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"mask (H, W) {mask.shape} and image {(image.height, image.width)} differ, expected the same: mend the mask"
        )


def _view(
    image: Image.Image, mask: Mask, window: Window, size: int, interpolation: str, fill: tuple[int, ...]
) -> tuple[Pixels, Mask]:
    padded, left, top = _padded(image, window, fill)
    box = (left, top, min(left + window.width, padded.width), min(top + window.height, padded.height))  # rounding
    resized = padded.resize((size, size), INTERPOLATIONS[interpolation], box=box)
    return np.asarray(resized).reshape(size, size, -1), _nearest(mask, window, size)


def _padded(image: Image.Image, window: Window, fill: tuple[int, ...]) -> tuple[Image.Image, float, float]:
    """Return the image with a color around it where the window leaves it, and where the window is in that."""
    left, top = min(0, math.floor(window.left)), min(0, math.floor(window.top))
    right = max(image.width, math.ceil(window.left + window.width))
    bottom = max(image.height, math.ceil(window.top + window.height))
    if (left, top, right, bottom) == (0, 0, *image.size):
        return image, window.left, window.top
    padded = Image.new(image.mode, (right - left, bottom - top), fill if len(fill) > 1 else fill[0])
    padded.paste(image, (-left, -top))
    return padded, window.left - left, window.top - top


def _nearest(mask: Mask, window: Window, size: int) -> Mask:
    """Return the mask's pixel below the center of each pixel of the view, VOID beyond the mask."""
    rows = np.floor(window.top + (np.arange(size) + 0.5) * (window.height / size)).astype(np.int64)
    columns = np.floor(window.left + (np.arange(size) + 0.5) * (window.width / size)).astype(np.int64)
    is_row, is_column = (rows >= 0) & (rows < mask.shape[0]), (columns >= 0) & (columns < mask.shape[1])
    view = np.full((size, size), VOID, dtype=mask.dtype)
    view[np.ix_(is_row, is_column)] = mask[np.ix_(rows[is_row], columns[is_column])]
    return view
