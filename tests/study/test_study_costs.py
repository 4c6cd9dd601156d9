"""The cost matrix of the study, the baseline that is weighted by it, and the choice of a rate by costs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from grpo_rm.cost_matrix import read_cost_matrix
from grpo_rm.losses import GrpoRmLoss, Objective
from grpo_rm.sites import Sites
from study import protocol
from study.costs import HIGHEST, draw_costs, weighted_accuracy, write_costs
from study.tasks import TASKS

CLASSES = ("a", "b", "c", "d")


def test_costs_are_one_in_the_mean_and_none_for_being_right():
    costs = draw_costs(10)
    wrong = costs[~np.eye(10, dtype=bool)]
    assert (np.diag(costs) == 0).all()
    assert wrong.mean() == pytest.approx(1)
    assert 1 < wrong.max() / wrong.min() <= HIGHEST
    assert not np.allclose(costs, costs.T)


def test_the_file_has_them_by_class(tmp_path):
    write_costs(tmp_path / "rewards/costs.csv", CLASSES)
    read = read_cost_matrix(tmp_path / "rewards/costs.csv", CLASSES[::-1])
    np.testing.assert_allclose(read.numpy()[::-1, ::-1], draw_costs(4), rtol=1e-6)


def test_the_weighted_baseline_is_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 2])
    objective = Objective(
        rewards={"weighted": weighted_accuracy}, reward_weights={"weighted": 1.0}, classes=CLASSES, scale="none"
    )
    sites = Sites(logits, targets, torch.full((6,), 1 / 6))
    (actual,) = torch.autograd.grad(GrpoRmLoss(objective)(sites).loss, logits)
    weights = torch.from_numpy(draw_costs(4).sum(axis=1) / 3).float()
    expected = (weights[targets] * F.cross_entropy(logits, targets, reduction="none")).mean() / 4
    torch.testing.assert_close(actual, torch.autograd.grad(expected, logits)[0])


def test_a_rate_is_chosen_by_the_cost_of_the_better_decision(monkeypatch):
    monkeypatch.setattr(protocol, "TUNING_SEEDS", (100,))
    task = TASKS["costs"]
    costs = [(0.5, 0.4), (0.3, 0.6), (0.6, 0.35), (0.9, 0.8)]
    rows = [
        {"key": str(rate), "learning_rate": rate}
        | dict(zip((f"val/{name}" for name in protocol.COST_METRICS), of, strict=True))
        for rate, of in zip(task.rates, costs, strict=True)
    ]
    assert protocol.choose_rate(rows, task) == task.rates[1]
