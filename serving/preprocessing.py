"""Image files to arrays, as the training data were made: the same lines as grpo_rm/transforms.py, held equal by a test.

They are written twice because a server must not need the library, and with it torch. What is different here is what
strangers send: files of few formats, of a bounded number of pixels, and one kind of error.
"""

import contextlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from serving import image_cost
from serving.image_cost import PixelBudget

Pixels = NDArray[np.uint8]  # (H, W, channels)

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow decodes these itself; for others, such as EPS, it starts programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000  # 192 MB as RGB; more than a camera of 50 megapixels gives


Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns in the log; ours is told to the one who sent it


class ImageError(ValueError):
    """A file that cannot be used; the message is for the one who sent it."""


def decode(
    data: bytes, *, channels: int, max_pixels: int = MAX_PIXELS, budget: PixelBudget | None = None
) -> Image.Image:
    """Decode an image file, turn it upright by its EXIF orientation, and convert it to gray (1) or RGB (3).

    Args:
        data: The file.
        channels: 1 or 3.
        max_pixels: Width times height, above which it is refused before it is decoded.
        budget: Of the pixels that are decoded at the same time, also by others.

    Raises:
        ImageError: It is no image, a damaged one, one that costs too much, or has 32 bits per channel.
    """
    try:
        opened = _open(data, max_pixels)
        with (
            budget.take(image_cost.count_pixels(opened, data) * image_cost.pixel_cost(opened))
            if budget
            else contextlib.nullcontext()
        ):
            return _converted(opened, channels)
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's parsers raise anything
        raise ImageError(f"cannot be decoded: {_reason(error)}") from error


def evaluation_view(image: Image.Image, *, size: int, crop_pct: float, interpolation: str) -> Pixels:
    """Keep the central square, `crop_pct` of the shorter side wide, and resize it to (size, size, channels) uint8."""
    side = crop_pct * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    resized = image.resize((size, size), INTERPOLATIONS[interpolation], box=box)
    return np.asarray(resized).reshape(size, size, -1)


def whole_view(image: Image.Image, size: tuple[int, int], *, interpolation: str) -> Pixels:
    """Return the whole image, resized to (H, W) where it has another size: (H, W, channels) uint8."""
    height, width = size
    resized = image.resize((width, height), INTERPOLATIONS[interpolation])
    return np.asarray(resized).reshape(height, width, -1)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header, and refuse what costs too much before any memory is taken."""
    if (parts := image_cost.count_parts(data)) > image_cost.MAX_PARTS:
        raise ImageError(
            f"the file has {parts:,} parts or more, expected at most {image_cost.MAX_PARTS:,}: save it anew"
        )
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(_why_not(data)) from error
    pixels, scans = image_cost.count_pixels(opened, data), image_cost.count_scans(data)
    most = max_pixels // image_cost.pixel_cost(opened)
    if pixels > most:
        tiles = f" in tiles of {pixels:,}" if pixels > opened.width * opened.height else ""
        size = f"{opened.width} x {opened.height} pixels{tiles}"
        raise ImageError(f"the {opened.format} has {size}, expected at most {most:,}")
    if scans > image_cost.MAX_SCANS or scans * pixels > image_cost.MAX_SCANNED_PIXELS:
        raise ImageError(f"the JPEG has {scans} scans of {pixels:,} pixels, expected about 10: save it anew")
    if len(data) > image_cost.MAX_SLOW_BYTES and image_cost.is_slow(opened):
        raise ImageError(f"this kind of {opened.format} is slow to decode, and has more than 1 MiB: save it as PNG")
    return opened


def _why_not(data: bytes) -> str:
    """Return why a file is not even opened; Pillow's own message shows an address in memory."""
    if not data:
        return "the file is empty"
    accepting = ((name, Image.OPEN[name][1]) for name in FORMATS)
    kind = next((name for name, accepts in accepting if accepts and accepts(data[:16])), None)
    if kind is None:
        return f"not an image: none of {', '.join(sorted(FORMATS))}"
    return f"a {kind} file of 0 x 0 pixels, or with a damaged header"


def _converted(image: Image.Image, channels: int) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # a copy would take its memory once more
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # which has no 32 bits
    if image.mode in ("I", "F") and not is_16_bit:
        raise ImageError(f"32-bit image (mode {image.mode}), expected 8 or 16 bits per channel: convert it")
    if is_16_bit:  # Pillow would cut 16-bit gray off at 255 instead of scaling it
        image = image.convert("I").point(lambda value: value / 256)
    mode = "L" if channels == 1 else "RGB"
    image.load()
    image.info.pop("transparency", None)  # it is dropped as alpha is; Pillow would warn where a palette has several
    if image.mode == "LAB":  # Pillow has no way from there to gray
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").strip() or type(error).__name__
