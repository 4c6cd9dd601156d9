"""How hard each arm pushes the logit of the label, by how probable the label is: `python -m study.gradients`.

Of a site with ten outputs, where the others share what the label leaves. An optimizer such as Adam takes the length of
gradients away, so pushes are shares of that at p = 0.1, where an untrained head begins.
"""

import torch

from grpo_rm.config import load_config
from grpo_rm.losses import GrpoRmLoss, Loss, Objective, cross_entropy_loss
from grpo_rm.sites import Sites
from pipelines.lineage import ROOT
from pipelines.objective import BUILT_IN, OF_THE_TRAINER
from pipelines.stage import run_stage
from study.arms import ARMS, Arm
from study.protocol import configured
from study.tables import markdown

NUM_OUTPUTS, START = 10, 0.1
PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def main() -> None:
    """Print the table of docs/experiments.md."""
    rows = []
    for arm in ARMS.values():
        if not arm.needs_costs:
            start = push(arm, START)
            rows.append([arm.name, *(f"{push(arm, probability) / start:.2f}" for probability in PROBABILITIES)])
    print(markdown(["arm", *(f"p = {probability:g}" for probability in PROBABILITIES)], rows))


def push(arm: Arm, probability: float) -> float:
    """Return by how much a step that lowers the loss raises the label's logit, at pi = pi_old, without neighbors."""
    others = (1 - probability) / (NUM_OUTPUTS - 1)
    logits = torch.tensor([[probability] + [others] * (NUM_OUTPUTS - 1)]).log().requires_grad_()
    loss = head_loss(arm)(Sites(logits, torch.tensor([0]), torch.ones(1))).loss
    return -torch.autograd.grad(loss, logits)[0][0, 0].item()


def head_loss(arm: Arm) -> Loss:
    """Return the loss of an arm at the head."""
    if arm.objective is None:
        return cross_entropy_loss
    settings = configured(load_config(ROOT / "params.yaml"), arm, 0.001, 0).objective
    options = settings.model_dump(exclude=OF_THE_TRAINER) | {"neighbor_weight": 0.0}
    rewards = {name: BUILT_IN[name] for name in settings.rewards}
    return GrpoRmLoss(Objective(rewards=rewards, reward_weights=settings.rewards, **options))


if __name__ == "__main__":
    run_stage(main, description=__doc__)
