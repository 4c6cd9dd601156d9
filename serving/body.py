"""The body of a request, up to a limit."""

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body.

    Raises:
        HTTPException: 413 where it is longer than `limit` bytes, which is noticed before they are read; 400 where the
            client hangs up in the middle.
    """
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes", headers={"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_long
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:  # no Content-Length, as with chunked transfer
                raise too_long
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ends before its end") from error
    return bytes(body)
