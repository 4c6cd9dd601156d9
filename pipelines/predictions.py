"""What the models say about all images, and the Parquet files that keep it, so that no later question needs a GPU."""

import itertools
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import timm
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import read_ids
from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from grpo_rm.evaluation.robustness import Answers
from grpo_rm.inference import Predictions, best_device, predict_all
from grpo_rm.model import ModelConfig
from pipelines.batches import PREPARED, evaluation_batches
from pipelines.lineage import sha256
from pipelines.models import predictions_of, weights_of

Outputs = dict[str, Predictions]  # by split, or extra set
SPLITS = ("train", "val", "test")
EXTRA = Path("data/extra")
CHUNK = 32  # batches whose answers are held in memory and written together
ORIGIN = b"grpo_rm"  # key of the Parquet metadata: what a file was made with, as JSON
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError)  # what a Parquet file may end in that is none
AGAIN = "run `dvc repro --force evaluate`"


def predict_splits(directories: Mapping[str, Path], extra_sets: Iterable[str], *, workers: int) -> None:
    """Run saved models over train, val, test and the extra sets, without augmentation, and write what they say.

    Images are decoded once for all models, and answers are held in memory for `CHUNK` batches alone.

    Args:
        directories: Of the models, by name. All take images of one size.
        extra_sets: Names.
        workers: Processes that decode.
    """
    device = best_device()
    models = {name: load_model(directory).to(device) for name, directory in directories.items()}
    shape = cast(ModelConfig, next(iter(models.values())).config)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(closing(PredictionsWriter(predictions_of(name), origin=origin_of(directory))))
            for name, directory in directories.items()
        }
        for split in (*SPLITS, *extra_sets):
            prepared, part = place_of(split)
            ids, start = read_ids(prepared, part), 0
            print(f"predictions: {len(ids):,} images of {split}, {len(models)} model(s)", flush=True)
            with closing(evaluation_batches(shape, part, prepared=prepared, workers=workers)) as batches:
                images = batches.epoch(0)
                while start < len(ids):
                    said = predict_all(models, itertools.islice(images, CHUNK), device=device)
                    end = start + len(next(iter(said.values())).labels)
                    for name, predictions in said.items():
                        writers[name].write(split, ids[start:end], predictions)
                    start = end


def origin_of(directory: Path) -> dict[str, str]:
    """Return what is said with what a model says: its weights, and what it ran on and with."""
    cores = f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "weights": sha256(weights_of(directory)),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else cores,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def place_of(name: str) -> tuple[Path, str]:
    """Return the folder of a split or extra set, and what `read_split` calls it there."""
    return (PREPARED, name) if name in SPLITS else (EXTRA / name, "test")


class RowWriter:
    """Writes rows with their origin, part by part; the first part says which columns there are.

    Args:
        path: Of the Parquet file; its folder is made.
        origin: What the predictions are made with, for `read_origin`.
    """

    compression = "snappy"

    def __init__(self, path: Path, *, origin: Mapping[str, str]) -> None:
        self.path, self.origin = path, origin
        self._writer: pq.ParquetWriter | None = None

    def add(self, columns: Mapping[str, Any]) -> None:
        """Add rows."""
        table = pa.table(dict(columns)).replace_schema_metadata(_metadata(self.origin))
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self.path, table.schema, compression=self.compression)
        self._writer.write_table(table)

    def close(self) -> None:
        """End the file."""
        if self._writer:
            self._writer.close()


class PredictionsWriter(RowWriter):
    """Writes id, split, label, logits, probabilities and embedding of images, a row each, part by part.

    The split of an image of an extra set is the set's name.
    """

    def write(self, split: str, ids: Sequence[str], predictions: Predictions) -> None:
        """Add images of a split."""
        columns = {
            "id": list(ids),
            "split": [split] * len(ids),
            "label": predictions.labels,
            "logits": _vectors(predictions.logits),
            "probabilities": _vectors(softmax(predictions.logits, axis=1)),
            "embedding": _vectors(predictions.embeddings),
        }
        self.add(columns)


def read_predictions(path: Path) -> tuple[dict[str, list[str]], Outputs]:
    """Return ids, and what a model said, by split or extra set, in the order of `read_split`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not what `PredictionsWriter` writes.
    """
    table = read_table(path, ["id", "split", "label", "logits", "embedding"])
    ids, outputs = {}, {}
    for name in table["split"].unique().to_pylist():
        rows = table.filter(pc.field("split") == name)
        labels = rows["label"].to_numpy().copy()  # torch warns of memory that is not to be written
        ids[name] = rows["id"].to_pylist()
        outputs[name] = Predictions(_matrix(rows["embedding"]), _matrix(rows["logits"]), labels)
    return ids, outputs


def read_origin(path: Path) -> dict[str, str]:
    """Return what predictions or answers were made with; nothing where the file does not say."""
    _check_there(path)
    try:
        metadata = pq.read_schema(path).metadata or {}
        origin: dict[str, str] = json.loads(metadata.get(ORIGIN, b"{}"))
    except DAMAGE as error:
        raise damaged(path, error) from error
    return origin


def write_corrupted(answers: Answers, ids: list[str], path: Path, *, origin: Mapping[str, str]) -> None:
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
    pq.write_table(table.replace_schema_metadata(_metadata(origin)), path)


def read_corrupted(path: Path) -> tuple[list[str], Answers]:
    """Return what `write_corrupted` wrote: ids and answers.

    Raises:
        ValueError: The rows are not one for each image, corruption and strength, in that order.
    """
    table = read_table(path, ["id", "corruption", "strength", "is_right"])
    shape = len(CORRUPTIONS), len(STRENGTHS), len(table) // (len(CORRUPTIONS) * len(STRENGTHS))
    ids = table["id"].to_pylist()[: shape[2]]
    cells = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS for _ in ids]
    rows = list(zip(table["corruption"].to_pylist(), table["strength"].to_pylist(), strict=True))
    if not ids or rows != cells or table["id"].to_pylist() != ids * (shape[0] * shape[1]):
        raise ValueError(
            f"{path} has {len(table)} rows, expected one per corruption, strength and image, in this order: {AGAIN}"
        )
    return ids, table["is_right"].to_numpy().reshape(shape)


def _metadata(origin: Mapping[str, str]) -> dict[bytes, str]:
    """Return the metadata of a Parquet file that `read_origin` reads."""
    return {ORIGIN: json.dumps(dict(origin))}


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """Read some columns of a file of stage evaluate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or lacks one of them.
    """
    _check_there(path)
    try:
        return pq.read_table(path, columns=columns)
    except DAMAGE as error:
        raise damaged(path, error) from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `dvc repro evaluate`, or `dvc checkout` where it has run")


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error that says so of a file, and what to do."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} is damaged, or is no file of stage evaluate: {reason}; {AGAIN}")


def _vectors(matrix: NDArray[np.float32]) -> pa.Array:
    """Return a column with a row of the matrix each: NumPy keeps it in one piece, and so does Arrow."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    vectors = column.combine_chunks()
    return np.array(vectors.flatten().to_numpy(), dtype=np.float32).reshape(len(vectors), -1)  # a copy: see labels
