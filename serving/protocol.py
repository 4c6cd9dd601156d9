"""HTTP connections that end when their client is too slow, for uvicorn, which itself waits for ever."""

import asyncio
from collections.abc import Callable

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10.0
MARGIN_SECONDS = 5.0  # beyond the time of a request, so that its client is told first
MAX_CONNECTIONS = 2_000
MAX_PIPELINE = 16
FRAMING = 8  # bytes of chunked framing for each byte of body; a chunk of one byte takes six


class BoundedProtocol(HttpToolsProtocol):
    """A connection.

    Cut off are: headers or trailers that are not complete within 10 seconds or longer than 16 KiB; a request whose
    answer was not taken within `request_seconds` and a margin; one that sends more than 16 requests without waiting for
    an answer; a connection beyond the 2,000th.
    """

    request_seconds = 30.0
    when_lost: Callable[[], None] | None = None  # of the request under way, which finds its connection in its state
    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0  # received and not accounted for by a body
    _running: RequestResponseCycle | None = None  # self.cycle is the last of several that are waiting

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or end it at once."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the request under way."""
        self._end_after(None)
        if self.when_lost:
            self.when_lost()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._deadline is None:  # the next request of a connection that is kept
            self._expect_headers()
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are longer than {MAX_HEADER_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        if len(self.pipeline) >= MAX_PIPELINE:
            raise ValueError("too many requests at once")  # to the parser, which ends the connection
        self._expect_end()
        self.scope["state"]["connection"] = self
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._header_bytes = max(0, self._header_bytes - (1 + FRAMING) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the headers of another request."""
        self._header_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Let the connection rest, unless something is to be sent still; uvicorn ends one that rests for long."""
        super().on_response_complete()
        if not self.cycle.response_complete:
            self._expect_end()  # of the next one, which waited
        elif not self.transport.get_write_buffer_size():
            self._end_after(None)

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that rested for long. One that is still being sent to has a deadline already."""
        if not self.transport.get_write_buffer_size():
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and end the connection."""
        super().send_400_response(msg)
        self._end_after(MARGIN_SECONDS)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_headers(self) -> None:
        self._end_after(min(HEADER_SECONDS, self.request_seconds))

    def _expect_end(self) -> None:
        self._end_after(self.request_seconds + MARGIN_SECONDS)

    def _end_after(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def bounded_protocol(request_seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol for requests that may take so long."""
    return type("BoundedProtocol", (BoundedProtocol,), {"request_seconds": request_seconds})
