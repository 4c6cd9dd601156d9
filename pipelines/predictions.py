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
from grpo_rm.inference import Predictions, best_device, predict
from pipelines.batches import PREPARED, evaluation_batches

Outputs = dict[str, Predictions]  # by split, or extra set
SPLITS = ("train", "val", "test")
EXTRA = Path("data/extra")
ORIGIN = b"grpo_rm"  # key of the Parquet metadata: what the predictions were made with, as JSON


def predict_splits(directory: Path, extra_sets: Iterable[str], *, workers: int) -> Outputs:
    """Run a saved model over train, val, test and the extra sets, without augmentation."""
    device = best_device()
    model = load_model(directory).to(device)
    outputs = {}
    for name in (*SPLITS, *extra_sets):
        prepared, split = place_of(name)
        with closing(evaluation_batches(model.config, split, prepared=prepared, workers=workers)) as batches:
            outputs[name] = predict(model, batches.epoch(0), device=device)
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


def read_predictions(path: Path) -> Outputs:
    """Return what `write_predictions` wrote: by split, in the order of `read_split`."""
    table = pq.read_table(path, columns=["split", "label", "logits", "embedding"])
    parts = {name: table.filter(pc.field("split") == name) for name in table["split"].unique().to_pylist()}
    return {
        name: Predictions(_matrix(part["embedding"]), _matrix(part["logits"]), part["label"].to_numpy())
        for name, part in parts.items()
    }


def read_origin(path: Path) -> dict[str, Any]:
    """Return what predictions were made with."""
    origin: dict[str, Any] = json.loads(pq.read_schema(path).metadata[ORIGIN])
    return origin


def write_answers(answers: Answers, ids: list[str], path: Path) -> None:
    """Write for each corrupted test image whether the model is right: id, corruption, strength, is_right."""
    rows = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    repeated = np.repeat(np.arange(len(rows)), len(ids))
    table = pa.table(
        {
            "id": ids * len(rows),
            "corruption": pa.array([rows[row][0] for row in repeated]).dictionary_encode(),
            "strength": pa.array([rows[row][1] for row in repeated], pa.int8()),
            "is_right": answers.ravel(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


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
    return np.asarray(vectors.flatten().to_numpy(), dtype=np.float32).reshape(len(vectors), -1)
