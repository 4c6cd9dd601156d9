"""The candidate as stage evaluate has left it: what it said of all images, and whether that can be believed.

The gate judges numbers in files, and files can be changed, mixed up or left over from another run. So nothing is taken
at its word that can be looked up: the ONNX file says what data and split it was trained on, the prepared data say which
images and labels there are, a file of predictions says which weights it is of, the ONNX file answers some of the images
again, and the metrics that the gate asks for are measured anew from the stored predictions. That finds slips, such as
files that were mixed up; who writes all of these files by hand can still write what they like.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo_rm.config import Config
from grpo_rm.datasets import read_split
from grpo_rm.evaluation.gate import Basis, Clause
from grpo_rm.evaluation.measurement import is_of_encoder
from grpo_rm.evaluation.robustness import Answers, choose_images
from pipelines.batches import PREPARED
from pipelines.extra_results import ExtraSet, measured_images
from pipelines.lineage import data_hash, sha256
from pipelines.measurements import ROBUSTNESS, TEST, Measured, measure_corrupted, measure_outputs
from pipelines.models import CANDIDATE, REFERENCE, all_directories, corrupted_of, predictions_of, weights_of
from pipelines.onnx_model import OnnxModel
from pipelines.predictions import AGAIN, SPLITS, Outputs, place_of, read_corrupted, read_origin, read_predictions

ONNX = Path("models/onnx/encoder.onnx")

CHECKED_IMAGES = 32  # test images that the ONNX file answers again
ROUNDING = 0.02  # of the largest logit: a GPU multiplies with 10 bits (TF32), the ONNX file with 23
# how far a metric measured again may be off: neighbors and probe may come out otherwise for an image on another machine
EMBEDDING_TOLERANCE, TOLERANCE = 0.01, 1e-5


@dataclass(frozen=True)
class Corrupted:
    """What a model and the pretrained one said of corrupted images (see `robustness.Answers`), in the order of ids."""

    ids: list[str]
    answers: Answers
    reference: Answers


@dataclass(frozen=True)
class Candidate:
    """What the candidate said.

    Attributes:
        basis: What it was measured on.
        ids: Of the images, by split or extra set.
        outputs: What it said of them.
        corrupted: None where no corrupted image was measured.
    """

    basis: Basis
    ids: dict[str, list[str]]
    outputs: Outputs
    corrupted: Corrupted | None


def read_candidate(dataset: Mapping[str, Any]) -> Candidate:
    """Read what the candidate said.

    Args:
        dataset: The content of dataset.json.
    """
    ids, outputs = read_predictions(predictions_of(CANDIDATE))
    corrupted = corrupted_beside_reference(CANDIDATE)
    num_images = {TEST: len(ids.get("test", []))} | {name: measured_images(name) for name in ids if name not in SPLITS}
    if corrupted:
        num_images[ROBUSTNESS] = len(corrupted.ids)
    return Candidate(Basis(dataset["classes"], dataset["split"], num_images), ids, outputs, corrupted)


def corrupted_beside_reference(name: str) -> Corrupted | None:
    """Read what a model and the pretrained one said of corrupted images; None where there are none.

    Raises:
        ValueError: They are not of the same images.
    """
    paths = [corrupted_of(each) for each in (name, REFERENCE)]
    if not all(path.is_file() for path in paths):
        return None
    (ids, answers), (others, reference) = (read_corrupted(path) for path in paths)
    if ids != others:
        raise ValueError(f"{paths[0]} and {paths[1]} are not of the same images: {AGAIN}")
    return Corrupted(ids, answers, reference)


def find_doubt(candidate: Candidate, dataset: Mapping[str, Any], config: Config) -> str | None:
    """Return in words why what the candidate said is not to be believed; None where it is."""
    try:
        model = OnnxModel(ONNX)
        check_weights(CANDIDATE, config)
        return _other_data(model, dataset) or _other_images(candidate, config) or _other_model(candidate, model, config)
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def check_weights(name: str, config: Config) -> None:
    """Look up that what a model said was said by the weights that are there now.

    Raises:
        ValueError: By others.
    """
    directories = all_directories(config)
    files = {predictions_of(name): name, corrupted_of(name): name, corrupted_of(REFERENCE): REFERENCE}
    for path, model in files.items():
        weights = weights_of(directories[model])
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights} not found: run `dvc checkout`, or `dvc repro` where it was never trained"
            )
        if path.is_file() and read_origin(path).get("weights") != sha256(weights):
            raise ValueError(f"{path} is not what {weights} says: {AGAIN}")


def _other_data(model: OnnxModel, dataset: Mapping[str, Any]) -> str | None:
    if model.classes != dataset["classes"]:
        return f"it knows other classes, or in another order: {model.classes[:5]}, expected {dataset['classes'][:5]}"
    if model.training.get("split") != dataset["split"]:
        return "it was trained with another split of the data, so perhaps on these test images"
    if model.training.get("data") != data_hash():
        return f"it was trained on other data: {model.training.get('data')}, expected {data_hash()}"
    return None


def _other_images(candidate: Candidate, config: Config) -> str | None:
    for name, ids in candidate.ids.items():
        split = read_split(*place_of(name))
        if ids != list(split.ids) or not np.array_equal(candidate.outputs[name].labels, split.labels):
            return f"its predictions of {name} are of other images or labels than the prepared data have"
        if not np.isfinite(candidate.outputs[name].logits).all():
            return f"its predictions of {name} have NaN or infinite logits: it diverged"
    needed = {"val", "test", *config.evaluate.extra_sets} | ({"train"} if asks_for_encoder(config) else set())
    missing = needed - set(candidate.ids)
    if missing:
        return f"there are no predictions of {', '.join(sorted(missing))}"
    limit = config.evaluate.robustness.images
    if limit and not candidate.corrupted:
        return "there are no answers to corrupted images"
    if candidate.corrupted:
        test = candidate.ids["test"]
        chosen = choose_images(test, limit=limit, seed=config.seed)
        if candidate.corrupted.ids != [test[row] for row in chosen]:
            return "its answers to corrupted images are of other images than evaluate.robustness chooses"
    return None


def _other_model(candidate: Candidate, model: OnnxModel, config: Config) -> str | None:
    """Have the ONNX file answer some test images, and compare with what is stored."""
    rows = choose_images(candidate.ids["test"], limit=CHECKED_IMAGES, seed=config.seed)
    files, stored = read_split(PREPARED, "test").files, candidate.outputs["test"]
    answers = dict(zip(("embeddings", "logits"), model.answer_files([files[row] for row in rows]), strict=True))
    for name, answered in answers.items():
        said = getattr(stored, name)[rows]
        if said.shape != answered.shape:
            return f"its predictions have {name} of size {said.shape[1]}, expected {answered.shape[1]}"
        limit = max(config.export.max_abs_error, ROUNDING * float(np.abs(answered).max()))
        difference = float(np.abs(said - answered).max())
        if not difference <= limit:  # NaN is not
            how = f"{name} differ by {difference:.4g}, expected at most {limit:.4g}"
            return f"its predictions are not those of {ONNX}: {how}"
    return None


def measure_stored(
    outputs: Outputs, corrupted: Corrupted | None, extra_sets: list[ExtraSet], config: Config
) -> Measured:
    """Measure anew what a model said: what follows from embeddings only where the gate asks for it."""
    measured = measure_outputs(outputs, extra_sets, config, has_encoder=asks_for_encoder(config))
    return measured | measure_corrupted(corrupted.answers, corrupted.reference) if corrupted else measured


def asked_metrics(config: Config) -> list[str]:
    """Return the metrics that the gate asks for, each once."""
    gate = config.register_.gate
    return list(dict.fromkeys([*gate.thresholds, *gate.min_gain_over_control, *gate.min_gain_over_champion]))


def asks_for_encoder(config: Config) -> bool:
    """Whether the gate asks for what follows from embeddings."""
    return any(map(is_of_encoder, asked_metrics(config)))


def check_stated(stated: Mapping[str, float], measured: Mapping[str, float], asked: Iterable[str]) -> Clause:
    """Return the clause that evaluation.json says what follows from the predictions.

    Args:
        stated: The metrics in evaluation.json.
        measured: The metrics of the stored predictions, measured anew; the gate judges these.
        asked: Those that the gate asks for.
    """
    known = [name for name in asked if name in measured]
    wrong = [
        name
        for name in known
        if not abs(stated.get(name, math.nan) - measured[name]) <= _tolerance(name)  # NaN is not
    ]
    said = ", ".join(
        f"{name} {format(stated[name], '.4f') if name in stated else 'nothing'} (measured again: {measured[name]:.4f})"
        for name in wrong
    )
    reason = f"evaluation.json says {said}" if wrong else f"{', '.join(known) or 'nothing'} measured again: the same"
    return Clause("metrics", not wrong, reason)


def _tolerance(name: str) -> float:
    return EMBEDDING_TOLERANCE if is_of_encoder(name) else TOLERANCE
