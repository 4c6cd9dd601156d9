"""What the models say about all images, and the Parquet files that keep it."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import read_ids
from grpo_rm.inference import Predictions, best_device, predict
from pipelines.batches import PREPARED, evaluation_batches

Outputs = dict[str, Predictions]  # by split, or extra set
SPLITS = ("train", "val", "test")
EXTRA = Path("data/extra")


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


def write_predictions(outputs: Outputs, path: Path) -> None:
    """Write id, split, label, logits, probabilities and embedding of all images but the training images as Parquet.

    The split of an image of an extra set is the set's name.
    """
    tables = [
        pa.table(
            {
                "id": read_ids(*place_of(split)),
                "split": [split] * len(outputs[split].labels),
                "label": outputs[split].labels,
                "logits": list(outputs[split].logits),
                "probabilities": list(softmax(outputs[split].logits, axis=1)),
                "embedding": list(outputs[split].embeddings),
            }
        )
        for split in outputs
        if split != "train"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path)
