"""The files that are stored: as they came, or smaller where `data.resize_on_prepare` asks for it.

An image whose shorter side is above the limit is stored with that shorter side, upright, by bicubic interpolation, and
encoded again: as JPEG (quality 95, 4:4:4) where it was one, else as PNG; gray or RGB with 8 bits. Its mask is resized
to the same size by nearest neighbor, and stored as PNG.
"""

import hashlib
import io

from PIL import Image

from grpo_rm.transforms import convert, open_image, open_mask

JPEG_QUALITY = 95
GRAY_MODES = ("1", "L", "LA", "La", "I")  # and the others of 16 bits; I is that of PPM files


def digest_of(data: bytes, mask: bytes | None, shorter_side: int | None) -> str:
    """Return what the stored files follow from: SHA-256 of the image's file, and what else there is after a colon."""
    digests = [hashlib.sha256(file).hexdigest() for file in (data, mask) if file is not None]
    return ":".join([*digests, *([f"{shorter_side}px"] if shorter_side else [])])


def resize_file(data: bytes, shorter_side: int | None) -> bytes:
    """Return an image file as it is stored.

    Raises:
        Exception: Whatever Pillow's parsers raise at a damaged file.
    """
    if shorter_side is None:
        return data
    opened = open_image(data)
    if min(opened.size) <= shorter_side:
        return data
    is_jpeg = opened.format in ("JPEG", "MPO")
    is_gray = opened.mode in GRAY_MODES or opened.mode.startswith("I;16")
    image = convert(opened, 1 if is_gray else 3)
    small = image.resize(_fit(image.size, shorter_side), Image.Resampling.BICUBIC)
    return _encoded(small, "JPEG", quality=JPEG_QUALITY, subsampling=0) if is_jpeg else _encoded(small, "PNG")


def resize_mask(mask: bytes, shorter_side: int | None) -> bytes:
    """Return the file of a mask as it is stored."""
    if shorter_side is None:
        return mask
    opened = open_mask(mask)
    if min(opened.size) <= shorter_side:
        return mask
    return _encoded(opened.resize(_fit(opened.size, shorter_side), Image.Resampling.NEAREST), "PNG")


def _fit(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    shorter = min(size)
    width, height = ((length * shorter_side * 2 + shorter) // (2 * shorter) for length in size)  # rounded
    return width, height


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    image.info = {}  # such as a transparent color: it would be written too
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
