"""Group-relative advantages against hand-computed numbers, loops and the properties the algorithm relies on."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.policy import expectation, log_policy
from grpo_rm.rewards import Group, accuracy_reward, uniformity_reward

OLD_PROBS = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]], dtype=torch.float64)


def group_of(target, old_log_probs):
    """One site."""
    return Group(torch.tensor([target]), torch.arange(old_log_probs.shape[1])[None], old_log_probs)


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_advantages(rewards, weights, scale, eps):
    result = []
    for row, weight in zip(rewards, weights, strict=True):
        mean = sum(w * r for w, r in zip(weight, row, strict=True))
        std = math.sqrt(sum(w * (r - mean) ** 2 for w, r in zip(weight, row, strict=True)))
        result.append([(r - mean) / (std + eps) if scale == "group" else r - mean for r in row])
    return torch.tensor(result, dtype=torch.float64)


def test_golden_of_five_outputs():
    group = group_of(2, OLD_PROBS.log())
    rewards = accuracy_reward(group) + uniformity_reward(group)
    assert rewards[0].tolist() == pytest.approx([-0.5, -0.3, 0.9, -0.05, -0.05], abs=1e-7)
    advantages = group_advantages(rewards, eps=0)
    assert advantages[0].tolist() == pytest.approx([-1.0403, -0.6242, 1.8726, -0.1040, -0.1040], abs=5e-5)


def test_golden_of_wrong_candidates_only():
    """The uniformity reward only for k != y: another reward, the same function."""
    rewards = torch.tensor([[-0.5, -0.3, 1.0, -0.05, -0.05]])
    expected = [-1.003, -0.617, 1.891, -0.135, -0.135]
    assert group_advantages(rewards, eps=0)[0].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("num_outputs", [2, 10, 100])
def test_golden_of_accuracy_alone(num_outputs):
    """sqrt(K - 1) for the label and -1 / sqrt(K - 1) elsewhere; 3 and -1/3 for ten classes."""
    advantages = group_advantages(accuracy_reward(group_of(1, torch.zeros(1, num_outputs))).double(), eps=0)[0]
    assert advantages[1].item() == pytest.approx(math.sqrt(num_outputs - 1))
    assert advantages[0].item() == pytest.approx(-1 / math.sqrt(num_outputs - 1))
    if num_outputs == 10:
        assert [round(a, 4) for a in advantages[:2].tolist()] == [-0.3333, 3.0]


def test_standard_deviation_is_the_population_s():
    """Rewards (0, 2): mean 1, population std 1; with Bessel's correction it would be sqrt(2)."""
    assert group_advantages(torch.tensor([[0.0, 2.0]]), eps=0).tolist() == [[-1, 1]]
    assert group_advantages(torch.tensor([[0.0, 2.0]]), eps=1).tolist() == [[-0.5, 0.5]]


def test_scale_none_only_centers():
    assert group_advantages(torch.tensor([[1.0, 2.0, 6.0]]), scale="none", eps=5).tolist() == [[-2, -1, 3]]


def test_golden_of_policy_statistics():
    """Rewards (0, 1) under (3/4, 1/4): mean 1/4, variance 3/16."""
    log_probs = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    centered = group_advantages(rewards, scale="none", old_log_probs=log_probs)
    assert centered[0].tolist() == pytest.approx([-0.25, 0.75])
    scaled = group_advantages(rewards, eps=0, old_log_probs=log_probs)
    assert scaled[0].tolist() == pytest.approx([-1 / math.sqrt(3), math.sqrt(3)])


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.5])
def test_naive_reference(scale, is_weighted, eps):
    rewards, log_probs = random_tensor(6, 7), log_policy(2 * random_tensor(6, 7, seed=1))
    weights = log_probs.exp() if is_weighted else torch.full_like(rewards, 1 / 7)
    actual = group_advantages(rewards, scale=scale, eps=eps, old_log_probs=log_probs if is_weighted else None)
    torch.testing.assert_close(actual, naive_advantages(rewards.tolist(), weights.tolist(), scale, eps))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_gradients_with_respect_to_rewards(scale):
    rewards, log_probs = random_tensor(3, 4).requires_grad_(), log_policy(random_tensor(3, 4, seed=1))
    assert torch.autograd.gradcheck(lambda r: group_advantages(r, scale=scale, old_log_probs=log_probs), rewards)
    assert torch.autograd.gradcheck(lambda r: group_advantages(r, scale=scale, eps=0.1), rewards)


