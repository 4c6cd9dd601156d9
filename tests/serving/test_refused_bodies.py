"""What a refused request leaves behind: nothing, not even until the garbage collector looks for it."""

import gc
import threading
import time
import tracemalloc
import urllib.error
import urllib.request

import pytest
import uvicorn
from server_process import free_port
from tiny_onnx import write_onnx

from serving.app import create_app
from serving.deployment import Deployment, load_file
from serving.indexes import Indexes
from serving.settings import read_settings

MEGABYTE = 1 << 20


@pytest.fixture
def port(tmp_path):
    """The application in this process, so that its memory can be seen."""
    model = load_file(write_onnx(tmp_path / "tiny.onnx"))
    number = free_port()
    indexes = Indexes(None, "tiny.onnx")
    app = create_app(Deployment(model), None, indexes, read_settings(["--model", "tiny.onnx"]), None)
    server = uvicorn.Server(uvicorn.Config(app, port=number, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield number
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v2/models/tiny.onnx/infer", b"["), ("/v2/models/tiny.onnx/infer", b" "), ("/v1/embed", b"no image")],
)
def test_a_refused_body_is_freed_at_once(port, path, body):
    body *= 5 * MEGABYTE // len(body)
    refused(port, path, body)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(6):
            refused(port, path, body)
        kept, _ = tracemalloc.get_traced_memory()
        assert kept < 10 * MEGABYTE, "of six times 5 MB, one may still be on its way out"
    finally:
        tracemalloc.stop()
        gc.enable()


def refused(port, path, body):
    with pytest.raises(urllib.error.HTTPError, match="400") as raised:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", body), timeout=20)
    raised.value.close()
