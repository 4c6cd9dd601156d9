"""Image files to arrays. Pillow alone, so that a server without torch can do exactly the same."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]  # (size, size, channels)

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(data: bytes, *, channels: int) -> Image.Image:
    """Decode an image file, turn it upright by its EXIF orientation, and convert it to gray (1) or RGB (3).

    Raises:
        OSError: It is no image, or a damaged one.
        ValueError: It has 32 bits per pixel, of which nobody knows the range.
    """
    image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit image (mode {image.mode}), expected 8 or 16 bits per channel: convert it")
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit gray off at 255 instead of scaling it
        image = image.convert("I").point(lambda value: value / 256)
    return image.convert("L" if channels == 1 else "RGB")


def evaluation_view(image: Image.Image, *, size: int, crop_pct: float, interpolation: str) -> Pixels:
    """Keep the central square, `crop_pct` of the shorter side wide, and resize it to (size, size, channels) uint8."""
    side = crop_pct * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return _resized(image, (left, top, left + side, top + side), size, interpolation)


def training_view(
    image: Image.Image, *, size: int, min_crop: float, flip: bool, interpolation: str, rng: np.random.Generator
) -> Pixels:
    """Crop at random and resize to (size, size, channels) uint8.

    Args:
        image: As `decode` gives it.
        size: Side of the result in pixels.
        min_crop: The crop's area is uniform in [min_crop, 1] of the image's, its width over height log-uniform in
            [3/4, 4/3] (nearer to 1 where min_crop is above 3/4); a crop that does not fit is shrunk. So 1 takes the
            largest square, and an elongated image is never squeezed more than a square one.
        flip: Mirror left and right with probability 1/2.
        interpolation: "bilinear" or "bicubic".
        rng: Where all the randomness comes from.
    """
    area, log_ratio, x, y, mirror = rng.random(5)
    area = (min_crop + (1 - min_crop) * area) * image.width * image.height
    ratio = max(3 / 4, min_crop) ** (1 - 2 * log_ratio)
    width, height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    fit = min(1.0, image.width / width, image.height / height)
    width, height = min(width * fit, image.width), min(height * fit, image.height)  # rounding may go beyond
    left, top = x * (image.width - width), y * (image.height - height)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    pixels = _resized(image, box, size, interpolation)
    return np.ascontiguousarray(pixels[:, ::-1]) if flip and mirror < 0.5 else pixels


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str) -> Pixels:
    resized = image.resize((size, size), INTERPOLATIONS[interpolation], box=box)
    return np.asarray(resized).reshape(size, size, -1)
