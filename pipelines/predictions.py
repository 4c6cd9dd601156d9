"""What the models say about all images, and the Parquet files that keep it, so that no later question needs a GPU."""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import softmax

from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import read_ids
from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from grpo_rm.evaluation.robustness import Answers
from grpo_rm.inference import Predictions, best_device, predict_all
from pipelines.batches import PREPARED, evaluation_batches

Outputs = dict[str, Predictions]  # by split, or extra set
SPLITS = ("train", "val", "test")
EXTRA = Path("data/extra")
PREDICTIONS = Path("reports/predictions")
ORIGIN = b"grpo_rm"  # key of the Parquet metadata: what the predictions were made with, as JSON


def seed_name(arm: str, seed: int) -> str:
    """Return what the model of an arm that was trained with a further seed is called."""
    return f"seeds/{arm}-{seed}"


def predictions_of(model: str) -> Path:
    """Return the file of what a model says of all images."""
    return PREDICTIONS / f"{model}.parquet"


def corrupted_of(model: str) -> Path:
    """Return the file of which corrupted test images it classifies rightly."""
    return PREDICTIONS / "robustness" / f"{model}.parquet"


def predict_splits(directories: Mapping[str, Path], extra_sets: Iterable[str], *, workers: int) -> dict[str, Outputs]:
    """Run saved models over train, val, test and the extra sets, without augmentation. Images are decoded once.

    Args:
        directories: Of the models, by name. All take images of one size.
        extra_sets: Names.
        workers: Processes that decode.
    """
    device = best_device()
    models = {name: load_model(directory).to(device) for name, directory in directories.items()}
    shape = next(iter(models.values())).config
    outputs: dict[str, Outputs] = {name: {} for name in models}
    for split in (*SPLITS, *extra_sets):
        prepared, part = place_of(split)
        with closing(evaluation_batches(shape, part, prepared=prepared, workers=workers)) as batches:
            for name, predictions in predict_all(models, batches.epoch(0), device=device).items():
                outputs[name][split] = predictions
    return outputs


def place_of(name: str) -> tuple[Path, str]:
    """Return the folder of a split or extra set, and what `read_split` calls it there."""
    return (PREPARED, name) if name in SPLITS else (EXTRA / name, "test")


def write_predictions(outputs: Outputs, path: Path, *, origin: Mapping[str, Any]) -> None:
    """Write id, split, label, logits, probabilities and embedding of all images, a row each.

    The split of an image of an extra set is the set's name.

    Args:
        outputs: Of one model.
        path: Of the Parquet file.
        origin: What they were made with, for `read_origin`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.concat_tables(_table(split, predictions) for split, predictions in outputs.items())
    pq.write_table(table.replace_schema_metadata({ORIGIN: json.dumps(dict(origin))}), path)


def read_predictions(path: Path) -> tuple[dict[str, list[str]], Outputs]:
    """Return what `write_predictions` wrote: ids, and what the model said, by split or extra set."""
    table = pq.read_table(path, columns=["id", "split", "label", "logits", "embedding"])
    ids, outputs = {}, {}
    for name in table["split"].unique().to_pylist():
        rows = table.filter(pc.field("split") == name)
        labels = rows["label"].to_numpy().copy()  # torch warns of memory that is not to be written
        ids[name] = rows["id"].to_pylist()
        outputs[name] = Predictions(_matrix(rows["embedding"]), _matrix(rows["logits"]), labels)
    return ids, outputs


def read_origin(path: Path) -> dict[str, Any]:
    """Return what predictions were made with."""
    origin: dict[str, Any] = json.loads(pq.read_schema(path).metadata[ORIGIN])
    return origin


def write_corrupted(answers: Answers, ids: list[str], path: Path) -> None:
    """Write for each corrupted test image whether the model is right: id, corruption, strength, is_right."""
    cells = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    table = pa.table(
        {
            "id": ids * len(cells),
            "corruption": np.repeat([name for name, _ in cells], len(ids)),
            "strength": np.repeat([strength for _, strength in cells], len(ids)).astype(np.int8),
            "is_right": answers.ravel(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def read_corrupted(path: Path) -> tuple[list[str], Answers]:
    """Return what `write_corrupted` wrote: ids and answers.

    Raises:
        ValueError: The rows are not one for each image, corruption and strength, in that order.
    """
    table = pq.read_table(path)
    shape = len(CORRUPTIONS), len(STRENGTHS), len(table) // (len(CORRUPTIONS) * len(STRENGTHS))
    ids = table["id"].to_pylist()[: shape[2]]
    cells = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS for _ in ids]
    rows = list(zip(table["corruption"].to_pylist(), table["strength"].to_pylist(), strict=True))
    if not ids or rows != cells or table["id"].to_pylist() != ids * (shape[0] * shape[1]):
        raise ValueError(
            f"{path} has {len(table)} rows, expected one per corruption, strength and image, in this order"
        )
    return ids, table["is_right"].to_numpy().reshape(shape)


def _table(split: str, predictions: Predictions) -> pa.Table:
    return pa.table(
        {
            "id": read_ids(*place_of(split)),
            "split": [split] * len(predictions.labels),
            "label": predictions.labels,
            "logits": _vectors(predictions.logits),
            "probabilities": _vectors(softmax(predictions.logits, axis=1)),
            "embedding": _vectors(predictions.embeddings),
        }
    )


def _vectors(matrix: NDArray[np.float32]) -> pa.Array:
    """Return a column with a row of the matrix each: NumPy keeps it in one piece, and so does Arrow."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    vectors = column.combine_chunks()
    return np.array(vectors.flatten().to_numpy(), dtype=np.float32).reshape(len(vectors), -1)  # a copy: see labels
