"""Test images as small pictures that a page holds in itself."""

import base64
import io

from PIL import Image

from grpo_rm.transforms import decode

SIDE = 64  # pixels of the longer side, at most; the page enlarges what is smaller
JPEG_QUALITY = 85


def thumbnail(file: bytes) -> str:
    """Return an image file as a data: URI: a PNG where it is small anyway, a JPEG where it had to shrink."""
    picture = decode(file, channels=3)
    is_large = max(picture.size) > SIDE
    if is_large:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind = "jpeg" if is_large else "png"
    encoded = io.BytesIO()
    picture.save(encoded, format=kind, **({"quality": JPEG_QUALITY} if is_large else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
