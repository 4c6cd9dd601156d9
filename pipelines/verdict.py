"""What the gate says of the candidate, and what it says it by."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_rm.config import Config
from grpo_rm.evaluation.comparison import Interval, compare_metrics, correct
from grpo_rm.evaluation.gate import Clause, Rival, beats, decide
from pipelines.candidate import (
    ONNX,
    Candidate,
    asked_metrics,
    check_stated,
    find_doubt,
    measure_stored,
    read_candidate,
)
from pipelines.champion import Champion, meet_champion
from pipelines.control import meet_control
from pipelines.extra_results import read_extra_sets
from pipelines.measurements import TEST, Measured, resampling
from pipelines.tasks.task import task_of


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        clauses: All of them have to pass.
        rivals: Control and champion, with the intervals of what they are compared by.
        champion: None where no other version is champion.
        beats_champion: Whether the candidate is shown to be better by a metric of `min_gain_over_champion`.
    """

    clauses: list[Clause]
    rivals: list[Rival]
    champion: Champion | None
    beats_champion: bool

    @property
    def has_passed(self) -> bool:
        """Whether all clauses have."""
        return all(clause.has_passed for clause in self.clauses)

    def as_json(self) -> dict[str, Any]:
        """Return what registration.json has of it."""
        champion = self.champion
        compared: dict[str, dict[str, Any]] = {"control": {}, "champion": {}}
        for rival in self.rivals:
            corrected = correct(rival.intervals, rival.min_gain)
            compared[rival.name] = {name: asdict(interval) for name, interval in corrected.items()}
        return {
            "gate": {"has_passed": self.has_passed, "clauses": [asdict(clause) for clause in self.clauses]},
            "comparison": compared,
            "champion": {"version": champion.version, "metrics": champion.metrics} if champion else None,
        }


def judge(
    evaluation: Mapping[str, Any], dataset: Mapping[str, Any], name: str, champion: str | None, config: Config
) -> Verdict:
    """Judge the candidate that stages evaluate and export have left.

    Args:
        evaluation: The content of evaluation.json.
        dataset: The content of dataset.json.
        name: Of the registered model.
        champion: Its version that is champion; None where there is none, or where it is the candidate itself.
        config: All of it.
    """
    candidate, of_file = read_candidate(dataset), onnx_metrics()
    stated = evaluation["models"]["grpo_rm"] | of_file
    doubt = find_doubt(candidate, dataset, config)
    if doubt:
        return reject(candidate, stated, doubt, champion, config)
    extra_sets = read_extra_sets(config.evaluate.extra_sets)
    measured = measure_stored(candidate.answers, candidate.corrupted, extra_sets, config)
    met = meet_champion(name, champion, candidate, measured, extra_sets, config) if champion else None
    rivals = [*meet_control(candidate, measured, extra_sets, config), *([met.rival] if met else [])]
    clauses = [
        Clause("candidate", True, f"trained on these data with this split; {ONNX} answers test images as is stored"),
        check_stated(stated, measured.metrics, asked_metrics(config)),
        *decide(
            measured.metrics | of_file,
            candidate.basis,
            thresholds=config.register_.gate.thresholds,
            over_constant=compare_with_constant(candidate, measured, config),
            rivals=rivals,
        ),
    ]
    return Verdict(clauses, rivals, met, met is not None and beats(met.rival, candidate.basis))


def reject(
    candidate: Candidate, stated: Mapping[str, float], doubt: str, champion: str | None, config: Config
) -> Verdict:
    """Judge a candidate whose answers are not to be believed: nothing is compared with them."""
    print(f"warning: the candidate cannot be believed: {doubt}", file=sys.stderr)
    gate = config.register_.gate
    met = Champion(champion, Rival("champion", None, gate.min_gain_over_champion)) if champion else None
    rivals = [Rival("control", None, gate.min_gain_over_control), *([met.rival] if met else [])]
    judged = decide(stated, candidate.basis, thresholds=gate.thresholds, over_constant=None, rivals=rivals)
    return Verdict(
        [Clause("candidate", False, f"what is stored of it cannot be believed: {doubt}"), *judged], rivals, met, False
    )


def compare_with_constant(candidate: Candidate, measured: Measured, config: Config) -> tuple[str, Interval]:
    """Return a metric, and it minus that of always saying the most frequent class."""
    ((metric, constant),) = task_of(config.task).constant_sums(candidate.answers).items()
    own = measured.sums[TEST][metric]
    return metric, compare_metrics([{metric: own}], [{metric: constant}], **resampling(config))[metric]


def onnx_metrics() -> dict[str, float]:
    """Return what the gate may ask of the file: its size, and the time of one image on the CPU that exported it."""
    exported = json.loads(Path("reports/export.json").read_text(encoding="utf-8"))
    return {"onnx/size_mb": ONNX.stat().st_size / 1e6, "onnx/latency_ms": exported["latency_ms"]["1"]["onnxruntime"]}
