"""Servers that all service tests of a session share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import (
    BUCKET,
    S3_CREDENTIALS,
    Server,
    answers,
    free_port,
    mlflow_server,
    postgres,
    postgres_directories,
    s3,
    serving,
)


@pytest.fixture(scope="session")
def team_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow as a team runs it: on PostgreSQL, with the artifacts in S3."""
    root = tmp_path_factory.mktemp("team")
    with postgres(root / "postgres") as database, s3(root / "s3") as storage:
        environment = S3_CREDENTIALS | {"MLFLOW_S3_ENDPOINT_URL": storage}
        with mlflow_server(root / "mlflow", database, f"s3://{BUCKET}", environment) as server:
            yield server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server; yields the address of its API. On a busy machine it finds SQLite locked, so not on SQLite."""
    home = tmp_path_factory.mktemp("prefect")
    if not postgres_directories():
        yield from _prefect_server(home, {})
        return
    with postgres(tmp_path_factory.mktemp("prefect-database")) as database:
        url = database.replace("postgresql://", "postgresql+asyncpg://")
        yield from _prefect_server(home, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url})


def _prefect_server(home: Path, database: dict[str, str]) -> Iterator[str]:
    port = free_port()
    environment = database | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "3",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "1",
    }
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving(Server(command, url, lambda: answers(f"{url}/health"), home / "log", environment)):
        yield url
