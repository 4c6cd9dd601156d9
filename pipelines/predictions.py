"""What the models say about all images, and the Parquet files that keep it."""

from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from grpo_rm.checkpoint import load_model
from grpo_rm.datasets import read_ids
from grpo_rm.inference import Predictions, best_device, predict
from pipelines.batches import PREPARED, evaluation_batches

Outputs = dict[str, Predictions]  # by split


def predict_splits(directory: Path, *, workers: int) -> Outputs:
    """Run a saved model over train, val and test, without augmentation."""
    device = best_device()
    model = load_model(directory).to(device)
    outputs = {}
    for split in ("train", "val", "test"):
        with closing(evaluation_batches(model.config, split, workers=workers)) as batches:
            outputs[split] = predict(model, batches.epoch(0), device=device)
    return outputs


def write_predictions(outputs: Outputs, path: Path) -> None:
    """Write id, split, label, logits, probabilities and embedding of all validation and test images as Parquet."""
    tables = [
        pa.table(
            {
                "id": read_ids(PREPARED, split),
                "split": [split] * len(outputs[split].labels),
                "label": outputs[split].labels,
                "logits": list(outputs[split].logits),
                "probabilities": list(softmax(outputs[split].logits, axis=1)),
                "embedding": list(outputs[split].embeddings),
            }
        )
        for split in ("val", "test")
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path)
