"""Test images as small pictures that a page holds in itself."""

import base64
import io

from PIL import Image

from grpo_rm.transforms import decode

SIDE = 64  # pixels of the longer side, at most; the page enlarges what is smaller
JPEG_QUALITY = 85


def thumbnail(file: bytes) -> str:
    """Return an image file as a data: URI, a PNG or a JPEG: whichever is smaller."""
    picture = decode(file, channels=3)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = [_encode(picture, "png", optimize=True), _encode(picture, "jpeg", quality=JPEG_QUALITY)]
    return min(encoded, key=len)


def _encode(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
