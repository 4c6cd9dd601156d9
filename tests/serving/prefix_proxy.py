"""A reverse proxy before the server, as people have them: below a path, and at times busy."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "/models/tiny"


class Proxy(ThreadingHTTPServer):
    """Forwards to a port; `busy` requests below /v1 are refused first."""

    daemon_threads = True
    busy = 0

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = port
        self.url = f"http://127.0.0.1:{self.server_port}{PREFIX}/"


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removeprefix(PREFIX)
        if path == self.path:
            return self._answer(404, b"outside of the prefix", {})
        if self.server.busy and path.startswith("/v1/"):
            self.server.busy -= 1
            return self._answer(503, b'{"detail": "too many images wait"}', {"Retry-After": "1"})
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=20)
        connection.request(self.command, path, body, dict(self.headers))
        with contextlib.closing(connection), connection.getresponse() as response:
            return self._answer(response.status, response.read(), dict(response.getheaders()))

    def do_POST(self) -> None:
        self.do_GET()

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def proxying(port: int) -> Iterator[Proxy]:
    with Proxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
