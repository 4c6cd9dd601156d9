"""Where MLflow keeps runs and models: a server, or SQLite under mlruns/ of the repository.

`python -m pipelines.tracking.store` brings the local store up to date after the repository was moved.
"""

import functools
import http.client
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.lineage import repository_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_STORE = "mlruns/mlflow.db"  # in the repository
LOCAL_UI = "http://127.0.0.1:5000"  # of `make ui`
ARTIFACTS = "/mlruns/artifacts"
CONTACT_SECONDS = 5
LOCK_SECONDS = 30

# A lost server must hold up nothing for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what fails is said by us, in one line


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite store under mlruns/ of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def store_name() -> str:
    """Return the tracking URI without user and password, and an SQLite store of this repository as a relative path."""
    uri = tracking_uri()
    return LOCAL_STORE if uri == _local_uri() else _without_password(uri).rstrip("/")


def has_store() -> bool:
    """Whether there is a store to ask; an SQLite store is made with the first run."""
    path = tracking_uri().removeprefix("sqlite:///")
    return path == tracking_uri() or Path(path).is_file()


def server_address() -> str | None:
    """Return the address of the tracking server without user and password, or None where there is no server."""
    name = store_name()
    return name if name.startswith(("http://", "https://")) else None


def check_tracking() -> None:
    """Contact the tracking server, where there is one.

    Raises:
        ConnectionError: It does not answer within 5 seconds, or not as an MLflow server does.
    """
    address = server_address()
    if address is None:
        return
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=CONTACT_SECONDS) as response:
            response.read()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it answers; whether it lets us in shows with the first request
            raise _no_answer(address, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(address, error) from error


def use_tracking_store() -> "MlflowClient":
    """Point mlflow at the tracking store, and return a client of it."""
    import mlflow

    if store_name() == LOCAL_STORE:
        relocate_local_store()
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def open_experiment(name: str) -> str:
    """Return the id of the experiment, which is created where there is none."""
    client = use_tracking_store()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    is_local = tracking_uri().startswith("sqlite:")
    return str(client.create_experiment(name, artifact_location=f"{_uri()}{ARTIFACTS}" if is_local else None))


def mlruns() -> Path:
    """Return mlruns/ of the repository, which is created where there is none."""
    directory = repository_root() / "mlruns"
    directory.mkdir(exist_ok=True)
    return directory


def reason(error: BaseException) -> str:
    """Return the first line of the error that was the cause of all others."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def relocate_local_store() -> None:
    """Write where the repository is over where it was: MLflow keeps absolute paths in its database.

    The question whether it was moved is one small query, asked once per process.

    Raises:
        ConnectionError: mlruns/mlflow.db cannot be read or written.
    """
    database = repository_root() / LOCAL_STORE
    if database.is_file():
        _relocate(database, _uri())


@functools.cache
def _relocate(database: Path, root: str) -> None:
    try:
        with closing(sqlite3.connect(database, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            for former in _former_roots(connection, root):
                _replace_root(connection, former, root)
    except sqlite3.Error as error:
        raise ConnectionError(f"the tracking store {database} cannot be used: {error}") from error


def _former_roots(connection: sqlite3.Connection, root: str) -> list[str]:
    """Return the places from which experiments of this store were opened, other than this one, as URIs."""
    if not connection.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
        return []  # another process is creating the store
    query = "select distinct artifact_location from experiments where artifact_location like 'file:///%' || ?"
    roots = [location.removesuffix(ARTIFACTS) for (location,) in connection.execute(query, (ARTIFACTS,))]
    return [former for former in roots if former != root]


def _replace_root(connection: sqlite3.Connection, former: str, root: str) -> None:
    """Replace one root in all text columns, in one transaction. MLflow writes it as a URI and as a path."""
    prefixes = [(f"{old}/mlruns/", f"{new}/mlruns/") for old, new in ((former, root), (_path(former), _path(root)))]
    connection.execute("begin immediate")
    tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f"pragma table_info('{table}')").fetchall():
            for old, new in prefixes if "CHAR" in kind or "TEXT" in kind else ():
                connection.execute(
                    f'update "{table}" set "{column}" = ? || substr("{column}", ?) where substr("{column}", 1, ?) = ?',
                    (new, len(old) + 1, len(old), old),
                )
    connection.execute("commit")


def _uri() -> str:
    return repository_root().as_uri()


def _path(uri: str) -> str:
    return urllib.request.url2pathname(urllib.parse.urlsplit(uri).path)


def _local_uri() -> str:
    return f"sqlite:///{mlruns() / 'mlflow.db'}"


def _without_password(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _no_answer(address: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"the tracking server {address} does not answer: {getattr(error, 'reason', error) or type(error).__name__}. "
        "Start it, or unset MLFLOW_TRACKING_URI to record under mlruns/. Earlier results are safe: `dvc checkout` "
        "brings them back"
    )


if __name__ == "__main__":
    from pipelines.stage import run_stage

    run_stage(relocate_local_store)
