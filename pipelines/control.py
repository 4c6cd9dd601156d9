"""The control beside the candidate, from what stage evaluate has stored: cross-entropy instead of GRPO-RM.

The comparison is made again, and not read from evaluation.json: the gate has to follow from the answers themselves.
"""

import numpy as np

from grpo_rm.config import Config
from grpo_rm.evaluation.gate import Rival
from pipelines.candidate import Candidate, check_weights, corrupted_beside_reference, measure_stored
from pipelines.extra_results import ExtraSet
from pipelines.measurements import Measured, compare
from pipelines.models import CANDIDATE, CONTROL, predictions_of, seed_name
from pipelines.predictions import AGAIN, read_predictions


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
        [measure_beside(name, candidate, extra_sets, config) for name in names]
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


def measure_beside(name: str, candidate: Candidate, extra_sets: list[ExtraSet], config: Config) -> Measured:
    """Measure what another model said of the candidate's images.

    Raises:
        ValueError: It did not say it of these.
    """
    check_weights(name, config)
    path = predictions_of(name)
    ids, outputs = read_predictions(path)
    for split, own in candidate.outputs.items():
        if ids.get(split) != candidate.ids[split] or not np.array_equal(outputs[split].labels, own.labels):
            raise ValueError(f"{path} is of other images of {split} than the candidate's: {AGAIN}")
    return measure_stored(outputs, corrupted_beside_reference(name), extra_sets, config)
