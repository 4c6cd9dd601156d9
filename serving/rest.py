"""An MLflow server over HTTP, with the credentials that MLflow's own client takes from the environment."""

import base64
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

TIMEOUT_SECONDS = 10  # of each wait for the server, not of a whole download


class RestError(ConnectionError):
    """The server answers, with an error.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class MlflowServer:
    """The few calls a server of models makes.

    Attributes:
        address: Its URI without user and password.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        self._authorization = _authorization(unquote(parts.username or ""), unquote(parts.password or ""))

    def call(
        self, method: str, route: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Call a route below /api/2.0/mlflow/ and return its JSON.

        Raises:
            RestError: The server answers with an error.
            ConnectionError: It does not answer, or not as an MLflow server does.
        """
        data = json.dumps(body).encode() if body is not None else None
        with self._open(method, f"api/2.0/mlflow/{route}", query, data) as response:
            content = self._read(response)
        try:
            return dict(json.loads(content))
        except ValueError as error:
            raise ConnectionError(
                f"{self.address} answers, but not as an MLflow server does (no JSON): check MLFLOW_TRACKING_URI"
            ) from error

    def download(self, route: str, *, query: Mapping[str, str], target: Path) -> None:
        """Write what a route answers to a file.

        Raises:
            RestError: The server answers with an error.
            ConnectionError: It does not answer, or stops in the middle.
        """
        with self._open("GET", route, query, None) as response, target.open("wb") as file:
            try:
                shutil.copyfileobj(response, file, 1 << 20)
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(error) from error
            expected = response.headers.get("Content-Length")
            if expected and file.tell() != int(expected):  # read(n) does not notice
                raise ConnectionError(f"{self.address} sent {file.tell()} of {expected} bytes of {query['path']}")

    def _open(
        self, method: str, route: str, query: Mapping[str, str] | None, data: bytes | None
    ) -> http.client.HTTPResponse:
        url = f"{self.address}/{route}{'?' + urlencode(query) if query else ''}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)  # never to another host
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer(error) from error
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer(error) from error

    def _refusal(self, error: urllib.error.HTTPError) -> RestError:
        if error.code in (401, 403):
            hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return RestError(
                f"the MLflow server {self.address} refuses the credentials ({error.code}): {hint}", error.code
            )
        try:
            reason = str(json.loads(error.read())["message"]).strip().splitlines()[-1]
        except Exception:  # a proxy's page, or nothing
            reason = error.reason
        return RestError(f"the MLflow server {self.address} answers {error.code}: {reason}", error.code)

    def _no_answer(self, error: Exception) -> ConnectionError:
        reason = getattr(error, "reason", error) or type(error).__name__
        return ConnectionError(f"the MLflow server {self.address} does not answer: {reason}")


def _authorization(username: str, password: str) -> str | None:
    """Return the header, from the URI or the environment. User and password go before a token, as in MLflow."""
    username = username or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if username and password:
        return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
    return f"Bearer {token}" if token else None
