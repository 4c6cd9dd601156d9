"""How answers are written: JSON, arrays as .npy or raw float32, masks as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from PIL import Image

JSON, NPY, RAW, PNG = "application/json", "application/x-npy", "application/octet-stream", "image/png"


def choose_media_type(accept: str, offered: Sequence[str]) -> str:
    """Return which of the offered media types a header `Accept` asks for most, the first where it names none of them.

    A wildcard means the first. Of equals, the one named first.
    """
    best, most = offered[0], 0.0
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            continue
        if (media_type in offered or "*" in media_type) and quality > most:
            best, most = (media_type if media_type in offered else offered[0]), quality
    return best


def json_response(content: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """Return JSON; arrays of numpy are written as nested lists, float32 with the digits it has."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON, headers=dict(headers))


def array_response(array: NDArray[Any], media_type: str, headers: Mapping[str, str]) -> Response:
    """Return an array as .npy, or as its bytes (C order, little endian) with the header X-Shape, such as `2,192`."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if media_type == RAW:
        shape = ",".join(map(str, array.shape))
        return Response(array.tobytes(), media_type=RAW, headers={**headers, "X-Shape": shape})
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY, headers=dict(headers))


def encode_mask(mask: NDArray[np.integer[Any]]) -> bytes:
    """Return a mask of class indices (h, w) as PNG: a palette up to 256 classes, else 16 bits."""
    if mask.max(initial=0) < 256:
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette(_palette())
    else:
        image = Image.fromarray(mask.astype(np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _palette() -> bytes:
    """Return 256 colors as those of Pascal VOC: the bits of the index, spread over red, green and blue."""
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors.tobytes()
