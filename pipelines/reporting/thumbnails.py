"""Test images as small pictures that a page holds in itself."""

import base64
import io

from PIL import Image

from grpo_rm.transforms import decode

SIDE = 64  # pixels of the longer side, at most; the page enlarges what is smaller
JPEG_QUALITY = 85


def thumbnail(file: bytes, *, side: int = SIDE) -> str:
    """Return an image file as a data: URI, a PNG or a JPEG: whichever is smaller."""
    picture = decode(file, channels=3)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = [data_uri(picture, "png", optimize=True), data_uri(picture, "jpeg", quality=JPEG_QUALITY)]
    return min(encoded, key=len)


def data_uri(picture: Image.Image, kind: str, **options: int) -> str:
    """Return a picture as a data: URI of a file of this kind."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
