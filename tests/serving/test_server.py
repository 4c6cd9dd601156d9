"""The server as a process, over real sockets: answers, refusals, end."""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server_process import form, picture, serving
from tiny_onnx import SIZE, write_onnx

from serving.formats import choose_media_type, encode_mask
from serving.settings import read_settings

ROOT = Path(__file__).parents[2]
RED = picture((255, 0, 51))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving")
    with serving(write_onnx(directory / "tiny.onnx"), directory) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


def raw(server, *parts, end=False):
    """Send bytes as they are, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        if end:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            if b'"}' in received:
                break
        return received.decode()


def test_classify(server):
    answer = server.request("/v1/classify?top_k=2", RED)
    assert answer.status == 200
    classes = answer.content["predictions"][0]["classes"]
    assert [entry["name"] for entry in classes] == ["cat", "owl"]
    assert classes[0]["probability"] == pytest.approx(2.718282 / (2.718282 + 1 + 1.221403), abs=1e-6)
    assert answer.content["model"]["data_hash"] == "0123456789abcdef0123456789abcdef.dir"
    assert answer.headers["x-model-version"] == answer.content["model"]["version"]
    assert answer.headers["x-data-hash"] == "0123456789abcdef0123456789abcdef.dir"
    assert len(server.request("/v1/classify?top_k=99", RED).content["predictions"][0]["classes"]) == 3


def test_embed(server):
    answer = server.request("/v1/embed", RED)
    assert answer.content["embeddings"][0] == pytest.approx([1, 0, 0.2], abs=1e-6)
    assert answer.headers["x-model-name"] == "tiny.onnx"


def test_arrays(server):
    body, headers = form(RED, picture((0, 0, 0)))
    expected = pytest.approx(np.array([[1, 0, 0.2], [0, 0, 0]]), abs=1e-6)
    answer = server.request("/v1/embed", body, headers | {"Accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(answer.content))
    assert array == expected and array.dtype == np.float32
    answer = server.request("/v1/embed", body, headers | {"Accept": "text/html, application/octet-stream;q=0.5"})
    assert answer.headers["x-shape"] == "2,3"
    assert np.frombuffer(answer.content, "<f4").reshape(2, 3) == expected
    answer = server.request("/v1/classify", body, headers | {"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(answer.content)).sum(axis=1) == pytest.approx([1, 1])
    assert "x-model-version" in answer.headers


def test_classes_and_embeddings_together(server):
    answer = server.request("/v1/classify?top_k=1&embedding=true&normalize=true", *form(RED, picture((0, 9, 0))))
    assert [entry["classes"][0]["name"] for entry in answer.content["predictions"]] == ["cat", "dog"]
    assert answer.content["predictions"][0]["embedding"] == pytest.approx([0.980581, 0, 0.196116], abs=1e-5)
    assert "embedding" not in server.request("/v1/classify", RED).content["predictions"][0]


def test_a_model_of_another_task(server):
    answer = server.request("/v1/segment", RED)
    assert answer.status == 409 and "made for classification: use /v1/classify" in answer.content["detail"]


def test_masks(tmp_path):
    """Left red, right blue, in three forms."""
    image = Image.new("RGB", (SIZE, SIZE), (255, 0, 0))
    image.paste((0, 0, 255), (SIZE // 2, 0, SIZE, SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = np.repeat([[0, 2]], SIZE, axis=0).repeat(SIZE // 2, axis=1)
    with serving(write_onnx(tmp_path / "dense.onnx", is_dense=True), tmp_path) as server:

        def segment(accept, *files):
            return server.request("/v1/segment", *form(*files)[:1], form()[1] | {"Accept": accept}).content

        (mask, black) = segment("", buffer.getvalue(), picture((0, 0, 0)))["masks"]
        assert mask["classes"] == [
            {"index": 0, "name": "cat", "share": 0.5},
            {"index": 2, "name": "owl", "share": 0.5},
        ]
        assert black["classes"] == [{"index": 0, "name": "cat", "share": 1}]
        png = Image.open(io.BytesIO(segment("image/png", buffer.getvalue())))
        assert (np.asarray(png) == expected).all() and png.convert("RGB").getpixel((SIZE - 1, 0)) == (0, 128, 0)
        assert segment("image/png", RED, RED)["masks"], "two images are no PNG"
        assert base64.b64decode(mask["png"]).startswith(b"\x89PNG")
        array = np.load(io.BytesIO(segment("application/x-npy", buffer.getvalue())))
        assert (array == expected[None]).all() and array.dtype == np.uint16
        answer = server.request("/v1/classify", RED)
        assert answer.status == 409 and "made for segmentation: use /v1/segment" in answer.content["detail"]
        assert server.request("/v1/embed", RED).content["embeddings"][0] == pytest.approx([1, 0, 0.2], abs=1e-6)


def test_masks_of_many_classes_have_16_bits():
    mask = np.array([[0, 300], [65535, 1]])
    assert (np.asarray(Image.open(io.BytesIO(encode_mask(mask)))) == mask).all()


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "a/a"),
        ("*/*", "a/a"),
        ("B/b", "b/b"),
        ("b/b;q=0.5, a/a;q=0.4", "b/b"),
        ("c/c, b/b;q=0", "a/a"),
        ("b/b;q=x;;,,", "a/a"),
        ("b/b, a/a", "b/b"),
        ("b/b;q=0.1, */*", "a/a"),
        ("b/b, */*;q=0.1", "b/b"),
    ],
)
def test_what_a_client_accepts(accept, chosen):
    assert choose_media_type(accept, ("a/a", "b/b")) == chosen


def test_health(server):
    assert server.request("/healthz").status == 200
    ready = server.request("/readyz")
    assert ready.status == 200
    assert ready.content["status"] == "ready" and ready.content["error"] is None
    assert ready.content["model"]["name"] == "tiny.onnx"
    assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00$", ready.content["model"]["loaded_at"])


def test_openapi(server):
    paths = server.request("/openapi.json").content["paths"]
    routes = {"/healthz", "/readyz", "/metrics", "/v1/classify", "/v1/embed", "/v1/segment", "/v1/similar"}
    assert routes <= set(paths)
    assert "image/*" in paths["/v1/classify"]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("body", [b"no image", RED[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"GIF89a" + b"\xff" * 50])
@pytest.mark.parametrize("route", ["/v1/classify", "/v1/embed"])
def test_malformed_images(server, route, body):
    answer = server.request(route, body, {"Content-Type": "image/png"})
    assert answer.status == 400
    assert re.match("not an image|a .* damaged header|cannot be decoded: ", answer.content["detail"])
    assert answer.headers["x-model-name"] == "tiny.onnx"


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "1e3"])
def test_malformed_queries(server, top_k):
    assert server.request(f"/v1/classify?top_k={top_k}", RED).status == 422


def test_a_long_body_is_refused_before_it_is_sent(server):
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000000\r\n\r\n"
    answer = raw(server, head)
    assert answer.startswith("HTTP/1.1 413") and "longer than 33,554,432 bytes" in answer
    assert "x-model-version" in answer.lower()


def test_a_long_body_without_a_length_is_refused(server):
    head = b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    try:
        answer = raw(server, head, *[chunk] * 33)
    except ConnectionError:  # it closed while we were sending
        answer = "HTTP/1.1 413"
    assert answer.startswith("HTTP/1.1 413")
    assert server.request("/healthz").status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_not_http(server, request_bytes):
    answer = raw(server, request_bytes, end=True)
    assert answer == "" or answer.startswith("HTTP/1.1 400"), answer
    assert server.request("/healthz").status == 200


def test_a_client_that_hangs_up_in_the_middle(server):
    raw(server, b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nabc", end=True)
    assert server.request("/v1/classify", RED).status == 200


def test_other_routes_and_methods(server):
    assert server.request("/nothing").status == 404
    assert server.request("/v1/classify").status == 405


def test_without_a_secret_no_webhook_is_accepted(server):
    answer = server.request("/hooks/mlflow", b"{}")
    assert answer.status == 503 and "GRPO_RM_WEBHOOK_SECRET" in answer.content["detail"]


def test_an_alias_that_is_not_there_yet(tmp_path):
    with serving("models:/name@champion", tmp_path, MLFLOW_TRACKING_URI="", GRPO_RM_WEBHOOK_SECRET="s") as server:
        content = server.wait_for(lambda content: "there is no MLflow store" in content["error"])
        assert content["status"] == "not ready" and content["model"] is None
        assert server.request("/readyz").status == 503
        answer = server.request("/v1/embed", RED)
        assert answer.status == 503 and "there is no MLflow store mlruns/mlflow.db" in answer.content["detail"]
        assert answer.headers["retry-after"]
        assert server.request("/hooks/mlflow", b"{}").status == 401
        assert server.request("/hooks/mlflow", b"x" * 70_000).status == 413
        assert server.end() == 0


def test_no_traceback_leaves_the_server(tmp_path):
    with serving(write_onnx(tmp_path / "fragile.onnx", is_fragile=True), tmp_path) as server:
        assert server.request("/v1/embed", picture((0, 0, 0))).status == 200
        answer = server.request("/v1/embed", RED)
        assert (answer.status, answer.content) == (500, {"detail": "internal error"})
        assert server.end() == 0
        assert "Traceback" in server.log.read_text(), "it is for the log"


def test_sigterm_ends_after_the_requests_under_way(tmp_path):
    with serving(write_onnx(tmp_path / "tiny.onnx"), tmp_path) as server:
        head = f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(RED)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head + RED[:10])
            server.request("/healthz")
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert server.process.poll() is None
            connection.sendall(RED[10:])
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.process.wait(10) == 0


def test_requests_of_many_clients(server):
    colors = [(value, 0, 255 - value) for value in range(0, 256, 15)]
    answers = {}

    def ask(color):
        answers[color] = server.request("/v1/embed", picture(color)).content["embeddings"][0]

    threads = [threading.Thread(target=ask, args=(color,)) for color in colors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for color in colors:
        assert answers[color] == pytest.approx([value / 255 for value in color], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no model: name one with --model or GRPO_RM_MODEL"),
        (["--model", "nowhere.onnx"], "there is no model file nowhere.onnx"),
        (["--model", "name@champion"], "did you mean models:/name@champion?"),
        (["--model", "models:/name@champion", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000: Cannot assign"),
    ],
)
def test_what_cannot_be_served(arguments, reason, tmp_path):
    done = run(tmp_path, "serving", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and reason in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GRPO_RM_PORT", "70000", "the port is '70000'"),
        ("GRPO_RM_PORT", "²", "the port is"),
        ("GRPO_RM_POLL_SECONDS", "0", "GRPO_RM_POLL_SECONDS is '0'"),
        ("GRPO_RM_POLL_SECONDS", "nan", "GRPO_RM_POLL_SECONDS is 'nan'"),
        ("GRPO_RM_MAX_BATCH", "0", "expected a whole number from 1 to 1,024"),
        ("GRPO_RM_MAX_WAIT_MS", "-1", "expected a number above 0, at most 1000"),
        ("GRPO_RM_POLL_SECONDS", "soon", "GRPO_RM_POLL_SECONDS is 'soon'"),
    ],
)
def test_settings_that_cannot_be_used(monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=reason):
        read_settings(["--model", "x.onnx"])


def test_settings(monkeypatch):
    for name, value in {"MODEL": "a.onnx", "HOST": "0.0.0.0", "PORT": "1", "WEBHOOK_SECRET": "hidden"}.items():
        monkeypatch.setenv(f"GRPO_RM_{name}", value)
    settings = read_settings([])
    assert (settings.model, settings.host, settings.port, settings.poll_seconds) == ("a.onnx", "0.0.0.0", 1, 30)
    assert settings.webhook_secret == "hidden" and "hidden" not in repr(settings)
    assert read_settings(["--model", "b.onnx", "--port", "2"]).port == 2


def run(directory, *command, **environment):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_webhook_command_needs_a_server_and_a_secret(tmp_path):
    server = {"MLFLOW_TRACKING_URI": "http://user:hidden@127.0.0.1:9"}
    for environment, reason in [
        ({}, "names no server"),
        (server, "GRPO_RM_WEBHOOK_SECRET is not set"),
        (server | {"GRPO_RM_WEBHOOK_SECRET": "s"}, "http://127.0.0.1:9 does not answer"),
    ]:
        done = run(tmp_path, "serving.webhook", "register", "--url", "http://x/hooks/mlflow", **environment)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and reason in done.stderr and done.stderr.count("\n") == 1
