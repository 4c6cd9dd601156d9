"""What the registry says of a model and of a version, as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

from pipelines import dvc_lock

COLUMNS = {"pretrain": "pretrained", "cross_entropy": "cross-entropy", "grpo_rm": "GRPO-RM (this version)"}
MAX_CLASSES = 1000  # characters

FILE = {
    "classification": """`images` (N, H, W, C) uint8 in,
decoded, cropped and resized (its metadata say how); `embedding` (N, D) and `logits` (N, classes) float32 out.""",
    "segmentation": """`images` (N, H, W, C) uint8 in,
decoded, of one size and not resized; `embedding` (N, D), the mean over the places, and `logits` (N, classes, h, w)
float32 out. These are at the stride that its metadata say: enlarge them by it, bilinear, and crop to (H, W).""",
}

Models = Mapping[str, Mapping[str, float]]


def describe_model(name: str, dataset: Mapping[str, Any]) -> str:
    """Return what all versions have in common: what they are, and how to load one.

    Args:
        name: Of the registered model.
        dataset: The content of dataset.json.
    """
    classes = ", ".join(dataset["classes"])
    classes = classes if len(classes) <= MAX_CLASSES else f"{classes[:MAX_CLASSES]} ..."
    return f"""An image encoder with a head for {dataset["task"]}, post-trained with GRPO-RM on `{dataset["name"]}`.

{len(dataset["classes"])} classes: {classes}

`challenger` is the newest candidate, `champion` the version to use. The file is ONNX: {FILE[dataset["task"]]}

    model = mlflow.pyfunc.load_model("models:/{name}@champion")
    model.predict({{"images": images}})["embedding"]
"""


def describe_version(gate: Mapping[str, Any], models: Models, tags: Mapping[str, str]) -> str:
    """Return the gate's verdict, the numbers of the three models, and the way back to data and code.

    Args:
        gate: As in registration.json.
        models: As in evaluation.json.
        tags: Of the version.
    """
    lines = [f"- {'passed' if c['has_passed'] else '**failed**'}: {c['reason']}" for c in gate["clauses"]]
    verdict = "\n".join([f"Gate {'passed' if gate['has_passed'] else 'failed'}.", "", *lines])
    return f"{verdict}\n\n{_table(models)}\n\n{describe_origin(tags)}"


def _table(models: Models) -> str:
    rows = [["test images", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    for metric in models["grpo_rm"]:
        rows.append([metric, *(f"{models[name].get(metric, math.nan):.4f}" for name in COLUMNS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def describe_origin(tags: Mapping[str, str]) -> str:
    """Return the commit and the data that a version was made from, and the command that brings all of it back."""
    changed = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    commit, data = tags.get("git.commit", "unknown"), tags.get("dvc.data", "unknown")
    made = f"Made at commit `{commit}`{changed}, from data `{data}`."
    if dvc_lock.TAG not in tags:
        return made
    again = f"git checkout $(python -m pipelines.dvc_lock {tags[dvc_lock.TAG]}) && dvc checkout"
    return f"{made} All of it again, data and models included:\n\n    {again}"
