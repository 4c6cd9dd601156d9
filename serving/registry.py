"""The model registry, as far as a server needs it: an alias to its version, and the files of a version.

Two kinds: an MLflow server over its REST API, and the SQLite store of the repository. MLflow's own client is not used,
because it takes 2 s and 200 MB to import.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from serving.rest import MlflowServer, RestError

LOCAL_STORE = "sqlite:///mlruns/mlflow.db"  # below the current directory


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: Of the registered model.
        version: Its number.
        tags: Among them `onnx.sha256`, `dvc.data`.
    """

    name: str
    version: str
    tags: Mapping[str, str]


class Registry(Protocol):
    """Where versions are."""

    def find(self, name: str, alias: str) -> Version:
        """Return the version an alias points to.

        Raises:
            FileNotFoundError: There is no such model, or no such alias.
            ConnectionError: The registry cannot be asked.
        """

    def fetch(self, version: Version, path: str, target: Path) -> None:
        """Copy a file of a version, such as model.onnx, to `target`.

        Raises:
            FileNotFoundError: The version has no such file.
            ConnectionError: The registry cannot be asked.
        """


def open_registry(uri: str) -> Registry:
    """Return the registry of a tracking URI; "" is the store below the current directory.

    Raises:
        ValueError: It is neither a server nor an SQLite store.
    """
    uri = uri or LOCAL_STORE
    if uri.startswith(("http://", "https://")):
        return ServerRegistry(MlflowServer(uri))
    if uri.startswith("sqlite:///"):
        return LocalRegistry(Path(uri.removeprefix("sqlite:///")))
    raise ValueError(
        f"MLFLOW_TRACKING_URI has the scheme {uri.partition(':')[0]!r}, expected http://HOST:PORT of an MLflow server, "
        "or sqlite:///PATH of a local store"
    )


class ServerRegistry:
    """An MLflow server. It hands out the artifacts itself, wherever it keeps them."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server

    def find(self, name: str, alias: str) -> Version:
        """See Registry."""
        try:
            answer = self.server.call("GET", "registered-models/alias", query={"name": name, "alias": alias})
        except RestError as error:
            if error.status == 404:
                raise _no_model(name, self.server.address) from error
            if error.status == 400:  # MLflow's word for an alias that is not there
                raise _no_alias(name, alias, self.server.address) from error
            raise
        version = answer["model_version"]
        tags = {tag["key"]: tag.get("value", "") for tag in version.get("tags", [])}
        return Version(name, str(version["version"]), tags)

    def fetch(self, version: Version, path: str, target: Path) -> None:
        """See Registry. Over S3 a missing file is an internal error to MLflow, so a ConnectionError here."""
        query = {"name": version.name, "version": version.version, "path": path}
        try:
            self.server.download("model-versions/get-artifact", query=query, target=target)
        except RestError as error:
            if error.status == 404:
                raise _no_file(version, path) from error
            raise


class LocalRegistry:
    """The SQLite store that a pipeline without a server writes, read only."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def find(self, name: str, alias: str) -> Version:
        """See Registry."""
        with self._connected() as connection:
            if not connection.execute("select 1 from registered_models where name = ?", (name,)).fetchone():
                raise _no_model(name, str(self.store))
            query = "select version from registered_model_aliases where name = ? and alias = ?"
            row = connection.execute(query, (name, alias)).fetchone()
            if not row:
                raise _no_alias(name, alias, str(self.store))
            query = "select key, value from model_version_tags where name = ? and version = ?"
            return Version(name, str(row[0]), dict(connection.execute(query, (name, row[0]))))

    def fetch(self, version: Version, path: str, target: Path) -> None:
        """See Registry."""
        source = self._directory(version) / path
        if not source.is_file():
            raise _no_file(version, path, f" in {source.parent}")
        shutil.copyfile(source, target)

    def _directory(self, version: Version) -> Path:
        with self._connected() as connection:
            query = "select coalesce(storage_location, source) from model_versions where name = ? and version = ?"
            location = str(connection.execute(query, (version.name, version.version)).fetchone()[0])
        url = urlsplit(location)
        if url.scheme not in ("", "file"):
            raise FileNotFoundError(
                f"the files of {version.name} version {version.version} are at {location}, which only the MLflow "
                "server can read: set MLFLOW_TRACKING_URI to it"
            )
        return self._moved(Path(unquote(url.path)))

    def _moved(self, directory: Path) -> Path:
        """Return where a directory is now: the store keeps absolute paths, also after the repository has moved."""
        home = self.store.absolute().parent
        if directory.is_dir() or home.name not in directory.parts:
            return directory
        inside = len(directory.parts) - directory.parts[::-1].index(home.name)
        return home.joinpath(*directory.parts[inside:])

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if not self.store.is_file():
            raise FileNotFoundError(
                f"there is no MLflow store {self.store}: run `make pipeline`, or set MLFLOW_TRACKING_URI"
            )
        try:
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(self.store))}?mode=ro", uri=True)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise ConnectionError(f"the MLflow store {self.store} cannot be read: {error}") from error


def _no_model(name: str, place: str) -> FileNotFoundError:
    return FileNotFoundError(f"there is no registered model {name!r} in {place}: register one, or correct the name")


def _no_alias(name: str, alias: str, place: str) -> FileNotFoundError:
    return FileNotFoundError(f"model {name!r} has no alias {alias!r} in {place}: set it in the MLflow UI")


def _no_file(version: Version, path: str, place: str = "") -> FileNotFoundError:
    return FileNotFoundError(f"{version.name} version {version.version} has no {path}{place}")
