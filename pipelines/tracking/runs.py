"""Runs, their metrics and their data.

A tracking server that does not answer stops a stage before its work begins. One that is lost on the way stops nothing:
the stage ends, keeps its result, and says what was not recorded.
"""

import contextlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import Tracking
from pipelines.lineage import data_hash, git_tags, repository_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_RUN_VARIABLE = "GRPO_RM_PARENT_RUN_ID"
LOCAL_STORE = "mlruns/mlflow.db"  # in the repository
CONTACT_SECONDS = 5
FLUSH_SECONDS, FLUSH_METRICS = 5.0, 1000

# A lost server must not hold up a training step for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what fails is said by us, in one line


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite store under mlruns/ of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_store() / 'mlflow.db'}"


def store_name() -> str:
    """Return the tracking URI without user and password, and an SQLite store of this repository as a relative path."""
    uri = tracking_uri()
    if uri == f"sqlite:///{_store() / 'mlflow.db'}":
        return LOCAL_STORE
    return _without_password(uri)


def has_store() -> bool:
    """Whether there is a store to ask; an SQLite store is made with the first run."""
    path = tracking_uri().removeprefix("sqlite:///")
    return path == tracking_uri() or Path(path).is_file()


def check_tracking() -> None:
    """Contact the tracking server, where there is one.

    Raises:
        ConnectionError: It does not answer within 5 seconds, or not as an MLflow server does.
    """
    address = _without_password(tracking_uri()).rstrip("/")
    if not address.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=CONTACT_SECONDS) as response:
            response.read()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it answers; whether it lets us in shows with the first request
            raise _no_answer(address, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(address, error) from error


def _without_password(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _no_answer(address: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"the tracking server {address} does not answer: {getattr(error, 'reason', error) or type(error).__name__}. "
        "Start it, or unset MLFLOW_TRACKING_URI to record under mlruns/. Earlier results are safe: `dvc checkout` "
        "brings them back"
    )


class Run:
    """One MLflow run. Its methods never raise when the server is lost: they warn once, and try again at the end."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._waiting: list[tuple[str, float, int, int]] = []
        self._artifacts: list[tuple[Path, str | None]] = []
        self._tags: dict[str, str] = {}
        self._flushed = time.monotonic()
        self._is_lost = False

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step. They are sent together every few seconds."""
        now = int(time.time() * 1000)
        self._waiting += [(name, value, now, step) for name, value in metrics.items()]
        if len(self._waiting) >= FLUSH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def log_artifacts(self, *paths: Path, folder: str | None = None) -> None:
        """Record files, or all files of directories, when the run ends."""
        self._artifacts += [(path, folder) for path in paths]

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run when it ends."""
        self._tags |= tags

    def flush(self, *, is_last: bool = False) -> None:
        """Send what waits."""
        self._flushed = time.monotonic()
        if self._is_lost and not is_last:
            return
        self._is_lost = False
        from mlflow.entities import Metric

        while self._waiting and not self._is_lost:
            some = self._waiting[:FLUSH_METRICS]
            self._attempt(self.client.log_batch, self.run_id, [Metric(*metric) for metric in some])
            self._waiting = self._waiting if self._is_lost else self._waiting[FLUSH_METRICS:]

    def close(self, status: str) -> None:
        """Send everything and end the run."""
        import mlflow

        self.flush(is_last=True)
        for name, value in self._tags.items():
            self._attempt(self.client.set_tag, self.run_id, name, value)
        for path, folder in self._artifacts:
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            self._attempt(log, self.run_id, str(path), folder)
        self._attempt(mlflow.end_run, status)
        if self._is_lost:
            print(f"warning: run {self.run_id} is incomplete in MLflow; results are kept", file=sys.stderr)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self._is_lost:
            return
        try:
            action(*arguments)
        except Exception as error:  # whatever the store raises, the stage's own result matters more
            self._is_lost = True
            print(f"warning: tracking failed, the stage goes on: {_reason(error)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def start_run(
    stage: str, tracking: Tracking, parameters: Mapping[str, Any], *, context: str, resume: str | None = None
) -> Iterator[Run]:
    """Open an MLflow run for a stage, with its parameters, the prepared data and its DVC hash, and system metrics.

    Args:
        stage: The DVC stage, which is also the name of the run.
        tracking: Experiment and interval of the system metrics.
        parameters: Nested mapping; logged flat, with dots.
        context: What the data are used for: "training" or "evaluation".
        resume: Id of the run to go on with, if the store has it: parameters and data are recorded there already.

    Raises:
        ConnectionError: The tracking store cannot be used.
    """
    import mlflow

    os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = str(tracking.system_metrics_interval)
    try:
        client = use_tracking_store()
        known = resume if resume and _has_run(client, resume) else None
        parent = os.environ.get(PARENT_RUN_VARIABLE)
        active = mlflow.start_run(
            run_id=known,
            experiment_id=open_experiment(tracking.experiment),
            run_name=stage,
            parent_run_id=parent,
            tags={"dvc.stage": stage, **git_tags(), **({"mlflow.parentRunId": parent} if parent else {})},
            log_system_metrics=True,
        )
        if known is None:
            mlflow.log_params(flatten(parameters))
            _log_dataset(context)
    except Exception as error:
        with contextlib.suppress(Exception):  # the store may be gone by now
            mlflow.end_run("FAILED")
        raise ConnectionError(f"the tracking store {store_name()} refuses a run: {_reason(error)}") from error
    run = Run(client, active.info.run_id)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.close("FINISHED")


def _has_run(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat


def use_tracking_store() -> "MlflowClient":
    """Point mlflow at the tracking store, and return a client of it."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def find_run(tag: str, value: str, experiment: str) -> str | None:
    """Return the id of the newest finished run with a tag, or None."""
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    runs = use_tracking_store().search_runs([open_experiment(experiment)], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def open_experiment(name: str) -> str:
    """Return the id of the experiment, which is created where there is none."""
    client = use_tracking_store()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    is_local = tracking_uri().startswith("sqlite:")
    return str(
        client.create_experiment(name, artifact_location=(_store() / "artifacts").as_uri() if is_local else None)
    )


def _store() -> Path:
    store = repository_root() / "mlruns"
    store.mkdir(exist_ok=True)
    return store


def _log_dataset(context: str) -> None:
    import json

    import mlflow
    import pandas as pd
    from mlflow.data.pandas_dataset import from_pandas

    prepared = Path("data/prepared")
    name = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))["name"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # remarks on our own columns and path
        dataset = from_pandas(
            pd.read_parquet(prepared / "manifest.parquet"),
            source=str(prepared),
            name=name,
            targets="label",
            digest=data_hash(),
        )
        mlflow.log_input(dataset, context=context)


def _reason(error: BaseException) -> str:
    """Return the first line of the error that was the cause of all others."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error) or type(error).__name__).strip().splitlines()[0]
