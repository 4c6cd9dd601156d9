"""The body of a request, up to a limit, and the image files in it."""

from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serving.settings import Limits

HOW = "send one image file as the body, or several as multipart/form-data"


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body.

    Raises:
        HTTPException: 413 where it is longer than `limit` bytes, which is noticed before they are read; 400 where the
            client hangs up in the middle.
    """
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes")
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


async def read_files(request: Request, limits: Limits) -> list[bytes]:
    """Return the image files of a request: the body itself, or each file of multipart/form-data.

    Raises:
        HTTPException: 400 where there is none or the form is damaged, 413 where there are too many or too much of
            them, 415 where the body is JSON.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in ("application/json", "text/json"):
        raise HTTPException(415, f"the body is JSON: {HOW}; arrays go to /v2")
    if encoding := request.headers.get("content-encoding", "").strip():
        raise HTTPException(415, f"the body is encoded ({encoding[:20]}): send images as they are")
    body = await read_body(request, limits.body_bytes)
    files = (
        await _files_of_form(request.headers, body, limits.images) if media_type == "multipart/form-data" else [body]
    )
    for number, file in enumerate(files, 1):
        if not file:
            what = "the body is empty" if len(files) == 1 else f"image {number} of {len(files)} is empty"
            how = (
                HOW if "upgrade" not in request.headers else "bodies of requests for an upgrade are lost, use HTTP/1.1"
            )
            raise HTTPException(400, f"{what}: {how}")
    return files


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # the body is in memory and bounded already; the file system may be read-only


async def _files_of_form(headers: Headers, body: bytes, most: int) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(headers, stream(), max_files=most, max_fields=most).parse()
    except Exception as error:  # of the parser, or of a charset that the form names
        reason = error.message if isinstance(error, MultiPartException) else "it is damaged"
        if reason.startswith("Too many files"):
            raise HTTPException(413, f"the form has more than {most} files") from error
        raise HTTPException(400, f"the form cannot be read: {reason}") from error
    files = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    await form.close()
    if not files:
        raise HTTPException(400, f"the form has no file: {HOW}, such as `curl -F image=@cat.jpg`")
    return files
