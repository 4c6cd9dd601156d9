"""Image files to arrays, as the training data were made: the same lines as grpo_rm/transforms.py, held equal by a test.

They are written twice because a server must not need the library, and with it torch. What is different here is what
strangers send: files of few formats, of a bounded number of pixels, and one kind of error.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # (size, size, channels)

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow decodes these itself; for others, such as EPS, it starts programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
JPEG_SCAN, MAX_SCANS = b"\xff\xda", 100  # each takes as long as a whole image; a progressive JPEG has about 10
MAX_PIXELS = 64_000_000  # 192 MB as RGB; more than a camera of 50 megapixels gives


class ImageError(ValueError):
    """A file that cannot be used; the message is for the one who sent it."""


def decode(data: bytes, *, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file, turn it upright by its EXIF orientation, and convert it to gray (1) or RGB (3).

    Args:
        data: The file.
        channels: 1 or 3.
        max_pixels: Width times height, above which it is refused before it is decoded.

    Raises:
        ImageError: It is no image, a damaged or too large one, or has 32 bits per channel.
    """
    try:
        return _decode(data, channels, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's parsers raise anything
        raise ImageError(f"the image cannot be decoded: {_reason(error)}") from error


def evaluation_view(image: Image.Image, *, size: int, crop_pct: float, interpolation: str) -> Pixels:
    """Keep the central square, `crop_pct` of the shorter side wide, and resize it to (size, size, channels) uint8."""
    side = crop_pct * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    resized = image.resize((size, size), INTERPOLATIONS[interpolation], box=box)
    return np.asarray(resized).reshape(size, size, -1)


def _decode(data: bytes, channels: int, max_pixels: int) -> Image.Image:
    opened = Image.open(io.BytesIO(data), formats=FORMATS)
    if opened.width * opened.height > max_pixels:  # known from its header, before any memory is taken
        raise ImageError(f"the image has {opened.width} x {opened.height} pixels, expected at most {max_pixels:,}")
    if opened.format == "JPEG" and data.count(JPEG_SCAN) > MAX_SCANS:
        raise ImageError(f"the JPEG has {data.count(JPEG_SCAN)} scans, expected at most {MAX_SCANS}: save it anew")
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode in ("I", "F"):
        raise ImageError(f"32-bit image (mode {image.mode}), expected 8 or 16 bits per channel: convert it")
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit gray off at 255 instead of scaling it
        image = image.convert("I").point(lambda value: value / 256)
    return image.convert("L" if channels == 1 else "RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # Pillow's own message shows an address in memory
        return f"it is none of {', '.join(FORMATS)}"
    return (str(error) or type(error).__name__).splitlines()[0]
