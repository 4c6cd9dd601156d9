"""Rewards per (site, candidate)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_rm.policy import log_policy
from grpo_rm.rewards import accuracy_reward, uniformity_reward


def test_accuracy_golden():
    rewards = accuracy_reward(torch.tensor([2, 0]), 3)
    assert rewards.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_accuracy_takes_any_integer(dtype):
    assert accuracy_reward(torch.tensor([1], dtype=dtype), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("void", [-1, -100, 3, 255])
def test_a_label_outside_the_output_set_is_rewarded_nowhere(void):
    assert accuracy_reward(torch.tensor([void, 1]), 3).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_uniformity_golden():
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]])
    torch.testing.assert_close(uniformity_reward(probs.log()), -probs)


def test_together_they_are_the_error_of_cross_entropy():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 4, 2, 2])
    rewards = accuracy_reward(targets, 5) + uniformity_reward(log_policy(logits))
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    torch.testing.assert_close(rewards, -logits.grad)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_uniformity_is_minus_a_distribution(logits):
    rewards = uniformity_reward(log_policy(torch.tensor([logits], dtype=torch.float64)))
    assert rewards.sum().item() == pytest.approx(-1)
    assert rewards.min() >= -1 - 1e-12
    assert rewards.max() <= 0


@given(st.lists(st.integers(-2, 9), min_size=1, max_size=6), st.integers(1, 8))
def test_accuracy_naive_reference(targets, num_outputs):
    expected = [[float(k == target) for k in range(num_outputs)] for target in targets]
    assert accuracy_reward(torch.tensor(targets), num_outputs).tolist() == expected
