"""The client that loads a server: one thread on bare sockets, so that it leaves the cores to the server.

It costs about 0.1 ms of CPU a request, which each measurement reports. Closed loop: every connection sends its next
request when it has its answer. Open loop: requests are due at random times, whatever the server does, and a latency
counts from when its request was due, so that a server that stalls cannot hide it (coordinated omission).
"""

import collections
import math
import random
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MAX_CONNECTIONS = 512
ANSWER_SECONDS = 60.0  # for what is under way at the end


@dataclass(frozen=True)
class Request:
    """A request as it goes over the wire.

    Attributes:
        data: Head and body.
        kind: What it is counted as.
    """

    data: bytes
    kind: str = "request"


@dataclass
class Load:
    """What came of it.

    Attributes:
        seconds: From the first request that counts to the last answer.
        latencies: Of the answers that count, in seconds.
        statuses: How many answers of a kind had a status; 0 is a connection that broke.
        cpu_seconds: Of this client.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        """Return a latency in milliseconds.

        Raises:
            RuntimeError: There is none.
        """
        if not self.latencies:
            raise RuntimeError(f"no request was answered within {self.seconds:.1f} s")
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]

    def check(self) -> "Load":
        """Return itself.

        Raises:
            RuntimeError: A request failed.
        """
        if failed := {name: count for name, count in self.statuses.items() if name[1] != 200}:
            raise RuntimeError(f"of {len(self.latencies)} requests some failed: {failed}")
        return self


def post(path: str, body: bytes, content_type: str = "application/octet-stream", kind: str = "request") -> Request:
    """Return a POST of a body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return Request(f"{head}\r\n".encode() + body, kind)


def closed_loop(port: int, requests: Sequence[Request], *, clients: int, seconds: float, warm_up: float = 1.0) -> Load:
    """Load the server on a port from `clients` connections, for some seconds after the warm-up."""
    with _Client(port, requests) as client:
        for _ in range(clients):
            client.send(time.perf_counter())
        client.run(until=time.perf_counter() + warm_up, is_closed_loop=True)
        client.reset()
        client.run(until=time.perf_counter() + seconds, is_closed_loop=True)
        load = client.result()
        client.reset()  # the server is to be idle when the next measurement begins
        client.run(until=time.perf_counter() + ANSWER_SECONDS, is_closed_loop=False, is_draining=True)
        return load


