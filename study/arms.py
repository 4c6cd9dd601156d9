"""The arms: what a training minimizes. One more is one more line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: In results.
        objective: What differs from the block `objective` of params.yaml, or is to stay if that changes; None:
            cross-entropy.
        finetune: What differs from the task's block `finetune`.
        needs_costs: It is for tasks with a cost matrix, and the others, but for the control, are not.
    """

    name: str
    objective: Mapping[str, Any] | None
    finetune: Mapping[str, Any] = field(default_factory=dict)
    needs_costs: bool = False


CONTROL = "cross_entropy"
BOTH = {"accuracy": 1.0, "uniformity": 1.0}
UNSCALED = {"rewards": BOTH, "scale": "none", "neighbor_weight": 0.0}  # cross-entropy's gradient over K
SCALED = UNSCALED | {"scale": "group", "eps": 0.01}
POLICY = {"weighting": "policy", "statistics": "policy"}
COST_WEIGHTED, WEIGHTED = "cost_weighted", "study.costs:weighted_accuracy"
ARMS = {
    arm.name: arm
    for arm in (
        Arm(CONTROL, None),
        Arm("neighbors", UNSCALED | {"neighbor_weight": 6.0}),
        Arm("scaled", SCALED),
        Arm("bounded", SCALED | {"eps": 0.1, "rewards": BOTH | {"log_uniformity": 0.03}}),
        Arm("unscaled", UNSCALED),
        Arm("literal", SCALED | {"eps": 1e-4}),
        Arm("policy", SCALED | POLICY),
        Arm("trusting", UNSCALED | {"rewards": {"trusted_accuracy": 1.0}}),
        Arm("wide_eps", SCALED | {"eps": 0.1}),
        Arm("accuracy_only", SCALED | {"rewards": {"accuracy": 1.0}}),
        Arm("snapshot", SCALED | {"refresh": "epoch"}),
        Arm("inner", SCALED, finetune={"num_iterations": 2}),  # twice the steps of the others
        Arm("regressive", SCALED | {"surrogate": "regressive"}),
        Arm(COST_WEIGHTED, UNSCALED | {"rewards": {WEIGHTED: 1.0, "cost_matrix": 0.0}}, needs_costs=True),
        Arm("confusion_cost", UNSCALED | {"rewards": {"confusion_cost": 1.0}}, needs_costs=True),
        Arm("cost_reward", POLICY | UNSCALED | {"rewards": {"cost_matrix": 1.0}}, needs_costs=True),
    )
}
