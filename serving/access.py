"""API keys: who may ask."""

import hmac
import logging
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import error_response

# The page asks for a key itself, probes have none, and webhooks are signed.
OPEN = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/hooks/mlflow")
OPEN_BELOW = "/page/"
MIN_LENGTH = 16

logger = logging.getLogger("serving")


class ApiKeys:
    """The keys of a file, one on each line, read again when it changes. Empty lines and lines from # on do not count.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no key, or one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._look()
        self._keys = self._read()

    def accept(self, key: str) -> bool:
        """Whether this is one of the keys. Takes the same time for all that are not."""
        self._refresh()
        given = key.encode("utf-8", errors="replace")
        return sum(hmac.compare_digest(given, known) for known in self._keys) > 0  # not any(): all are compared

    def _refresh(self) -> None:
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = self._read()
            logger.info("%d API keys are valid", len(self._keys))
        except (OSError, ValueError) as error:  # in the middle of being replaced, or a mistake: nobody is locked out
            logger.warning("the API keys stay as they are: %s", error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[bytes]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise OSError(
                f"the API keys (GRPO_RM_API_KEYS_FILE) {self._path} cannot be read: {error.strerror}"
            ) from error
        keys = {number: line.partition("#")[0].strip() for number, line in enumerate(lines, 1)}
        keys = {number: key for number, key in keys.items() if key}
        wrong = [number for number, key in keys.items() if not (key.isascii() and len(key) >= MIN_LENGTH)]
        if wrong or not keys:
            where = f"line {wrong[0]} of {self._path} is no key" if wrong else f"{self._path} has no key"
            raise ValueError(
                f"{where}, expected {MIN_LENGTH} ASCII characters or more, one key on a line: make one with "
                "`openssl rand -hex 24`"
            )
        return [key.encode() for key in keys.values()]


class Access:
    """Lets requests with a key pass: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        if self.keys is None or scope["type"] != "http" or _is_open(scope["path"]) or self._has_key(scope):
            return await self.app(scope, receive, send)
        detail = "no valid API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
        # The connection stays open, and the body is thrown away as it comes: closed, many clients would see no answer.
        return await error_response(scope["path"], 401, detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        return self.keys is not None and any(self.keys.accept(key) for key in given if key)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)
