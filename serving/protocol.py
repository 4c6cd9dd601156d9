"""HTTP connections that end when their client is too slow, for uvicorn, which itself waits for ever."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 10.0
MARGIN_SECONDS = 5.0  # beyond the time of a request, so that its client is told first
MAX_CONNECTIONS = 10_000
MAX_PIPELINE = 16
FRAMING = 8  # bytes of chunked framing for each byte of body; a chunk of one byte takes six


class BoundedProtocol(HttpToolsProtocol):
    """A connection.

    Cut off are: headers or trailers that are not complete within 10 seconds or longer than 64 KiB; a request whose
    answer was not taken within `request_seconds` and a margin; one that sends more than 16 requests without waiting for
    an answer; a connection beyond the 10,000th.
    """

    request_seconds = 30.0
    when_lost: Callable[[], None] | None = None  # of the request under way, which finds its connection in its state
    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0  # received and not accounted for by a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or end it at once."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the request under way."""
        self._disarm()
        if self.when_lost:
            self.when_lost()
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
        self._end_after(self.request_seconds + MARGIN_SECONDS)
        self.scope["state"]["connection"] = self
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._header_bytes -= (1 + FRAMING) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the headers of another request."""
        self._header_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Let the connection rest, unless another request is there already; uvicorn ends one that rests for long."""
        self._disarm()
        super().on_response_complete()
        if not self.cycle.response_complete:
            self._end_after(self.request_seconds + MARGIN_SECONDS)
        elif self.transport.is_closing():
            self._end_after(MARGIN_SECONDS)  # closing waits until everything is taken

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that rested for long."""
        super().timeout_keep_alive_handler()
        self._end_after(MARGIN_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and end the connection."""
        super().send_400_response(msg)
        self._end_after(MARGIN_SECONDS)

    def _expect_headers(self) -> None:
        self._end_after(min(HEADER_SECONDS, self.request_seconds))

    def _end_after(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def bounded_protocol(request_seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol for requests that may take so long."""
    return type("BoundedProtocol", (BoundedProtocol,), {"request_seconds": request_seconds})
