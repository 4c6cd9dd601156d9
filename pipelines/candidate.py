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

from grpo_rm.config import Config
from grpo_rm.evaluation.gate import Basis, Clause
from grpo_rm.evaluation.measurement import is_of_encoder
from grpo_rm.evaluation.robustness import Answers as IsRight
from grpo_rm.evaluation.robustness import choose_images
from pipelines.extra_results import ExtraSet, measured_images
from pipelines.lineage import data_hash, sha256
from pipelines.measurements import ROBUSTNESS, TEST, Measured, measure_corrupted
from pipelines.models import (
    CANDIDATE,
    REFERENCE,
    all_directories,
    corrupted_of,
    patches_of,
    predictions_of,
    weights_of,
)
from pipelines.onnx_model import OnnxModel
from pipelines.predictions import AGAIN, SPLITS, read_corrupted, read_origin
from pipelines.tasks.task import Answers, Ids, task_of

ONNX = Path("models/onnx/encoder.onnx")

# how far a metric measured again may be off: neighbors and probe may come out otherwise for an image on another machine
EMBEDDING_TOLERANCE, TOLERANCE = 0.01, 1e-5


@dataclass(frozen=True)
class Corrupted:
    """What a model and the pretrained one said of corrupted images (see `robustness.Answers`), in the order of ids."""

    ids: list[str]
    answers: IsRight
    reference: IsRight


@dataclass(frozen=True)
class Candidate:
    """What the candidate said.

    Attributes:
        basis: What it was measured on.
        ids: Of the images, by split or extra set.
        answers: What it said of them, as its task has it.
        corrupted: None where no corrupted image was measured.
    """

    basis: Basis
    ids: Ids
    answers: Answers
    corrupted: Corrupted | None


def read_candidate(dataset: Mapping[str, Any]) -> Candidate:
    """Read what the candidate said.

    Args:
        dataset: The content of dataset.json.
    """
    ids, answers = task_of(dataset["task"]).read(CANDIDATE)
    corrupted = corrupted_beside_reference(CANDIDATE)
    num_images = {TEST: len(ids.get("test", []))} | {name: measured_images(name) for name in ids if name not in SPLITS}
    if corrupted:
        num_images[ROBUSTNESS] = len(corrupted.ids)
    return Candidate(Basis(dataset["classes"], dataset["split"], num_images), ids, answers, corrupted)


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
    files = {file_of(name): name for file_of in (predictions_of, patches_of, corrupted_of)}
    files[corrupted_of(REFERENCE)] = REFERENCE
    for path, model in files.items():
        weights = weights_of(directories[model])
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights} not found: run `dvc checkout`, or `dvc repro` where it was never trained"
            )
        if path.is_file() and read_origin(path).get("weights") != sha256(weights):
            raise ValueError(f"{path} is not what {weights} says: {AGAIN}")


def _other_data(model: OnnxModel, dataset: Mapping[str, Any]) -> str | None:
    if model.task != dataset["task"]:
        return f"it is for {model.task}, expected {dataset['task']}"
    if model.classes != dataset["classes"]:
        return f"it knows other classes, or in another order: {model.classes[:5]}, expected {dataset['classes'][:5]}"
    if model.training.get("split") != dataset["split"]:
        return "it was trained with another split of the data, so perhaps on these test images"
    if model.training.get("data") != data_hash():
        return f"it was trained on other data: {model.training.get('data')}, expected {data_hash()}"
    return None


def _other_images(candidate: Candidate, config: Config) -> str | None:
    task = task_of(config.task)
    other = task.find_other_images(candidate.ids, candidate.answers, config, asked=asked_metrics(config))
    return f"its {other}" if other else _other_corrupted_images(candidate, config)


def _other_corrupted_images(candidate: Candidate, config: Config) -> str | None:
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
    other = task_of(config.task).find_other_answers(candidate.ids, candidate.answers, model, config)
    return f"its predictions are not those of {ONNX}: {other}" if other else None


def measure_stored(
    answers: Answers, corrupted: Corrupted | None, extra_sets: list[ExtraSet], config: Config
) -> Measured:
    """Measure anew what a model said: what follows from embeddings only where the gate asks for it."""
    measured = task_of(config.task).measure(answers, extra_sets, config, has_encoder=asks_for_encoder(config))
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
