"""Servers that are not what they should be. A real MLflow server and a real store are asked elsewhere."""

import base64
import contextlib
import http.server
import threading
from pathlib import Path

import pytest
from server_process import free_port

from serving.registry import LocalRegistry, Version, open_registry

VERSION = Version("name", "1", {})


@contextlib.contextmanager
def answering(status=200, body=b"{}", headers=None):
    """Serve one answer to everything, and collect what is asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def test_a_server_that_is_down():
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"the MLflow server {uri} does not answer: .*refused"):
        open_registry(uri).find("name", "champion")


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"<html>", "not as an MLflow server does"),
        (401, b"", "refuses the credentials .401.: set MLFLOW_TRACKING_USERNAME"),
        (502, b"<html>", "answers 502: Bad Gateway"),
        (500, b'{"message": "Traceback:\\n the cause"}', "answers 500:  ?the cause"),
    ],
)
def test_a_server_that_is_no_mlflow(status, body, reason):
    with answering(status, body) as (uri, _), pytest.raises(ConnectionError, match=reason):
        open_registry(uri).find("name", "champion")


def test_a_download_that_breaks_off(tmp_path):
    with (
        answering(200, b"half", {"Content-Length": "8"}) as (uri, _),
        pytest.raises(ConnectionError, match="4 of 8 bytes"),
    ):
        open_registry(uri).fetch(VERSION, "model.onnx", tmp_path / "model.onnx")


def test_credentials(monkeypatch):
    def sent(uri_of=lambda uri: uri):
        with answering(404) as (uri, asked), contextlib.suppress(OSError):
            open_registry(uri_of(uri)).find("a b", "champion")
        return asked[0][1].get("Authorization")

    def basic(text):
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert sent() is None
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    assert sent() == "Bearer token"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pässword")
    assert sent() == basic("user:pässword")
    assert sent(lambda uri: uri.replace("//", "//me:p%40ss@")) == basic("me:p@ss")


def test_credentials_stay_with_their_server_and_out_of_messages(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    with answering() as (other, asked), answering(302, b"", {"Location": f"{other}/elsewhere"}) as (uri, first):
        with pytest.raises(KeyError):
            open_registry(uri).find("name", "champion")
        assert "Authorization" in first[0][1]
        assert "Authorization" not in asked[0][1]
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError) as caught:
        open_registry(uri).find("name", "champion")
    assert "secret" not in str(caught.value)


def test_stores_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no MLflow store mlruns/mlflow\.db: run `make pipeline`"):
        open_registry("").find("name", "champion")
    store = tmp_path / "mlflow.db"
    store.write_bytes(b"no database, but long enough to be one" * 100)
    with pytest.raises(ConnectionError, match="cannot be read: file is not a database"):
        open_registry(f"sqlite:///{store}").find("name", "champion")
    assert isinstance(open_registry("sqlite:///relative.db"), LocalRegistry)
    assert open_registry("sqlite:////absolute.db").store == Path("/absolute.db")
    with pytest.raises(ValueError, match="has the scheme 'mysql', expected http"):
        open_registry("mysql://user:secret@host/db")
