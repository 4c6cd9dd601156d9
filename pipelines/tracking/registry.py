"""Versions of the registered model, and the aliases `challenger` and `champion`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.tracking.runs import find_run, open_experiment, use_tracking_store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CHALLENGER, CHAMPION = "challenger", "champion"
ONNX_TAG = "onnx.sha256"


@dataclass(frozen=True)
class Champion:
    """The version that serves now, and its ONNX file."""

    version: str
    onnx: Path


def find_version(name: str, onnx_sha256: str) -> str | None:
    """Return the version of the registered model that holds these bytes, or None."""
    versions = use_tracking_store().search_model_versions(f"name = '{name}' and tags.`{ONNX_TAG}` = '{onnx_sha256}'")
    return max((str(version.version) for version in versions), key=int, default=None)


def create_version(name: str, onnx_path: Path, *, tags: Mapping[str, str], model_sha256: str, experiment: str) -> str:
    """Log the ONNX model to the run that trained it, register it, and return its version.

    Args:
        name: Of the registered model.
        onnx_path: The file.
        tags: Of the version; with `ONNX_TAG` among them, it is found again even if what follows is interrupted.
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


def describe_version(name: str, version: str, *, description: str, gate_tags: Mapping[str, str]) -> None:
    """Write the gate's verdict: the description, and the tags that begin with `gate`, in the place of older ones."""
    client = use_tracking_store()
    client.update_model_version(name, version, description)
    for key in client.get_model_version(name, version).tags:
        if key.partition(".")[0] == "gate" and key not in gate_tags:
            client.delete_model_version_tag(name, version, key)
    for key, value in gate_tags.items():
        client.set_model_version_tag(name, version, key, value)


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias to a version."""
    use_tracking_store().set_registered_model_alias(name, alias, version)


def aliases_of(name: str, version: str) -> list[str]:
    """Return the aliases of a version, sorted."""
    aliases = use_tracking_store().get_registered_model(name).aliases
    return sorted(alias for alias, pointed in aliases.items() if str(pointed) == version)


def find_champion(name: str) -> Champion | None:
    """Download the version with the alias `champion`, or return None where there is none."""
    import mlflow

    client = use_tracking_store()
    registered = client.search_registered_models(f"name = '{name}'")
    # the aliases are on the model: search_model_versions returns none
    version = registered[0].aliases.get(CHAMPION) if registered else None
    if version is None:
        return None
    directory = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))
    return Champion(str(version), directory / "model.onnx")


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
    """Log an ONNX file to the active run, and return the model's URI."""
    import mlflow
    import onnx

    model = onnx.load(path)
    requirements = [f"{package}=={installed_version(package)}" for package in ("onnxruntime", "numpy")]
    return str(
        mlflow.onnx.log_model(
            model,
            name="encoder",
            signature=_signature(model),
            save_as_external_data=False,
            pip_requirements=requirements,
        ).model_uri
    )


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
