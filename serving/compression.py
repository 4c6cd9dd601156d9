"""Compressed bodies: a few bytes may stand for many, so that what they become has a limit too."""

import zlib

from fastapi import HTTPException

WINDOW_BITS = {"gzip": 31, "deflate": 15}  # deflate is zlib's format, as HTTP says


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Return the body as it was before `encoding`, the header Content-Encoding; "" and identity change nothing.

    Raises:
        HTTPException: 415 where the encoding is another; 413 where the body becomes longer than `limit` bytes, which
            is noticed after so many; 400 where it is damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise HTTPException(
            415, "the Content-Encoding is unknown, expected gzip, deflate or none", {"Accept-Encoding": "gzip, deflate"}
        )
    stream = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not what Content-Encoding says, {encoding}") from error
    if len(plain) > limit:
        raise HTTPException(413, f"the body becomes longer than {limit:,} bytes")
    if not stream.eof or stream.unused_data:
        raise HTTPException(400, f"the body is not one whole stream of {encoding}")
    return plain
