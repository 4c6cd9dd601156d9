"""Image files to arrays. Pillow alone, so that a server without torch can do exactly the same.

One rule for each kind of image file; `decode` gives 8 bits per channel, gray or RGB:

| file | what is used |
| --- | --- |
| gray, RGB | as it is; gray to RGB three times the same, RGB to gray by ITU-R 601-2 |
| 1 bit | black 0, white 255 |
| palette | the colors that it names |
| alpha or a transparent color | dropped: the colors below it, as in torchvision and timm |
| 16 bits, gray | divided by 256, so 0 to 65535 becomes 0 to 255; what has 16 bits in color, Pillow reads so itself |
| 32 bits, whole numbers or floats | refused: nobody knows their range |
| CMYK, YCbCr, LAB | as Pillow converts them, color profiles aside |
| EXIF orientation | turned upright |
| animated | the first frame |
| TIFF of several pages, MPO | the first page or picture |
| of another format, damaged, without pixels, or too costly to decode | refused |
"""

import io
import re
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from grpo_rm import image_cost

Pixels = NDArray[np.uint8]  # (size, size, channels)

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow decodes these itself; for others, such as EPS, it starts programs. Names of files say nothing.
FORMATS = ("JPEG", "PNG", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000  # 192 MB as RGB; more than a camera of 50 megapixels gives
MASK_MODES = ("1", "L", "P")
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")


class ImageError(ValueError):
    """A file that cannot be used; the message is one line, and the same at each run."""


def decode(data: bytes, *, channels: int) -> Image.Image:
    """Decode an image file, turn it upright by its EXIF orientation, and convert it to gray (1) or RGB (3).

    The file may come from anyone: what would cost too much is refused before it is decoded.

    Raises:
        ImageError: It is no image, a damaged one, one that costs too much, or has 32 bits per channel.
    """
    try:
        return convert(open_image(data), channels)
    except Exception as error:  # a damaged file makes Pillow's parsers raise anything
        refuse(error)


def open_image(data: bytes) -> Image.Image:
    """Read the header of an image file, and refuse what costs too much before any memory is taken."""
    if (parts := image_cost.count_parts(data)) > image_cost.MAX_PARTS:
        raise ImageError(
            f"the file has {parts:,} parts or more, expected at most {image_cost.MAX_PARTS:,}: save it anew"
        )
    opened = _open(data)
    pixels, scans = image_cost.count_pixels(opened, data), image_cost.count_scans(data)
    most = MAX_PIXELS // image_cost.pixel_cost(opened)
    if pixels > most:
        tiles = f" in tiles of {pixels:,}" if pixels > opened.width * opened.height else ""
        size = f"{opened.width} x {opened.height} pixels{tiles}"
        raise ImageError(f"the {opened.format} has {size}, expected at most {most:,}")
    if scans > image_cost.MAX_SCANS or scans * pixels > image_cost.MAX_SCANNED_PIXELS:
        raise ImageError(f"the JPEG has {scans} scans of {pixels:,} pixels, expected about 10: save it anew")
    if len(data) > image_cost.MAX_SLOW_BYTES and image_cost.is_slow(opened):
        raise ImageError(f"this kind of {opened.format} is slow to decode, and has more than 1 MiB: save it as PNG")
    return opened


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(_why_not(data)) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher than ours
        size = str(error).partition(" exceeds")[0]
        raise ImageError(f"{size}, expected at most {MAX_PIXELS:,}") from error


def _why_not(data: bytes) -> str:
    """Return why a file is not even opened; Pillow's own message shows an address in memory."""
    if not data:
        return "the file is empty"
    accepting = ((name, Image.OPEN[name][1]) for name in FORMATS)
    kind = next((name for name, accepts in accepting if accepts and accepts(data[:16])), None)
    if kind is None:
        return f"not an image: none of {', '.join(sorted(FORMATS))}"
    return f"a {kind} file of 0 x 0 pixels, or with a damaged header"


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Turn an opened image upright, and convert it to gray (1) or RGB (3)."""
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


def open_mask(data: bytes) -> Image.Image:
    """Decode a mask, whose values say the class of each pixel: one channel of 1, 8 or 16 bits, or indices of a palette.

    It is turned upright by its EXIF orientation, as images are.

    Raises:
        ImageError: It is none: several channels, a format that loses values, or no image that can be decoded.
    """
    try:
        mask = open_image(data)
        if mask.format in LOSSY_FORMATS:
            raise ImageError(f"the mask is a {mask.format}, which changes values: save it anew as PNG, from the source")
        if mask.mode not in MASK_MODES and not mask.mode.startswith("I;16"):
            raise ImageError(f"the mask has mode {mask.mode}, expected one channel: gray (8 or 16 bits) or a palette")
        if _is_scaled(mask):
            raise ImageError(f"this kind of {mask.format} is read with other values than it has: save it as 8-bit PNG")
        ImageOps.exif_transpose(mask, in_place=True)
        mask.load()
    except Exception as error:  # as in `decode`
        refuse(error)
    return mask


def _is_scaled(image: Image.Image) -> bool:
    """Whether Pillow gives other values than a gray file has: of 2 or 4 bits, white as 0, or a maximum that it says."""
    (codec, _, _, arguments), *_ = getattr(image, "tile", [])
    raw_mode, *more = arguments if isinstance(arguments, tuple) else (arguments,)
    return str(raw_mode).startswith("L;") or (image.mode == "L" and codec in ("ppm", "ppm_plain") and more != [255])


def refuse(error: Exception) -> NoReturn:
    """Raise what went wrong with a file as an ImageError."""
    if isinstance(error, ImageError):
        raise error
    line = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    reason = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "...", line)
    raise ImageError(f"cannot be decoded: {reason}") from error


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