def test_eps_decides_where_a_fitted_image_stops_counting():
    """Rewards that spread by eps keep half of the push, by eps / 99 one percent, by much more than eps all of it."""
    unit = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    for spread, share in [(0.01, 0.5), (0.01 / 99, 0.01), (100.0, 0.9999)]:
        assert group_advantages(spread * unit, eps=0.01)[0, 1].item() == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_equal_rewards_teach_nothing(eps, is_weighted):
    rewards = torch.full((2, 4), 0.25)
    log_probs = log_policy(torch.zeros(2, 4)) if is_weighted else None
    assert group_advantages(rewards, eps=eps, old_log_probs=log_probs).tolist() == [[0] * 4] * 2


def test_a_saturated_image_teaches_nothing_even_without_eps():
    """pi(y) = 1 in float32: accuracy and uniformity cancel, and what is left is too small to square."""
    old_log_probs = log_policy(torch.tensor([[0.0, 200.0, 50.0]]))
    rewards = accuracy_reward(group_of(1, old_log_probs)) + uniformity_reward(group_of(1, old_log_probs))
    assert group_advantages(rewards, eps=0).tolist() == [[0, 0, 0]]


rows = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=8)


@settings(max_examples=40)
@given(row=rows, constant=st.floats(-5, 5), scale=st.sampled_from(["group", "none"]), seed=st.integers(0, 99))
def test_what_is_constant_over_the_candidates_cancels(row, constant, scale, seed):
    rewards = torch.tensor([row], dtype=torch.float64)
    log_probs = log_policy(random_tensor(1, len(row), seed=seed))
    for old in (None, log_probs):
        actual = group_advantages(rewards + constant, scale=scale, eps=0.01, old_log_probs=old)
        expected = group_advantages(rewards, scale=scale, eps=0.01, old_log_probs=old)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40)
@given(row=rows, factor=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_the_scale_of_a_single_reward_cancels(row, factor, seed):
    rewards = torch.tensor([row], dtype=torch.float64)
    assume(rewards.std(correction=0) > 1e-3)
    log_probs = log_policy(random_tensor(1, len(row), seed=seed))
    for old in (None, log_probs):
        actual = group_advantages(factor * rewards, eps=0, old_log_probs=old)
        torch.testing.assert_close(actual, group_advantages(rewards, eps=0, old_log_probs=old), rtol=1e-6, atol=1e-6)


@settings(max_examples=40)
@given(row=rows, seed=st.integers(0, 99))
def test_mean_0_and_variance_1_over_the_group(row, seed):
    rewards = torch.tensor([row], dtype=torch.float64)
    assume(rewards.std(correction=0) > 1e-3)
    log_probs = log_policy(random_tensor(1, len(row), seed=seed))
    plain, weighted = group_advantages(rewards, eps=0), group_advantages(rewards, eps=0, old_log_probs=log_probs)
    assert plain.mean().item() == pytest.approx(0, abs=1e-9)
    assert plain.square().mean().item() == pytest.approx(1)
    assert expectation(weighted, log_probs).item() == pytest.approx(0, abs=1e-9)
    assert expectation(weighted.square(), log_probs).item() == pytest.approx(1)


@settings(max_examples=20)
@given(row=rows, seed=st.integers(0, 99))
def test_permuted_candidates_have_permuted_advantages(row, seed):
    rewards, log_probs = torch.tensor([row], dtype=torch.float64), log_policy(random_tensor(1, len(row), seed=seed))
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(seed))
    actual = group_advantages(rewards[:, order], eps=0.1, old_log_probs=log_probs[:, order])
    torch.testing.assert_close(actual, group_advantages(rewards, eps=0.1, old_log_probs=log_probs)[:, order])


def test_errors():
    with pytest.raises(ValueError, match=r"scale is 'batch', expected \"group\" or \"none\""):
        group_advantages(torch.zeros(1, 2), scale="batch")
    with pytest.raises(ValueError, match=r"eps is -0\.1, expected 0 or more"):
        group_advantages(torch.zeros(1, 2), eps=-0.1)
    with pytest.raises(ValueError, match="eps is nan"):
        group_advantages(torch.zeros(1, 2), eps=float("nan"))
    with pytest.raises(ValueError, match=r"old_log_probs are \(2,\), expected \(1, 2\) as the rewards"):
        group_advantages(torch.zeros(1, 2), old_log_probs=torch.zeros(2))
