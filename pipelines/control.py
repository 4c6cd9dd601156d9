"""The control beside the candidate, from what stage evaluate has stored: cross-entropy instead of GRPO-RM.

The comparison is made again, and not read from evaluation.json: the gate has to follow from the answers themselves.
"""

from grpo_rm.config import Config
from grpo_rm.evaluation.gate import Rival
from pipelines.candidate import (
    Candidate,
    asked_metrics,
    check_weights,
    corrupted_beside_reference,
    measure_stored,
)
from pipelines.extra_results import ExtraSet
from pipelines.measurements import Measured, compare
from pipelines.models import CANDIDATE, CONTROL, seed_name
from pipelines.predictions import AGAIN
from pipelines.tasks.task import task_of


def meet_control(candidate: Candidate, measured: Measured, extra_sets: list[ExtraSet], config: Config) -> list[Rival]:
    """Compare the candidate with the control, over all seeds that both were trained with.

    With further seeds it is compared twice: over all of them, which says whether the objective is better, and with the
    control of its own seed, since it alone is served.

    Args:
        candidate: Whose images they are.
        measured: Its metrics.
        extra_sets: Of `evaluate.extra_sets`.
        config: All of it.

    Raises:
        ValueError: The predictions are not of the candidate's images.
    """
    own, control = (
        [measure_beside(name, extra_sets, config) for name in names]
        for names in (
            [seed_name(CANDIDATE, seed) for seed in config.finetune.seeds],
            [CONTROL, *(seed_name(CONTROL, seed) for seed in config.finetune.seeds)],
        )
    )
    pairs = {"control": ([measured, *own], control)}
    if own:
        pairs["same_seed_control"] = ([measured], control[:1])
    min_gain = config.register_.gate.min_gain_over_control
    return [
        Rival(name, candidate.basis, min_gain, compare(*models, config, metrics=min_gain))
        for name, models in pairs.items()
    ]


def measure_beside(name: str, extra_sets: list[ExtraSet], config: Config) -> Measured:
    """Measure what another model said of the images that the candidate's answers are of: those of the prepared data.

    Raises:
        ValueError: It did not say it of these.
    """
    check_weights(name, config)
    task = task_of(config.task)
    ids, answers = task.read(name)
    other = task.find_other_images(ids, answers, config, asked=asked_metrics(config))
    if other:
        raise ValueError(f"the {other} ({name}): {AGAIN}")
    return measure_stored(answers, corrupted_beside_reference(name), extra_sets, config)