def open_loop(port: int, requests: Sequence[Request], *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Load the server with `rate` requests a second on average, at the times of a Poisson process."""
    with _Client(port, requests) as client:
        due = time.perf_counter()
        end = due + seconds
        for wait in _exponential(rate, seed):
            due += wait
            if due > end:
                break
            client.run(until=due, is_closed_loop=False)
            client.send(due)
        client.run(until=time.perf_counter() + ANSWER_SECONDS, is_closed_loop=False, is_draining=True)
        return client.result()


def _exponential(rate: float, seed: int) -> Iterator[float]:
    generator = random.Random(seed)
    while True:
        yield generator.expovariate(rate)


class _Connection:
    """A socket and the one request under way on it."""

    __slots__ = ("expected", "is_last", "is_reused", "received", "request", "since", "socket", "status", "unsent")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.is_reused = False

    def begin(self, request: Request, since: float) -> None:
        self.request, self.since, self.unsent = request, since, memoryview(request.data)
        self.received, self.expected, self.status = b"", -1, 0

    def write(self) -> bool:
        """Send what the socket takes; return whether all is sent."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return True

    def read(self) -> bool:
        """Take what has come; return whether the answer is whole.

        Raises:
            ConnectionError: The server hung up.
        """
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise ConnectionResetError("the server hung up")
        if self.expected >= 0:
            self.expected -= len(chunk)
        else:
            self._head(chunk)
        return self.expected == 0

    def _head(self, chunk: bytes) -> None:
        self.received += chunk
        end = self.received.find(b"\r\n\r\n")
        if end >= 0:
            head = self.received[:end].lower()
            self.is_last = b"\r\nconnection: close" in head
            _, _, after = head.partition(b"content-length:")
            length = int(after.partition(b"\r\n")[0] or 0)
            self.status, self.expected = int(self.received[9:12]), end + 4 + length - len(self.received)


class _Client:
    """Connections, and what their answers say. `epoll` counts milliseconds, so `select` waits on it: microseconds."""

    def __init__(self, port: int, requests: Sequence[Request]) -> None:
        self.port, self.requests = port, requests
        self.epoll = select.epoll()
        self.busy: dict[int, _Connection] = {}
        self.idle: dict[int, _Connection] = {}
        self.waiting: collections.deque[float] = collections.deque()
        self.sent = 0
        self.reset()

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self.busy.values(), *self.idle.values()):
            connection.socket.close()
        self.epoll.close()

    def reset(self) -> None:
        """Count from here."""
        self.load, self.start, self.cpu_start = Load(), time.perf_counter(), time.process_time()

    def result(self) -> Load:
        """Return what was counted; what is not answered yet is not."""
        self.load.seconds = time.perf_counter() - self.start
        self.load.cpu_seconds = time.process_time() - self.cpu_start
        return self.load

    def send(self, since: float) -> None:
        """Send the next request; past the limit of connections it waits, and its time counts."""
        if not self.idle and len(self.busy) >= MAX_CONNECTIONS:
            self.waiting.append(since)
            return
        self._begin(self.requests[self.sent % len(self.requests)], since)
        self.sent += 1

    def run(self, *, until: float, is_closed_loop: bool, is_draining: bool = False) -> None:
        """Take answers until a time; when draining, until there is no request under way."""
        while (wait := until - time.perf_counter()) > 0 and not (is_draining and not self.busy):
            if not select.select([self.epoll], [], [], wait)[0]:
                return
            for descriptor, event in self.epoll.poll(0):
                if descriptor in self.busy:
                    self._progress(self.busy[descriptor], event, is_closed_loop)
                elif descriptor in self.idle:  # the server ends a connection that was idle for long
                    self._close(self.idle.pop(descriptor))

    def _begin(self, request: Request, since: float) -> None:
        connection = self.idle.popitem()[1] if self.idle else self._connect()
        connection.begin(request, since)
        self.busy[connection.socket.fileno()] = connection
        try:
            is_sent = connection.write()
        except OSError:
            self._retry(connection)
            return
        if not is_sent:
            self.epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _progress(self, connection: _Connection, event: int, is_closed_loop: bool) -> None:
        try:
            if event & select.EPOLLOUT and connection.write():
                self.epoll.modify(connection.socket, select.EPOLLIN)
            if not (event & ~select.EPOLLOUT and connection.read()):
                return
        except OSError:
            if connection.is_reused and not connection.received:
                self._retry(connection)
                return
            connection.status = 0
        now = time.perf_counter()
        self.load.latencies.append(now - connection.since)
        self.load.statuses[connection.request.kind, connection.status] += 1
        del self.busy[connection.socket.fileno()]
        if connection.status and not connection.is_last:
            connection.is_reused = True
            self.idle[connection.socket.fileno()] = connection
        else:
            self._close(connection)
        if is_closed_loop or self.waiting:
            self.send(now if is_closed_loop else self.waiting.popleft())

    def _retry(self, connection: _Connection) -> None:
        """Send again on another connection, as every client does where the server ended an idle one meanwhile."""
        del self.busy[connection.socket.fileno()]
        self._close(connection)
        self._begin(connection.request, connection.since)

    def _connect(self) -> _Connection:
        connection = _Connection(self.port)
        self.epoll.register(connection.socket, select.EPOLLIN)
        return connection

    def _close(self, connection: _Connection) -> None:
        self.epoll.unregister(connection.socket)
        connection.socket.close()
