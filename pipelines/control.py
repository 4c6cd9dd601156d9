"""The control beside the candidate, from what stage evaluate has stored: cross-entropy instead of GRPO-RM.

The comparison is made again, and not read from evaluation.json: the gate has to follow from the answers themselves.
"""

from pathlib import Path

import numpy as np

from grpo_rm.config import Config
from grpo_rm.evaluation.gate import Rival
from pipelines.candidate import NAME, PREDICTIONS, Candidate, asks_for_encoder, read_corrupted, read_predictions
from pipelines.extra_results import ExtraSet
from pipelines.measurements import Measured, compare, measure_corrupted, measure_outputs

CONTROL = "cross_entropy"


def meet_control(candidate: Candidate, measured: Measured, extra_sets: list[ExtraSet], config: Config) -> Rival:
    """Compare the candidate with the control, over all seeds that both were trained with.

    Args:
        candidate: Whose images they are.
        measured: Its metrics.
        extra_sets: Of `evaluate.extra_sets`.
        config: All of it.

    Raises:
        ValueError: The predictions are not of the candidate's images.
    """
    seeds = further_seeds()
    own, control = (
        [measure_stored(path, candidate, extra_sets, config) for path in paths]
        for paths in (
            [PREDICTIONS / f"seeds/{NAME}-{seed}.parquet" for seed in seeds],
            [PREDICTIONS / f"{CONTROL}.parquet", *(PREDICTIONS / f"seeds/{CONTROL}-{seed}.parquet" for seed in seeds)],
        )
    )
    corrupted = read_corrupted(CONTROL)
    if corrupted:
        control[0] |= measure_corrupted(corrupted.answers, corrupted.reference)
    min_gain = config.register_.gate.min_gain_over_control
    return Rival("control", candidate.basis, min_gain, compare([measured, *own], control, min_gain, config))


def further_seeds() -> list[int]:
    """Return the seeds that both arms were trained with beside the candidate's own."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (PREDICTIONS / "seeds").glob(f"{NAME}-*.parquet"))


def measure_stored(path: Path, candidate: Candidate, extra_sets: list[ExtraSet], config: Config) -> Measured:
    """Measure what another model said of the candidate's images.

    Raises:
        ValueError: It did not say it of these.
    """
    ids, outputs = read_predictions(path)
    for name, own in candidate.outputs.items():
        if ids.get(name) != candidate.ids[name] or not np.array_equal(outputs[name].labels, own.labels):
            raise ValueError(
                f"{path} is of other images of {name} than the candidate's: run `dvc repro --force evaluate`"
            )
    return measure_outputs(outputs, extra_sets, config, has_encoder=asks_for_encoder(config))
