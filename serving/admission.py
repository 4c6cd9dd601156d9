"""A bound on what is under way: requests, bytes of their bodies, and time. Over it, clients are told to come back.

A request whose client hangs up ends at once: nothing is decoded or computed for nobody.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import RETRY, error_response
from serving.inference import OverloadedError
from serving.settings import Limits

ROUTES = ("/v1/", "/v2/")
BODIES = 8  # as many bodies of the largest size may be in memory at once


class Admission:
    """Refuses a request that finds no place before its body is read, and ends one whose time is over.

    Attributes:
        requests: Under way.
        body_bytes: Of their bodies, as far as they have arrived.
    """

    def __init__(self, app: ASGIApp, limits: Limits, max_requests: int) -> None:
        self.app, self.limits, self.max_requests = app, limits, max_requests
        self.requests, self.body_bytes = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 408 or 503."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if scope["path"].startswith(ROUTES) and self.requests >= self.max_requests:
            detail = f"{self.requests} requests are under way: try again later"
            return await error_response(scope["path"], 503, detail, RETRY)(scope, receive, send)
        self.requests += 1
        try:
            return await self._pass_on(scope, receive, send)
        finally:
            self.requests -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, is_whole, is_answered = 0, False, False

        async def counted_receive() -> Message:
            nonlocal received, is_whole
            message = await receive()
            is_whole = is_whole or not message.get("more_body", False)
            received += len(message.get("body", b""))
            self.body_bytes += len(message.get("body", b""))
            if self.body_bytes > BODIES * self.limits.body_bytes:
                raise OverloadedError("the bodies of other requests take all the memory there is: try again later")
            return message

        async def noted_send(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        timeout = asyncio.timeout(self.limits.seconds)
        is_lost = False

        def end() -> None:
            nonlocal is_lost
            is_lost = True
            timeout.reschedule(0)

        connection = scope["state"]["connection"]
        try:
            async with timeout:
                connection.when_lost = end
                try:
                    await self.app(scope, counted_receive, noted_send)
                finally:
                    connection.when_lost = None
        except TimeoutError:
            if is_lost:
                return
            if is_answered or not timeout.expired():
                raise
            await self._say_late(scope, receive, send, is_whole)
        finally:
            self.body_bytes -= received

    async def _say_late(self, scope: Scope, receive: Receive, send: Send, is_whole: bool) -> None:
        seconds = f"{self.limits.seconds:g} seconds"
        status, detail = (503, f"not answered within {seconds}: try again later")
        if not is_whole:
            status, detail = 408, f"the body did not arrive within {seconds}"
        headers = {"Connection": "close"} | (RETRY if status == 503 else {})
        await error_response(scope["path"], status, detail, headers)(scope, receive, send)
