"""Semantic segmentation, as stages evaluate and register ask for it; see `task.Task`."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from grpo_rm.checkpoint import load_model
from grpo_rm.config import Config
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_model import DenseModel
from grpo_rm.evaluation.boundary import boundary_f1_sums, has_boundary
from grpo_rm.evaluation.measurement import is_of_encoder
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.evaluation.robustness import choose_images
from grpo_rm.evaluation.segmentation import constant_iou_sums, pixel_metrics
from grpo_rm.inference import Predictions, best_device
from pipelines import dense_plots
from pipelines.batches import PREPARED
from pipelines.dense_answers import answer_split
from pipelines.dense_checks import find_difference, find_other_boundary, find_other_masks, find_other_places
from pipelines.dense_predictions import DenseOutputs, DensePredictionsWriter, read_dense_predictions
from pipelines.extra_results import ExtraSet
from pipelines.measurements import TEST, Measured
from pipelines.models import patches_of, predictions_of
from pipelines.onnx_answers import answer_dense_split, answer_pixels
from pipelines.onnx_model import OnnxModel
from pipelines.patches import patch_sums
from pipelines.predictions import SPLITS, PredictionsWriter, origin_of, read_predictions
from pipelines.tasks.task import Ids

MEASURED = ("val", "test")  # splits of which every pixel is predicted
CHECKED_IMAGES = 16  # test images that the ONNX file answers again


@dataclass(frozen=True)
class DenseAnswers:
    """What a model says.

    Attributes:
        ids: Of the images, by split.
        pixels: Of val and test.
        place_ids: The image of each of the places that are sampled, by split.
        places: What it says of these; also of train.
    """

    ids: Ids
    pixels: dict[str, DenseOutputs]
    place_ids: Ids
    places: dict[str, Predictions]


def predict(directories: Mapping[str, Path], config: Config) -> None:
    """Write what the models say of all pixels of val and test, and of places of train, val and test.

    Images are decoded once for all models.
    """
    device = best_device()
    models = {name: cast(DenseModel, load_model(directory)).to(device) for name, directory in directories.items()}
    with ExitStack() as stack:
        writers = {name: _open_writers(stack, name, directory) for name, directory in directories.items()}
        for split in SPLITS:
            ids = list(read_dense_split(PREPARED, split).ids)
            print(f"predictions: {len(ids):,} images of {split}, {len(models)} model(s)", flush=True)
            said = answer_split(models, split, ids, config, device=device, has_pixels=split in MEASURED)
            for name, (pixels, place_ids, places) in said.items():
                of_pixels, of_places = writers[name]
                of_places.write(split, place_ids, places)
                if pixels:
                    of_pixels.write(split, ids, pixels)


def _open_writers(stack: ExitStack, name: str, directory: Path) -> tuple[DensePredictionsWriter, PredictionsWriter]:
    origin = origin_of(directory)
    of_pixels = stack.enter_context(closing(DensePredictionsWriter(predictions_of(name), origin=origin)))
    return of_pixels, stack.enter_context(closing(PredictionsWriter(patches_of(name), origin=origin)))


def read(name: str) -> tuple[Ids, DenseAnswers]:
    """Read sums and masks of all images, and embeddings of places."""
    ids, pixels = read_dense_predictions(predictions_of(name))
    return ids, DenseAnswers(ids, pixels, *read_predictions(patches_of(name)))


def measure(answers: DenseAnswers, extra_sets: list[ExtraSet], config: Config, *, has_encoder: bool) -> Measured:  # noqa: ARG001
    """Measure a model on the test split: there are no extra sets in segmentation."""
    sums = _pixel_sums(answers, "test")
    if has_encoder:
        row_of = {id_: row for row, id_ in enumerate(answers.ids["test"])}
        sums |= patch_sums(
            answers.places,
            np.array([row_of[id_] for id_ in answers.place_ids["test"]]),
            num_images=len(row_of),
            ks=config.evaluate.knn_k,
            knn_temperature=config.evaluate.knn_temperature,
        )
    return Measured({name: metric.value for name, metric in sums.items()}, {TEST: sums})


def measure_validation(answers: DenseAnswers) -> dict[str, float]:
    """Measure all pixels."""
    return {name: metric.value for name, metric in _pixel_sums(answers, "val").items()}


def write_plots(name: str, answers: DenseAnswers, measured: Measured) -> None:  # noqa: ARG001
    """Write confusions, reliability and metrics per class."""
    dense_plots.write_plots(name, val=answers.pixels["val"].sums, test=answers.pixels["test"].sums)


def constant_sums(answers: DenseAnswers) -> dict[str, MetricSums]:
    """Return the mean IoU."""
    return {"miou": constant_iou_sums(answers.pixels["test"].sums.confusion)}


def find_other_images(ids: Ids, answers: DenseAnswers, config: Config, *, asked: Collection[str]) -> str | None:
    """Look up images and masks; where the gate asks for what follows from them, also outlines and places."""
    for name in MEASURED:
        if name not in ids:
            return f"predictions of {name} are missing"
        split = read_dense_split(PREPARED, name)
        if ids[name] != list(split.ids):
            return f"predictions of {name} are of other images than the prepared data have"
        other = find_other_masks(answers.pixels[name], split)
        if other is None and name == "test" and "boundary_f1" in asked:
            other = find_other_boundary(answers.pixels[name], split)
        if other:
            return f"predictions of {name} are not of the prepared masks, or damaged: {other}"
    return _find_other_places(answers, config) if any(map(is_of_encoder, asked)) else None


def _find_other_places(answers: DenseAnswers, config: Config) -> str | None:
    for name in SPLITS:
        if name not in answers.places:
            return f"embeddings of {name} are missing"
        ids, places, split = answers.place_ids[name], answers.places[name], read_dense_split(PREPARED, name)
        other = find_other_places(ids, places, split, name, config)
        if other:
            return f"embeddings of {name} are {other}"
    return None


def find_other_answers(ids: Ids, answers: DenseAnswers, model: OnnxModel, config: Config) -> str | None:
    """Compare classes, NLL and confidence of the pixels."""
    split, stored = read_dense_split(PREPARED, "test"), answers.pixels["test"]
    for row in choose_images(ids["test"], limit=CHECKED_IMAGES, seed=config.seed):
        logits = answer_pixels(model, split.files[row], window=config.segmentation.window)
        other = find_difference(stored[[row]], logits, split.masks[row], max_abs_error=config.export.max_abs_error)
        if other:
            return f"{ids['test'][row]}: {other}"
    return None


def answer(model: OnnxModel, extra_sets: list[ExtraSet], config: Config, *, has_encoder: bool) -> DenseAnswers:  # noqa: ARG001
    """Answer test. The file gives no embedding of a place, so the gate asks for none (see `grpo_rm.gate_names`)."""
    split = read_dense_split(PREPARED, "test")
    pixels = answer_dense_split(model, split, window=config.segmentation.window)
    return DenseAnswers({"test": list(split.ids)}, {"test": pixels}, {}, {})


def _pixel_sums(answers: DenseAnswers, name: str) -> dict[str, MetricSums]:
    """Return what all pixels of a split come to; no boundary F1 where void pixels hide all outlines."""
    outputs, masks = answers.pixels[name], read_dense_split(PREPARED, name).masks
    sums = pixel_metrics(outputs.sums)
    if any(has_boundary(masks[row]) for row in range(len(masks))):
        sums["boundary_f1"] = boundary_f1_sums(outputs.boundary)
    return sums
