"""A trained model on the images of its task, by the library's metrics, and what of it is kept for the intervals.

The working directory is the workspace.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from grpo_rm.config import Config
from grpo_rm.datasets import Batch, read_ids
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_model import DenseModel
from grpo_rm.evaluation.corruptions import CORRUPTIONS, corrupt
from grpo_rm.evaluation.measurement import Measurement, is_of_encoder, measure
from grpo_rm.evaluation.pixels import PixelSums
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.inference import Predictions, predict
from grpo_rm.model import Model, ModelConfig, VisionModel
from pipelines.batches import PREPARED, evaluation_batches
from pipelines.dense_answers import answer_split
from pipelines.measurements import TEST, read_costs
from pipelines.tasks import segmentation

Metrics = dict[str, float]
Answers = dict[str, Any]  # arrays by name

STRENGTH, DRAW_SEED = 3, 0
CPU = torch.device("cpu")


def measure_model(model: VisionModel, config: Config, sets: tuple[str, ...]) -> dict[str, tuple[Metrics, Answers]]:
    """Return what is measured on each of the sets, "val", "test" or "shifted", and the answers that it follows from.

    Temperature and probe are chosen on validation, which flatters what is measured there in all arms alike.

    Args:
        model: On the CPU, in evaluation mode.
        config: Of the workspace, so that all trainings are measured with one seed.
        sets: Their names.
    """
    if isinstance(model, DenseModel):
        return _measure_dense(model, config, sets)
    splits = {split: predict_split(cast(Model, model), split) for split in ("train", "val", *sets)}
    results = {}
    for name in sets:
        measured = measure(
            splits["train"],
            splits["val"],
            splits[name],
            ks=config.evaluate.knn_k,
            knn_temperature=config.evaluate.knn_temperature,
            costs=read_costs(config),
        )
        results[name] = measured.metrics, kept_answers(measured, splits[name])
    return results


def predict_split(model: Model, name: str) -> Predictions:
    """Return what a model says of a split, or of the corrupted test images."""
    return predict(model, cached_batches(str(PREPARED.resolve()), model.config, name), device=CPU)


def cached_batches(prepared: str, model: ModelConfig, name: str) -> list[Batch]:
    """Return the images as a model is given them: decoded, and corrupted, once for all trials of a process."""
    if (prepared, name) not in _known:
        split = "test" if name == "shifted" else name
        with closing(evaluation_batches(model, split)) as opened:
            batches = list(opened.epoch(0))
        _known[prepared, name] = corrupt_batches(batches, read_ids(PREPARED, split)) if name == "shifted" else batches
    return _known[prepared, name]


_known: dict[tuple[str, str], list[Batch]] = {}  # all models of a workspace are given the same images


def corrupt_batches(batches: list[Batch], ids: list[str]) -> list[Batch]:
    """Return the images, each with one of the six corruptions: which one follows from the place of the image."""
    drawn = np.random.default_rng(DRAW_SEED).choice(list(CORRUPTIONS), len(ids)).tolist()
    cases = iter(zip(drawn, ids, strict=True))
    return [(torch.stack([_corrupt(image, *next(cases)) for image in images]), labels) for images, labels in batches]


def _corrupt(image: torch.Tensor, corruption: str, id_: str) -> torch.Tensor:
    return torch.from_numpy(corrupt(image.numpy(), corruption, STRENGTH, seed=DRAW_SEED, image_id=id_))


def kept_answers(measured: Measurement, said: Predictions) -> Answers:
    """Return labels, logits, and the score of each image by metric, such as whether k-NN is right."""
    scores = {f"score/{name}": values.astype(np.float32) for name, values in measured.scores.items()}
    temperature = np.float64(measured.metrics["temperature"])
    return {"labels": said.labels, "logits": said.logits, "temperature": temperature, **scores}


def _measure_dense(model: DenseModel, config: Config, sets: tuple[str, ...]) -> dict[str, tuple[Metrics, Answers]]:
    ids = {split: list(read_dense_split(PREPARED, split).ids) for split in ("train", "val", *sets)}
    said = {
        split: answer_split({"": model}, split, ids[split], config, device=CPU, has_pixels=split in sets)[""]
        for split in ids
    }
    results = {}
    for name in sets:
        pixels, place_ids, places = said[name]
        assert pixels is not None
        of_others = {split: said[split][2] for split in ("train", "val")}
        answers = segmentation.DenseAnswers(
            {"test": ids[name]}, {"test": pixels}, {"test": place_ids}, of_others | {"test": places}
        )
        measured = segmentation.measure(answers, [], config, has_encoder=True)
        results[name] = measured.metrics, kept_dense_answers(pixels.sums, measured.sums[TEST])
    return results


def kept_dense_answers(pixels: PixelSums, sums: Mapping[str, MetricSums]) -> Answers:
    """Return what the pixels of each image add to the metrics, and right places and all places of each, by metric."""
    arrays = {f"pixels/{field.name}": getattr(pixels, field.name) for field in fields(pixels)}
    of_places = {name: metric.terms.toarray() for name, metric in sums.items() if is_of_encoder(name)}
    return arrays | {f"places/{name}": terms for name, terms in of_places.items()}


def write_answers(path: Path, answers: Mapping[str, Any]) -> None:
    """Write a compressed file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **answers)
    partial.replace(path)
