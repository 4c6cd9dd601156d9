"""Versions of the registered model: what they hold and what they say of themselves. Aliases are in the next module."""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.lineage import data_hash
from pipelines.onnx_model import INT8, INT8_SELF_TEST, SELF_TEST
from pipelines.tracking.runs import find_run, open_experiment, reason, use_tracking_store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

ONNX_TAG, SELF_TEST_TAG = "onnx.sha256", "self_test.sha256"
INT8_TAG, INT8_SELF_TEST_TAG = "onnx.int8.sha256", "self_test.int8.sha256"  # where it was exported
ONNX_FILE = "model.onnx"  # as mlflow.onnx names it
INT8_FILE, EXTRA_FILES = "model.int8.onnx", "extra_files"  # the int8 file and the self-tests are in this folder
EXAMPLES = 2  # images of the input example; it is stored as text
MAX_DESCRIPTION = 5000  # characters, in PostgreSQL
OWN_TEXT = "*Stage `register` writes the text above at each of its runs. What you write below this line stays.*"
LIBRARIES = ("mlflow", "sqlalchemy", "requests", "urllib3", "botocore", "boto3")  # whose errors are the registry's

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextlib.contextmanager
def contact() -> Iterator[None]:
    """Turn what the registry or its artifact store raises into one line.

    Raises:
        ConnectionError: It did not do what was asked.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        raise ConnectionError(f"the model registry failed: {reason(error)}. Try again when it is back") from error


def model_name(dataset: str) -> str:
    """Return the name of the registered model for a dataset."""
    return f"grpo-rm-{re.sub(r'[^A-Za-z0-9_.-]+', '-', dataset)}"


def find_version(name: str, onnx_sha256: str, int8_sha256: str | None) -> str | None:
    """Return the newest version that holds these bytes and their self-test, or None.

    Args:
        name: Of the registered model.
        onnx_sha256: Of the float32 file.
        int8_sha256: Of the int8 file; None for a version without one.
    """
    versions = use_tracking_store().search_model_versions(f"name = '{name}' and tags.`{ONNX_TAG}` = '{onnx_sha256}'")
    same = [v for v in versions if SELF_TEST_TAG in v.tags and v.tags.get(INT8_TAG) == int8_sha256]
    return max((str(version.version) for version in same), key=int, default=None)


def list_versions(name: str) -> list[str]:
    """Return all versions, oldest first; none where there is no such model."""
    return sorted((str(v.version) for v in use_tracking_store().search_model_versions(f"name = '{name}'")), key=int)


def tags_of(name: str, version: str) -> dict[str, str]:
    """Return the tags of a version that exists."""
    return dict(use_tracking_store().get_model_version(name, version).tags)


def create_version(name: str, onnx_path: Path, *, tags: Mapping[str, str], model_sha256: str, experiment: str) -> str:
    """Log the ONNX model and its self-test to the run that trained it, register it, and return its version.

    Args:
        name: Of the registered model.
        onnx_path: The file; beside it the self-test, and the int8 file and its self-test where it was exported.
        tags: Of the version; with `ONNX_TAG` and `SELF_TEST_TAG` among them, it is found again even if what follows is
            interrupted.
        model_sha256: Of the weights, which finds the training run. Without one, a run named `register` is opened.
        experiment: Where to look, and where to open a run.
    """
    import mlflow

    use_tracking_store()
    training_run = find_run("model.sha256", model_sha256, experiment)
    if training_run:
        with _reopened(training_run):
            uri = _log_model(onnx_path)
    else:
        with mlflow.start_run(experiment_id=open_experiment(experiment), run_name="register", log_system_metrics=False):
            uri = _log_model(onnx_path)
    return str(mlflow.register_model(uri, name, tags=dict(tags)).version)


def describe_model(name: str, text: str) -> None:
    """Describe the registered model where nobody has."""
    client = use_tracking_store()
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, text[:MAX_DESCRIPTION])


def describe_version(name: str, version: str, *, description: str, gate_tags: Mapping[str, str]) -> None:
    """Write the description, and the gate's verdict as tags that begin with `gate`, in the place of older ones.

    What a person wrote stays, below our text.
    """
    client = use_tracking_store()
    present = client.get_model_version(name, version)
    client.update_model_version(name, version, keep_own_text(description, present.description or ""))
    for key in present.tags:
        if key.partition(".")[0] == "gate" and key not in gate_tags:
            client.delete_model_version_tag(name, version, key)
    change_tags(name, version, gate_tags)


def change_tags(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version that exists."""
    client = use_tracking_store()
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def change_description(name: str, version: str, before: str, after: str) -> None:
    """Put a text in the place of another in the description of a version."""
    client = use_tracking_store()
    present = client.get_model_version(name, version).description or ""
    client.update_model_version(name, version, present.replace(before, after)[:MAX_DESCRIPTION])


