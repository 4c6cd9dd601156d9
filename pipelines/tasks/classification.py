"""Classification, as stages evaluate and register ask for it; see `task.Task`."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from grpo_rm.config import Config
from grpo_rm.datasets import read_split
from grpo_rm.evaluation.measurement import is_of_encoder, measure_head
from grpo_rm.evaluation.metric_sums import constant_sums as f1_of_constant
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.evaluation.robustness import choose_images
from pipelines import dvc_plots
from pipelines.batches import PREPARED
from pipelines.extra_results import ExtraSet
from pipelines.measurements import Measured, measure_outputs
from pipelines.models import predictions_of
from pipelines.onnx_answers import answer_split
from pipelines.onnx_model import OnnxModel
from pipelines.predictions import Outputs, place_of, predict_splits, read_predictions
from pipelines.tasks.task import Ids

CHECKED_IMAGES = 32  # test images that the ONNX file answers again
ROUNDING = 0.02  # of the largest logit: a GPU multiplies with 10 bits (TF32), the ONNX file with 23


def predict(directories: Mapping[str, Path], config: Config) -> None:
    """Write what the models say of train, val, test and the extra sets."""
    predict_splits(directories, config.evaluate.extra_sets, workers=config.loader.workers)


def read(name: str) -> tuple[Ids, Outputs]:
    """Read logits and embeddings."""
    return read_predictions(predictions_of(name))


def measure(answers: Outputs, extra_sets: list[ExtraSet], config: Config, *, has_encoder: bool) -> Measured:
    """Measure a model; see `measure_outputs`."""
    return measure_outputs(answers, extra_sets, config, has_encoder=has_encoder)


def measure_validation(answers: Outputs) -> dict[str, float]:
    """Measure what follows from the logits, without a temperature."""
    return measure_head(answers["val"])


def write_plots(name: str, answers: Outputs, measured: Measured) -> None:
    """Write confusions, reliability and metrics per class."""
    dvc_plots.write_plots(name, answers, temperature=measured.metrics["temperature"])


def constant_sums(answers: Outputs) -> dict[str, MetricSums]:
    """Return macro F1: accuracy alone can be had without looking at an image."""
    test = answers["test"]
    return {"f1_macro": f1_of_constant(test.labels, test.logits.shape[1])}


def find_other_images(ids: Ids, answers: Outputs, config: Config, *, asked: Collection[str]) -> str | None:
    """Look up images and labels, and that all logits are finite."""
    for name, said in answers.items():
        split = read_split(*place_of(name))
        if ids[name] != list(split.ids) or not np.array_equal(said.labels, split.labels):
            return f"predictions of {name} are of other images or labels than the prepared data have"
        if not np.isfinite(said.logits).all():
            return f"predictions of {name} have NaN or infinite logits: it diverged"
    needed = {"val", "test", *config.evaluate.extra_sets} | ({"train"} if any(map(is_of_encoder, asked)) else set())
    missing = needed - set(ids)
    return f"predictions of {', '.join(sorted(missing))} are missing" if missing else None


def find_other_answers(ids: Ids, answers: Outputs, model: OnnxModel, config: Config) -> str | None:
    """Compare embeddings and logits."""
    rows = choose_images(ids["test"], limit=CHECKED_IMAGES, seed=config.seed)
    files, stored = read_split(PREPARED, "test").files, answers["test"]
    again = dict(zip(("embeddings", "logits"), model.answer_files([files[row] for row in rows]), strict=True))
    for name, answered in again.items():
        said = getattr(stored, name)[rows]
        if said.shape != answered.shape:
            return f"{name} are of size {said.shape[1]}, expected {answered.shape[1]}"
        limit = max(config.export.max_abs_error, ROUNDING * float(np.abs(answered).max()))
        difference = float(np.abs(said - answered).max())
        if not difference <= limit:  # NaN is not
            return f"{name} differ by {difference:.4g}, expected at most {limit:.4g}"
    return None


def answer(model: OnnxModel, extra_sets: list[ExtraSet], config: Config, *, has_encoder: bool) -> Outputs:
    """Answer val, test and the extra sets; for what follows from embeddings also train."""
    splits = ["train"] * has_encoder + ["val", "test"] + [extra.name for extra in extra_sets]
    workers = config.loader.workers
    return {name: answer_split(model, read_split(*place_of(name)), workers=workers) for name in splits}
