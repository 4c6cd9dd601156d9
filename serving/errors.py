"""What a client is told when it cannot be served."""

from collections.abc import Mapping

from fastapi.responses import JSONResponse

RETRY = {"Retry-After": "1"}


def error_response(path: str, status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as the routes below `path` word it: `error` in the Open Inference Protocol, else `detail`."""
    key = "error" if path == "/v2" or path.startswith("/v2/") else "detail"
    return JSONResponse({key: detail}, status, headers)