def keep_own_text(description: str, present: str) -> str:
    """Return a new description with what a person added to the present one."""
    _, is_ours, own = present.partition(OWN_TEXT)
    own = (own if is_ours else present).strip()
    room = MAX_DESCRIPTION - len(OWN_TEXT) - len(own) - 4
    return f"{description[:room]}\n\n{OWN_TEXT}\n\n{own}".rstrip() if room > 0 else present


def record_metrics(name: str, version: str, metrics: Mapping[str, float], *, dataset: str) -> None:
    """Show numbers on the page of a version's model, with the prepared data they were measured on.

    A person may have deleted the run they belong to: then this says so, and the version stays as it is.

    Args:
        name: Of the registered model.
        version: Of it.
        metrics: By name. What is there already is not sent again.
        dataset: Its name. The digest is the DVC hash, as it is in the training run.
    """
    import mlflow
    from mlflow.entities import Dataset, LifecycleStage
    from mlflow.exceptions import MlflowException

    client = use_tracking_store()
    registered = client.get_model_version(name, version)
    run_id, model_id = str(registered.run_id), str(registered.source).rpartition("/")[2]  # model_id of it is empty
    digest = data_hash()
    data = Dataset(dataset, digest, "local", json.dumps({"uri": "data/prepared"})) if digest else None
    try:
        known = {metric.key: metric.value for metric in client.get_logged_model(model_id).metrics or []}
        is_deleted = client.get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        is_deleted = True
    if is_deleted:
        print(f"warning: the run of version {version} was deleted; its page does not show the numbers", file=sys.stderr)
        return
    fresh = {key: value for key, value in metrics.items() if repr(known.get(key)) != repr(float(value))}
    mlflow.log_metrics(fresh, run_id=run_id, model_id=model_id, dataset=data)


@contextlib.contextmanager
def downloaded(name: str, version: str) -> Iterator[Path]:
    """Download a version for a while: the directory with model.onnx and extra_files/.

    Raises:
        FileNotFoundError: It has no model.onnx: another kind of model, or a person deleted its files.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    use_tracking_store()
    uri = f"models:/{name}/{version}"
    try:
        files = {file.path for file in mlflow.artifacts.list_artifacts(uri)}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        files = set()
    if ONNX_FILE not in files:
        raise FileNotFoundError(f"version {version} of {name} has no {ONNX_FILE} in the artifact store")
    with tempfile.TemporaryDirectory() as directory:
        yield Path(mlflow.artifacts.download_artifacts(uri, dst_path=directory))


@contextlib.contextmanager
def _reopened(run_id: str) -> Iterator[None]:
    """Log to a run that has ended, and leave its status and its end as they were."""
    import mlflow

    client = mlflow.MlflowClient()
    info = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id, log_system_metrics=False):
            yield
    finally:
        client.set_terminated(run_id, status=info.status, end_time=info.end_time)


def _log_model(path: Path) -> str:
    """Log an ONNX file, its self-test and its int8 files to the active run, and return the model's URI."""
    import mlflow
    import numpy as np
    import onnx

    model = onnx.load(path)
    stored = path.with_name(SELF_TEST)
    with np.load(stored, allow_pickle=False) as file:
        example: dict[str, NDArray[np.uint8]] = {"images": file["images"][:EXAMPLES]}
    requirements = [f"{package}=={installed_version(package)}" for package in ("onnxruntime", "numpy")]
    with _extra_files(path) as files:
        return str(
            mlflow.onnx.log_model(
                model,
                name="encoder",
                signature=_signature(model),
                input_example=example,
                extra_files=files,
                save_as_external_data=False,
                pip_requirements=requirements,
                step=-1,  # mlflow shows the run's metrics of this step as the model's; they would be those of step 0
            ).model_uri
        )


@contextlib.contextmanager
def _extra_files(onnx_path: Path) -> Iterator[list[str]]:
    """Gather what travels with an ONNX file, under the names it has there."""
    names = {SELF_TEST: SELF_TEST, INT8: INT8_FILE, INT8_SELF_TEST: INT8_SELF_TEST}
    with tempfile.TemporaryDirectory() as directory:
        yield [
            str(shutil.copyfile(file, Path(directory, there)))
            for here, there in names.items()
            if (file := onnx_path.with_name(here)).is_file()
        ]


def _signature(model: "object") -> "ModelSignature":
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def specs(values: Sequence["onnx.ValueInfoProto"]) -> Schema:
        return Schema(
            [
                TensorSpec(
                    np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                    tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim),
                    value.name,
                )
                for value in values
            ]
        )

    graph = model.graph  # type: ignore[attr-defined]
    return ModelSignature(inputs=specs(graph.input), outputs=specs(graph.output))
