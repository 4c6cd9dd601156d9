"""Real servers for tests: on free ports of 127.0.0.1, ended with all their processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

BUCKET = "mlflow"
S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
WEBHOOKS = {  # of a server that may call other servers of this machine
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # seconds until a new webhook is called
}
SECONDS_TO_START = 90


class Server:
    """A server with all its processes; `uri` stays the same when it is started again."""

    def __init__(
        self, command: list[str], uri: str, is_ready: Callable[[], bool], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.command, self.uri, self.is_ready, self.log, self.environment = command, uri, is_ready, log, environment

    def start(self) -> None:
        """Start it, in a process group of its own, and wait until it is ready."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(lambda: self.process.poll() is not None or self.is_ready(), seconds=SECONDS_TO_START)
        assert self.process.poll() is None, self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End all its processes; with SIGKILL, as a crash does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(timeout=30)


@contextmanager
def serving(server: Server, ending: signal.Signals = signal.SIGKILL) -> Iterator[Server]:
    """Start a server and end it after the block."""
    try:
        server.start()
        yield server
    finally:
        server.end(ending)


def free_port() -> int:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ConnectionError, TimeoutError, urllib.error.URLError):
            if condition():
                return
        time.sleep(0.1)
    raise TimeoutError


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """A new PostgreSQL cluster without its guards against power loss; yields the URL of its database."""
    binaries, port = find_postgres(), free_port()
    as_user = own_by_postgres(directory) if os.geteuid() == 0 else []  # it refuses to run as root
    initdb = [*as_user, binaries / "initdb", "--pgdata", directory / "data", "--auth=trust", "--username=mlflow"]
    done = subprocess.run([*initdb, "--no-sync"], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command = [*as_user, str(binaries / "postgres"), "-D", str(directory / "data"), "-k", str(directory)]
    for setting in (f"port={port}", "listen_addresses=127.0.0.1", "fsync=off", "full_page_writes=off"):
        command += ["-c", setting]
    ready = [str(binaries / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]
    uri = f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    server = Server(command, uri, lambda: subprocess.run(ready, check=False).returncode == 0, directory / "log", {})
    with serving(server, ending=signal.SIGQUIT):  # at once, and without leaving shared memory behind
        yield uri


def own_by_postgres(directory: Path) -> list[str]:
    """Make a directory for the user postgres; return how a command is run as that user."""
    directory.mkdir(exist_ok=True)
    shutil.chown(directory, "postgres", "postgres")
    for parent in directory.parents:
        if parent.stat().st_mode & 0o001 == 0:  # pytest keeps its directories to their owner
            parent.chmod(parent.stat().st_mode | 0o001)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def find_postgres() -> Path:
    """Return the directory of PostgreSQL's programs, or skip the test."""
    if not (directories := postgres_directories()):
        pytest.skip("no PostgreSQL: neither initdb in PATH nor /usr/lib/postgresql/*/bin (Debian: postgresql)")
    return directories[-1]


def postgres_directories() -> list[Path]:
    """Return where PostgreSQL's programs are, the newest last."""
    found = shutil.which("initdb")
    return [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def s3(directory: Path) -> Iterator[str]:
    """An S3 server with the bucket `mlflow`; yields its URL."""

    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    directory.mkdir(exist_ok=True)
    with serving(Server(command, uri, lambda: answers(f"{uri}/moto-api/"), directory / "log", {})):
        request = urllib.request.Request(f"{uri}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            yield uri


@contextmanager
def mlflow_server(
    directory: Path, backend_uri: str, artifacts: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """An MLflow server that passes the artifacts of its clients on, and calls webhooks."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    directory.mkdir(exist_ok=True)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend_uri, "--artifacts-destination", artifacts]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **WEBHOOKS}
    settings |= environment or {}
    with serving(Server(command, uri, lambda: answers(f"{uri}/health"), directory / "log", settings)) as server:
        yield server


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=1) as response:
        return bool(response.status == 200)
