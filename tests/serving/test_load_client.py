"""The benchmark's client, against a server of a few lines: what it counts, and from when."""

import contextlib
import socket
import threading
import time

import pytest

from benchmarks.load import closed_loop, open_loop, post

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BODY = bytes(range(256)) * 4096  # longer than a socket takes at once


class Server(threading.Thread):
    """Answers one request after the other; a stall before the one of that number."""

    def __init__(self, *, stall=(-1, 0.0), answers_per_connection=10**9, answer=ANSWER):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.stall, self.answers_per_connection, self.answer = stall, answers_per_connection, answer
        self.lock, self.count = threading.Lock(), 0

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            for _ in range(self.answers_per_connection):
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split()[1])
                if not line:
                    return
                if len(stream.read(length)) < length:
                    return  # the client is done
                with self.lock:
                    if self.count == self.stall[0]:
                        time.sleep(self.stall[1])
                    self.count += 1
                connection.sendall(self.answer)


@pytest.fixture
def start():
    servers = []

    def started(**options):
        servers.append(Server(**options))
        servers[-1].start()
        return servers[-1]

    yield started
    for server in servers:
        server.listener.close()


def test_closed_loop_counts_answers(start):
    server = start()
    load = closed_loop(server.port, [post("/", BODY)], clients=3, seconds=0.3, warm_up=0.1).check()
    assert 0 < len(load.latencies) < server.count, "those of the warm-up do not count"
    assert 0 < load.rate < 20_000 and 0 < load.quantile(0.5) <= load.quantile(0.99) <= 1000


def test_a_stall_is_seen_by_all_that_were_due_meanwhile(start):
    load = open_loop(start(stall=(20, 0.4)).port, [post("/", b"x")], rate=100, seconds=1).check()
    late = sum(latency > 0.1 for latency in load.latencies)
    assert late >= 10, "a client that waits for the answer would have seen one"
    assert 60 < len(load.latencies) < 150


def test_a_connection_that_the_server_ends_is_opened_anew(start):
    load = closed_loop(start(answers_per_connection=5).port, [post("/", b"x")], clients=2, seconds=0.2).check()
    assert len(load.latencies) > 5


def test_a_refusal_is_a_failure(start):
    answer = ANSWER.replace(b"200 OK", b"503 Service Unavailable")
    load = open_loop(start(answer=answer).port, [post("/", b"x", kind="embed")], rate=50, seconds=0.2)
    assert set(load.statuses) == {("embed", 503)}
    with pytest.raises(RuntimeError, match="some failed"):
        load.check()
