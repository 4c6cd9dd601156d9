"""The champion on the images that the candidate was measured on: metrics, and the comparison that the gate asks for.

It is known by its ONNX file alone, so it runs on the CPU. The test split and the extra sets are always answered. Two
things can take hours with a large encoder, and are done only where `register.gate.min_gain_over_champion` names a
metric of them: embeddings of the training images (k-NN, linear probe, retrieval), and corrupted images (robustness).
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from grpo_rm.config import Config
from grpo_rm.datasets import Split, read_split
from grpo_rm.evaluation.gate import Basis, Rival
from grpo_rm.evaluation.measurement import is_of_encoder
from grpo_rm.evaluation.robustness import Answers, corrupted_answers
from pipelines.batches import PREPARED
from pipelines.candidate import Candidate
from pipelines.extra_results import ExtraSet
from pipelines.measurements import ROBUSTNESS, Measured, compare, measure_corrupted
from pipelines.onnx_answers import CPU, AnsweringModule, plain_batches
from pipelines.onnx_model import OnnxModel
from pipelines.tasks.task import task_of
from pipelines.tracking import registry


@dataclass(frozen=True)
class Champion:
    """The champion beside a candidate.

    Attributes:
        version: Of the registered model.
        rival: What the gate has to know.
        metrics: By name; none where it could not be measured.
    """

    version: str
    rival: Rival
    metrics: dict[str, float] = field(default_factory=dict)


def meet_champion(
    name: str,
    version: str,
    candidate: Candidate,
    measured: Measured,
    extra_sets: list[ExtraSet],
    config: Config,
) -> Champion:
    """Run the champion on the candidate's images, and compare.

    That is not fair or not possible where the champion has other classes, or was made with another split, so that it
    may have been trained on these images; or a person made champion what is no file of ours. The gate then says so.

    Args:
        name: Of the registered model.
        version: Of the champion.
        candidate: Whose images they are.
        measured: The candidate's metrics.
        extra_sets: Of `evaluate.extra_sets`.
        config: All of it.
    """
    min_gain = config.register_.gate.min_gain_over_champion
    try:
        with registry.downloaded(name, version) as directory:
            model = OnnxModel(directory / registry.ONNX_FILE)
        if model.task != config.task:
            raise ValueError(f"it is for {model.task}, expected {config.task}")
        basis = Basis(model.classes, model.training.get("split"), candidate.basis.num_images)
        if basis != candidate.basis:
            return Champion(version, Rival("champion", basis, min_gain))
        own = measure_champion(model, candidate, extra_sets, config)
    except (FileNotFoundError, ValueError) as error:
        print(f"warning: the champion cannot be compared with: {error}", file=sys.stderr)
        return Champion(version, Rival("champion", None, min_gain))
    intervals = compare([measured], [own], config, metrics=min_gain)
    return Champion(version, Rival("champion", basis, min_gain, intervals), own.metrics)


def measure_champion(model: OnnxModel, candidate: Candidate, extra_sets: list[ExtraSet], config: Config) -> Measured:
    """Measure the champion by what the gate asks for, and by what a head is measured by."""
    asked = config.register_.gate.min_gain_over_champion
    has_encoder = any(map(is_of_encoder, asked))
    task = task_of(config.task)
    answers = task.answer(model, extra_sets, config, has_encoder=has_encoder)
    measured = task.measure(answers, extra_sets, config, has_encoder=has_encoder)
    if candidate.corrupted is None or not any(name.startswith(f"{ROBUSTNESS}/") for name in asked):
        return measured
    is_right = answer_corrupted(model, candidate.corrupted.ids, config)
    return measured | measure_corrupted(is_right, candidate.corrupted.reference)


def answer_corrupted(model: OnnxModel, ids: Sequence[str], config: Config) -> Answers:
    """Corrupt test images as stage evaluate does, in the champion's size, and tell which it classifies rightly."""
    test = read_split(PREPARED, "test")
    place = {id_: row for row, id_ in enumerate(test.ids)}
    rows = [place[id_] for id_ in ids]
    chosen = Split(ids, [test.files[row] for row in rows], test.labels[rows])
    with closing(plain_batches(model, chosen, workers=config.loader.workers)) as batches:
        models = {"champion": AnsweringModule(model)}
        return corrupted_answers(models, batches.epoch(0), ids, seed=config.seed, device=CPU)["champion"]
