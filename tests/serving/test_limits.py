"""Strangers, over real sockets: what they send is bounded, what they hold is taken back, and they are told why."""

import asyncio
import contextlib
import io
import re
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from PIL import Image
from server_process import form, free_port, picture, serving
from tiny_onnx import write_onnx

from serving.access import ApiKeys
from serving.admission import Admission
from serving.protocol import bounded_protocol
from serving.settings import Limits

RED = picture((255, 0, 51))
KEY, OTHER = "k" * 24, "o" * 24


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with small limits."""
    directory = tmp_path_factory.mktemp("limits")
    limits = {"MAX_SECONDS": "1", "MAX_BODY_BYTES": "100000", "MAX_IMAGES": "3", "MAX_PIXELS": "10000", "QUEUE": "4"}
    environment = {f"GRPO_RM_{name}": value for name, value in limits.items()}
    with serving(write_onnx(directory / "tiny.onnx"), directory, **environment) as server:
        yield server
        assert server.request("/v1/embed", RED).status == 200
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        yield connection


def received(connection) -> bytes:
    """Return everything until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def head(length: int | str = 1000, route="/v1/embed") -> bytes:
    return f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_several_images(server):
    answer = server.request("/v1/embed?normalize=true", *form(RED, picture((0, 0, 0)), picture((0, 8, 6))))
    assert answer.content["embeddings"] == [
        pytest.approx([0.980581, 0, 0.196116], abs=1e-5),
        [0, 0, 0],
        pytest.approx([0, 0.8, 0.6], abs=1e-6),
    ]


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (*form(RED, RED, RED, RED), 413, "the form has more than 3 files"),
        (*form(*[RED] * 9), 413, "the form has more than 3 files"),
        (*form(), 400, "the form has no file"),
        (*form(RED, name='name="image"'), 400, "the form cannot be read: it is damaged|the form has no file"),
        (*form(RED, b""), 400, "image 2 of 2 is empty"),
        (*form(RED, b"no image"), 400, "image 2 of 2: not an image: none of"),
        (*form(RED, content_type="multipart/form-data"), 400, "Missing boundary"),
        (*form(RED, content_type="multipart/form-data; boundary=b; charset=idna"), 200, ""),
        (*form(b"", name='name="\xff"', content_type="multipart/form-data; boundary=b; charset=punycode"), 400, "form"),
        (b"--b\r\nnonsense", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "the form"),
        (b"", {}, 400, "the body is empty: send one image file as the body"),
        (b"{}", {"Content-Type": "application/json"}, 415, "arrays go to /v2"),
        (RED, {"Content-Type": "application/x-www-form-urlencoded"}, 200, ""),  # what curl --data-binary says
        (picture((1, 2, 3), size=(101, 100)), {}, 400, "the PNG has 101 x 100 pixels, expected at most 10,000"),
    ],
)
def test_bodies(server, body, headers, status, reason):
    answer = server.request("/v1/embed", body, headers)
    assert answer.status == status, answer.content
    assert answer.headers["x-model-name"] == "tiny.onnx"
    assert re.search(reason, answer.content.get("detail", "")), answer.content


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once(server):
    buffer = io.BytesIO()
    Image.new("L", (96, 96), 90).save(buffer, "JPEG", progressive=True)
    file = buffer.getvalue()
    assert server.request("/v1/embed", file).status == 200
    scan = file.rindex(b"\xff\xda")
    bomb = file[:scan] + file[scan:-2] * ((100_000 - len(file)) // (len(file) - scan)) + b"\xff\xd9"
    assert bomb.count(b"\xff\xda") > 100, "else this shows nothing"
    answer = server.request("/v1/embed", bomb)
    assert answer.status == 400 and " scans of 9,216 pixels, expected about 10" in answer.content["detail"]


def test_a_body_that_does_not_arrive(server):
    with connected(server) as connection:
        start = time.monotonic()
        connection.sendall(head() + b"slow")
        answer = received(connection)
        assert time.monotonic() - start < 4
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 1 seconds" in answer


@pytest.mark.parametrize("sent", [b"", b"POST /v1/embed HTTP/1.1\r\nX-Slow: "])
def test_headers_that_do_not_arrive(server, sent):
    with connected(server) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        assert received(connection) == b""
        assert time.monotonic() - start < 4


def test_a_client_that_hangs_up_in_the_middle_of_its_body(server):
    for _ in range(3):
        with connected(server) as connection:
            connection.sendall(head() + b"half")
            time.sleep(0.02)
    wait_until(lambda: 'route="/v1/embed",status="499"} 3.0' in metrics(server))


def test_nothing_more_is_done_for_a_client_that_hangs_up():
    """Nor is it answered. Its connection, which tells, is uvicorn's; what it asked for takes long."""
    sent, events = [], []

    async def app(_scope, receive, _send):
        await receive()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async def run():
        connection = SimpleNamespace(when_lost=None)
        scope = {"type": "http", "method": "POST", "path": "/v1/embed", "state": {"connection": connection}}
        admission = Admission(app, Limits(), max_requests=1)

        async def receive():
            asyncio.get_running_loop().call_later(0.05, connection.when_lost)
            return {"type": "http.request", "body": b"abc"}

        await asyncio.wait_for(admission(scope, receive, sent.append), 5)
        return admission.requests, admission.body_bytes, connection.when_lost

    assert asyncio.run(run()) == (0, 0, None)
    assert (sent, events) == ([], ["cancelled"])


def metrics(server) -> str:
    return server.request("/metrics").content.decode()


@pytest.fixture(scope="module")
def flood():
    """A server whose every answer is larger than all buffers between it and a client."""

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    config = uvicorn.Config(app, port=free_port(), http=bounded_protocol(0.5), lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("end", ["", "Connection: close\r\n"])
def test_an_answer_that_is_not_taken(flood, end):
    """The server gives up a client that asks and never reads; what it had for it is forgotten."""
    wait_until(lambda: flood.started)
    with socket.create_connection(("127.0.0.1", flood.config.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: x\r\n{end}\r\n".encode())
        wait_until(lambda: flood.server_state.connections)
        start = time.monotonic()
        wait_until(lambda: not flood.server_state.connections, seconds=15)
        assert 4 < time.monotonic() - start < 13


def test_too_many_requests_on_one_connection(server):
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
        assert b"Invalid HTTP request" in received(connection)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 100_000,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 500_000,
        b"GET /" + b"a" * 500_000,
        b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        + b"X-A: b\r\n" * 100_000,
    ],
    ids=["many headers", "a long header", "a long path", "trailers"],
)
def test_headers_without_end(server, sent):
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        answer = received(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:100]


def test_slow_clients_take_no_place_of_others(server):
    with contextlib.ExitStack() as stack:
        for _ in range(6):  # over the queue of 4
            stack.enter_context(connected(server)).sendall(head() + b"half")
        time.sleep(0.1)
        assert server.request("/v1/embed", RED).status == 200


def test_the_bodies_under_way_are_bounded(server):
    """Each is within the limit, all together are not."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connected(server)).sendall(head(99_999) + bytes(99_000))
        time.sleep(0.2)
        answer = server.request("/v1/embed", bytes(99_000))
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert "the bodies of other requests take all the memory" in answer.content["detail"]
        assert server.request("/healthz").status == server.request("/readyz").status == 200
    wait_until(lambda: server.request("/v1/embed", RED).status == 200)


def test_over_the_queue_clients_are_told_to_come_back():
    """Before their bodies are read; but a webhook finds its place, and takes none of others."""
    entered, answers = [], []

    async def app(scope, receive, _send):
        while (await receive()).get("more_body"):
            pass
        entered.append(scope["path"])
        await asyncio.sleep(0.2)

    async def receive():
        return {"type": "http.request", "body": b"abc"}

    async def send(message):
        answers.append(message.get("status") or message["body"].decode())

    async def never():
        raise AssertionError("the body is read")

    async def run():
        admission = Admission(app, Limits(), max_requests=2)

        def ask(path, receive=receive):
            return asyncio.create_task(admission({"type": "http", "method": "POST", "path": path}, receive, send))

        under_way = [ask("/hooks/mlflow"), ask("/v1/embed"), ask("/v2/models/x/infer")]
        await asyncio.sleep(0.05)
        await ask("/v1/embed", never)
        await asyncio.gather(*under_way, ask("/hooks/mlflow"))
        await ask("/v1/embed")
        return admission.requests, admission.body_bytes

    assert asyncio.run(run()) == (0, 0)
    assert sorted(entered) == ["/hooks/mlflow"] * 2 + ["/v1/embed"] * 2 + ["/v2/models/x/infer"]
    assert answers == [503, '{"detail":"2 requests are under way: try again later"}']


def wait_until(condition, seconds=10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_metrics(server):
    server.request("/v1/embed", RED)
    server.request("/v1/embed", b"no image")
    server.request("/some/path/of/a/stranger")
    text = metrics(server)
    for line in (
        'grpo_rm_requests_total{method="POST",route="/v1/embed",status="200"} ',
        'grpo_rm_requests_total{method="POST",route="/v1/embed",status="400"} ',
        'grpo_rm_requests_total{method="other",route="other",status="404"} ',
        'grpo_rm_request_seconds_bucket{le="0.1",route="/v1/embed"} ',
        "grpo_rm_batch_images_count ",
        "grpo_rm_pending_images 0.0",
        'grpo_rm_model_info{data_hash="0123456789abcdef0123456789abcdef.dir",',
        "grpo_rm_follow_error 0.0",
        'grpo_rm_reloads_total{outcome="live"} 0.0',
        "process_resident_memory_bytes ",
    ):
        assert line in text, line
    assert "stranger" not in text


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# the first\n{KEY}  # of the nightly job\n")
    return path


def test_api_keys(tmp_path, keys):
    onnx = write_onnx(tmp_path / "tiny.onnx")

    def status(route, **headers):
        return server.request(route, RED if route.startswith("/v") else None, headers).status

    with serving(onnx, tmp_path, GRPO_RM_API_KEYS_FILE=str(keys)) as server:
        assert status("/v1/embed") == status("/metrics") == status("/openapi.json") == 401
        assert status("/v1/embed", Authorization=f"Bearer {KEY}x") == status("/v1/embed", Authorization=KEY) == 401
        assert status("/v1/embed", **{"X-API-Key": ""}) == status("/v1/embed", **{"X-API-Key": "ä"}) == 401
        assert status("/v1/embed", Authorization=f"Bearer {KEY}") == status("/v1/embed", **{"X-API-Key": KEY}) == 200
        assert status("/healthz") == status("/readyz") == 200
        answer = server.request("/v1/embed", RED)
        assert "no valid API key" in answer.content["detail"] and answer.headers["www-authenticate"] == "Bearer"
        assert status("/v1/embed", **{"X-API-Key": OTHER}) == 401
        keys.write_text(f"{KEY}\n{OTHER}\n")
        assert status("/v1/embed", **{"X-API-Key": OTHER}) == status("/v1/embed", **{"X-API-Key": KEY}) == 200
        keys.write_text(f"{OTHER}\n")
        assert status("/v1/embed", **{"X-API-Key": KEY}) == 401
        keys.write_text("\n")
        assert status("/v1/embed", **{"X-API-Key": OTHER}) == 200, "a mistake locks nobody out"
        assert "the API keys stay as they are" in server.log.read_text()
        keys.unlink()
        assert status("/v1/embed", **{"X-API-Key": OTHER}) == 200
        assert KEY not in server.log.read_text() and OTHER not in server.log.read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no key, expected 16 ASCII characters"),
        ("# none\n", "has no key"),
        (f"{KEY}\nshort\n", "line 2 of .* is no key"),
        ("ä" * 20, "line 1 of .* is no key"),
    ],
)
def test_keys_that_cannot_be_used(keys, text, reason):
    keys.write_text(text)
    with pytest.raises(ValueError, match=reason):
        ApiKeys(keys)


def test_keys_that_are_not_there(tmp_path):
    with pytest.raises(OSError, match=r"GRPO_RM_API_KEYS_FILE.* cannot be read: No such file"):
        ApiKeys(tmp_path / "keys")
