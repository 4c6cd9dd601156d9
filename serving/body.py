"""The body of a request, up to a limit."""

from fastapi import HTTPException, Request


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body.

    Raises:
        HTTPException: 413 where it is longer than `limit` bytes, which is noticed before they are read.
    """
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes", headers={"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:  # no Content-Length, as with chunked transfer
            raise too_long
    return bytes(body)
