"""A bound on what is under way: requests, bytes of their bodies, and time. Over it, clients are told to come back.

A request whose client hangs up ends at once: nothing is decoded or computed for nobody.
"""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import RETRY, error_response
from serving.inference import OverloadedError
from serving.settings import Limits

ROUTES = ("/v1/", "/v2/")
BODIES = 8  # as many bodies of the largest size may be in memory at once
CLOSE = {"Connection": "close"}


class Admission:
    """Refuses a request that finds no place, if possible before its body is read, and ends one whose time is over.

    Attributes:
        requests: Whose bodies are here, and which are not answered. Slow clients take no place of others.
        body_bytes: Of the bodies under way, as far as they have arrived.
    """

    def __init__(self, app: ASGIApp, limits: Limits, max_requests: int) -> None:
        self.app, self.limits, self.max_requests = app, limits, max_requests
        self.requests, self.body_bytes = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 408 or 503."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        exchange = _Exchange(self, receive, send, is_counted=scope["path"].startswith(ROUTES))
        try:
            exchange.check()
            refusal = await self._pass_on(scope, exchange)
        except OverloadedError as error:
            refusal = (503, str(error), RETRY)
        finally:
            exchange.end()
        if refusal:
            status, detail, headers = refusal
            await error_response(scope["path"], status, detail, headers)(scope, receive, send)
        return None

    async def _pass_on(self, scope: Scope, exchange: "_Exchange") -> tuple[int, str, dict[str, str]] | None:
        """Return what the client is to be told, if it has no answer."""
        connection, is_lost = scope.get("state", {}).get("connection", _Connection()), False
        timeout = asyncio.timeout(self.limits.seconds)

        def end() -> None:
            nonlocal is_lost
            is_lost = True
            timeout.reschedule(0)

        try:
            async with timeout:
                connection.when_lost = end
                try:
                    await self.app(scope, exchange.receive, exchange.send)
                finally:
                    connection.when_lost = None
        except TimeoutError:
            if is_lost:
                return None
            if exchange.is_answered or not timeout.expired():
                raise
            seconds = f"{self.limits.seconds:g} seconds"
            if exchange.is_whole:
                return 503, f"not answered within {seconds}: try again later", CLOSE | RETRY
            return 408, f"the body did not arrive within {seconds}", CLOSE
        except asyncio.CancelledError:  # the time that the end of the server leaves to requests is over
            if exchange.is_answered:
                raise
            return 503, "the server is ending: try again later", CLOSE | RETRY
        return None


class _Connection:
    """Where the server is not told of lost connections (serving/protocol.py)."""

    when_lost: Callable[[], None] | None = None


class _Exchange:
    """A request as far as it has arrived, and whether it is answered."""

    def __init__(self, admission: Admission, receive: Receive, send: Send, *, is_counted: bool) -> None:
        self._admission, self._receive, self._send, self._is_counted = admission, receive, send, is_counted
        self._bytes, self._has_place = 0, False
        self.is_whole = self.is_answered = False

    def check(self) -> None:
        """Raise OverloadedError where there is no place."""
        requests = self._admission.requests
        if self._is_counted and requests >= self._admission.max_requests:
            raise OverloadedError(f"{requests} requests are under way: try again later")

    async def receive(self) -> Message:
        """Receive a part of the body, and take a place with the last one."""
        message = await self._receive()
        admission, size = self._admission, len(message.get("body", b""))
        self._bytes += size
        admission.body_bytes += size
        if admission.body_bytes > BODIES * admission.limits.body_bytes:
            raise OverloadedError("the bodies of other requests take all the memory there is: try again later")
        if message["type"] == "http.request" and not message.get("more_body", False) and not self.is_whole:
            self.is_whole = True
            self.check()
            self._has_place = self._is_counted
            admission.requests += self._has_place
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        self.is_answered = True
        await self._send(message)

    def end(self) -> None:
        """Give back what it took."""
        self._admission.requests -= self._has_place
        self._admission.body_bytes -= self._bytes
