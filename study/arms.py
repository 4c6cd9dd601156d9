"""The arms: what a training minimizes. One more is one more line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: In results.
        objective: What differs from the block `objective` of params.yaml; None: cross-entropy.
        finetune: What differs from the task's block `finetune`.
    """

    name: str
    objective: Mapping[str, Any] | None
    finetune: Mapping[str, Any] = field(default_factory=dict)


CONTROL = "cross_entropy"
BOTH = {"accuracy": 1.0, "uniformity": 1.0}
POLICY = {"weighting": "policy", "statistics": "policy"}
UNSCALED = {"scale": "none"}
ARMS = {
    arm.name: arm
    for arm in (
        Arm(CONTROL, None),
        Arm("neighbors", UNSCALED | {"neighbor_weight": 6.0}),
        Arm("scaled", {"rewards": BOTH, "scale": "group", "eps": 0.01}),
        Arm("unscaled", UNSCALED),
        Arm("literal", {"rewards": BOTH, "scale": "group", "eps": 1e-4}),
        Arm("policy", POLICY),
        Arm("wide_eps", {"scale": "group", "eps": 0.1}),
        Arm("accuracy_only", {"rewards": {"accuracy": 1.0}}),
        Arm("snapshot", {"refresh": "epoch"}),
        Arm("inner", {}, finetune={"num_iterations": 2}),  # twice the steps of the others
        Arm("regressive", {"surrogate": "regressive"}),
    )
}
