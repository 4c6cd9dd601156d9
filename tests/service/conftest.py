"""Servers that all service tests of a session share."""

from collections.abc import Iterator

import pytest
from servers import BUCKET, S3_CREDENTIALS, Server, mlflow_server, postgres, s3


@pytest.fixture(scope="session")
def team_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow as a team runs it: on PostgreSQL, with the artifacts in S3."""
    root = tmp_path_factory.mktemp("team")
    with postgres(root / "postgres") as database, s3(root / "s3") as storage:
        environment = S3_CREDENTIALS | {"MLFLOW_S3_ENDPOINT_URL": storage}
        with mlflow_server(root / "mlflow", database, f"s3://{BUCKET}", environment) as server:
            yield server
