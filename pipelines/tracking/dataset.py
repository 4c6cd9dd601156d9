"""The prepared data as MLflow's dataset of a run, with what validation found."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.lineage import data_hash

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREPARED, VALIDATION = Path("data/prepared"), Path("reports/validation.json")
COLUMNS = ["id", "split", "label", "width", "height", "bytes", "sha256"]  # of the manifest, that MLflow describes
MAX_VALUE = 500  # characters of a tag that MLflow takes


def log_dataset(client: "MlflowClient", run_id: str, context: str) -> None:
    """Log the prepared data as the dataset of a run: DVC's hash is its digest, `validation.*` are its tags.

    Args:
        client: Of the tracking store.
        run_id: Of the run.
        context: What the data are used for: "training" or "evaluation".
    """
    import pandas as pd
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = json.loads((PREPARED / "dataset.json").read_text(encoding="utf-8"))["name"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # remarks on our own columns and path
        dataset = from_pandas(
            pd.read_parquet(PREPARED / "manifest.parquet", columns=COLUMNS),
            source=str(PREPARED),
            name=name,
            targets="label",
            digest=data_hash(),
        )
        entity = Dataset(**dataset.to_dict())
    tags = {"mlflow.data.context": context}
    if VALIDATION.is_file():
        tags |= validation_tags(json.loads(VALIDATION.read_text(encoding="utf-8")))
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag(key, value[:MAX_VALUE]) for key, value in tags.items()])])


def validation_tags(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what is to be known of a validation at a glance, from the content of `reports/validation.json`."""
    failed = [entry for entry in report["expectations"] if not entry["success"]]
    tags = {
        "validation.passed": str(report["success"]).lower(),
        "validation.expectations": str(report["statistics"]["evaluated"]),
    }
    for severity in ("critical", "warning"):
        if names := _names([entry for entry in failed if entry["severity"] == severity]):
            tags[f"validation.failed_{severity}"] = names
    return tags


def _names(entries: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{entry['table']}.{entry['column']}" for entry in entries)
