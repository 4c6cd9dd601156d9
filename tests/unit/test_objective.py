"""The surrogates against loops, finite differences and the properties of the algorithm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.objective import clipped_surrogate, fresh_surrogate, regressive_surrogate
from grpo_rm.policy import log_policy

WEIGHTINGS = ("uniform", "policy")
CLIPS = ((0.2, 0.2), (0.2, 0.28), (0.0, 0.0), (1.0, 3.0))


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_inputs(num_sites=6, num_outputs=5, seed=0, spread=0.5):
    """Log-probabilities, old log-probabilities that differ by about `spread`, and advantages, in float64."""
    logits = random_tensor(num_sites, num_outputs, seed=3 * seed)
    old_logits = logits + spread * random_tensor(num_sites, num_outputs, seed=3 * seed + 1)
    return log_policy(logits), log_policy(old_logits), random_tensor(num_sites, num_outputs, seed=3 * seed + 2)


def rows_of(inputs):
    return zip(*(tensor.tolist() for tensor in inputs), strict=True)


def group_weights(old, weighting):
    return [1 / len(old) if weighting == "uniform" else math.exp(value) for value in old]


def naive_clipped(inputs, weighting, clip_low, clip_high, ratio_cap=math.inf):
    """Loops over Python floats, in the order of TRL: clip, then cap, then the minimum."""
    result = []
    for new, old, advantages in rows_of(inputs):
        total = 0.0
        for p, q, a, w in zip(new, old, advantages, group_weights(old, weighting), strict=True):
            ratio = math.exp(max(-5.0, min(5.0, p - q)))
            clipped = max(1 - clip_low, min(1 + clip_high, ratio))
            total += w * min(min(ratio, ratio_cap) * a, clipped * a)
        result.append(total)
    return result


def naive_regressive(inputs, weighting, statistics, eps):
    result = []
    for new, old, advantages in rows_of(inputs):
        rho = [p - q for p, q in zip(new, old, strict=True)]
        weights, stats = group_weights(old, weighting), group_weights(old, statistics)
        mean = sum(v * r for v, r in zip(stats, rho, strict=True))
        std = math.sqrt(sum(v * (r - mean) ** 2 for v, r in zip(stats, rho, strict=True)) + eps**2)
        errors = [(a - (r - mean) / std) ** 2 for a, r in zip(advantages, rho, strict=True)]
        result.append(-sum(w * error for w, error in zip(weights, errors, strict=True)))
    return result


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("clip_low", "clip_high"), CLIPS)
@pytest.mark.parametrize("ratio_cap", [None, 4.0, 20.0])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_clipped_naive_reference(weighting, clip_low, clip_high, ratio_cap, spread):
    for seed in range(3):
        inputs = random_inputs(seed=seed, spread=spread)
        actual = clipped_surrogate(
            *inputs, weighting=weighting, clip_low=clip_low, clip_high=clip_high, ratio_cap=ratio_cap
        )
        expected = naive_clipped(inputs, weighting, clip_low, clip_high, ratio_cap or math.inf)
        assert actual.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("statistics", WEIGHTINGS)
@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_regressive_naive_reference(weighting, statistics, eps):
    for seed, spread in enumerate((0.0, 1e-3, 0.5, 4.0)):
        inputs = random_inputs(seed=seed, spread=spread)
        actual = regressive_surrogate(*inputs, weighting=weighting, statistics=statistics, eps=eps)
        assert actual.tolist() == pytest.approx(naive_regressive(inputs, weighting, statistics, eps))


def test_clipped_golden_by_hand():
    """Two candidates, pi (.6, .4), pi_old (.5, .5), A (1, -1): ratios 1.2 and .8.

    Clipping at .9 and 1.1 leaves 1.1 and -.9, of which the mean is .1.
    """
    log_probs = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    old_log_probs = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    value = clipped_surrogate(log_probs, old_log_probs, advantages, clip_low=0.1, clip_high=0.1)
    assert value.item() == pytest.approx(0.1)
    old_log_probs = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()  # ratios 2.4 and .533
    value = clipped_surrogate(log_probs, old_log_probs, advantages, weighting="policy", clip_high=0.5)
    assert value.item() == pytest.approx(0.25 * 1.5 - 0.75 * 0.8)


def test_regressive_golden_by_hand():
    """Log-ratios 1 and -1 have mean 0 and deviation 1, so B is (1, -1): A of (3, -1) is off by (2, 0)."""
    old_log_probs = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    log_probs = old_log_probs + torch.tensor([[1.0, -1.0]])
    advantages = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    assert regressive_surrogate(log_probs, old_log_probs, advantages, eps=1e-9).item() == pytest.approx(-2)
    assert regressive_surrogate(log_probs, old_log_probs, torch.tensor([[1.0, -1.0]]), eps=1e-9).item() == (
        pytest.approx(0, abs=1e-9)  # where the log-ratio is the advantage, there is nothing left to do
    )


def test_min_leaves_a_ratio_unclipped_where_clipping_would_help():
    """A ratio that is too high counts in full against a negative advantage, one too low against a positive one."""
    log_probs, old_log_probs = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    value = clipped_surrogate(log_probs, old_log_probs, torch.tensor([[-1.0, 1.0]]))
    assert value.item() == pytest.approx((-1.6 + 0.4) / 2)
    capped = clipped_surrogate(log_probs, old_log_probs, torch.tensor([[-1.0, 1.0]]), ratio_cap=1.5)
    assert capped.item() == pytest.approx((-1.5 + 0.4) / 2)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("clip_low", "clip_high", "ratio_cap"), [(0.2, 0.2, None), (0.1, 0.6, None), (0.2, 0.3, 2.0)])
def test_clipped_gradients(weighting, clip_low, clip_high, ratio_cap):
    logits, old_logits = 2 * random_tensor(8, 5, seed=21), 2 * random_tensor(8, 5, seed=22)
    old_logits[0, 0] += 30  # far over the clamp of the log-ratio
    advantages, old_log_probs = random_tensor(8, 5, seed=23), log_policy(old_logits)
    log_ratio = log_policy(logits) - old_log_probs
    kinks = [-5.0, 5.0, math.log(1 - clip_low), math.log(1 + clip_high), math.log(ratio_cap or 9)]
    assert (log_ratio.unsqueeze(-1) - torch.tensor(kinks)).abs().min() > 1e-4
    assert (log_ratio.abs() > 5).any()

    def surrogate(z):
        return clipped_surrogate(
            log_policy(z),
            old_log_probs,
            advantages,
            weighting=weighting,
            clip_low=clip_low,
            clip_high=clip_high,
            ratio_cap=ratio_cap,
        )

    assert torch.autograd.gradcheck(surrogate, logits.requires_grad_())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("statistics", WEIGHTINGS)
def test_regressive_gradients(weighting, statistics):
    logits, old_log_probs, advantages = random_inputs()

    def surrogate(z):
        return regressive_surrogate(
            log_policy(z), old_log_probs, advantages, weighting=weighting, statistics=statistics, eps=0.05
        )

    assert torch.autograd.gradcheck(surrogate, logits.clone().requires_grad_())
    at_old = old_log_probs.clone().requires_grad_()  # where the deviation of the log-ratio is 0
    assert torch.autograd.gradcheck(surrogate, at_old, eps=1e-7, atol=1e-4)


def test_clipped_candidates_get_no_gradient():
    log_probs = torch.tensor([[0.6, 0.3, 0.1]]).log().requires_grad_()
    old_log_probs = torch.tensor([[0.3, 0.3, 0.4]]).log()  # ratios 2, 1, .25
    clipped_surrogate(log_probs, old_log_probs, torch.tensor([[1.0, 1.0, -1.0]])).sum().backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0, 1 / 3, 0])
    log_probs.grad = None
    clipped_surrogate(log_probs, old_log_probs, torch.tensor([[-1.0, -1.0, 1.0]])).sum().backward()
    assert log_probs.grad[0].tolist() == pytest.approx([-2 / 3, -1 / 3, 0.25 / 3])
    log_probs.grad = None
    advantages = torch.tensor([[-1.0, -1.0, 1.0]])
    clipped_surrogate(log_probs, old_log_probs, advantages, ratio_cap=1.5).sum().backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0, -1 / 3, 0.25 / 3])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_ratio_is_bounded_by_exp_5(sign):
    """Where pi_old(k) is tiny and A < 0, min() would leave a ratio of e^20: it counts as e^5."""
    log_probs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old_log_probs = torch.tensor([[-1.0, -1.0 - 20 * sign]])
    value = clipped_surrogate(log_probs, old_log_probs, torch.tensor([[0.0, -sign]]))
    assert value.item() == pytest.approx(-math.exp(5) / 2 if sign > 0 else math.exp(-5) / 2, rel=1e-6)
    value.sum().backward()
    assert log_probs.grad.abs().max() == 0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("clip_low", "clip_high"), CLIPS)
@pytest.mark.parametrize("ratio_cap", [None, 4.0])
def test_at_the_old_policy_the_gradient_is_the_weighted_advantage(weighting, clip_low, clip_high, ratio_cap):
    """Both sides of the minimum are equal there: neither half of the gradient may be lost, even with a clip of 0."""
    old_log_probs, _, advantages = random_inputs()
    log_probs = old_log_probs.clone().requires_grad_()
    weights = old_log_probs.exp() if weighting == "policy" else torch.full_like(advantages, 1 / 5)
    options = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    for value in (
        clipped_surrogate(log_probs, old_log_probs, advantages, weighting=weighting, **options),
        fresh_surrogate(log_probs, advantages, weighting=weighting),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), log_probs)
        torch.testing.assert_close(value, (weights * advantages).sum(dim=-1))
        torch.testing.assert_close(gradient, weights * advantages)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("statistics", WEIGHTINGS)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_at_the_old_policy_the_regressive_gradient_is_the_clipped_one_times_2_over_eps(weighting, statistics, eps):
    old_log_probs, _, rewards = random_inputs()
    advantages = group_advantages(rewards, old_log_probs=old_log_probs if statistics == "policy" else None)
    logits = old_log_probs.clone().requires_grad_()  # log-probabilities are logits of themselves
    options = {"weighting": weighting, "statistics": statistics, "eps": eps}
    value = regressive_surrogate(log_policy(logits), old_log_probs, advantages, **options)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    even, policy = torch.full_like(advantages, 1 / 5), old_log_probs.exp()
    w, v = (policy if option == "policy" else even for option in (weighting, statistics))
    gained = (w * advantages).sum(dim=-1, keepdim=True)
    torch.testing.assert_close(value, -(w * advantages.square()).sum(dim=-1))
    # rounding leaves log-ratios of 1e-16, which count against an eps of 1e-6
    torch.testing.assert_close(gradient, 2 / eps * (w * advantages - v * gained), rtol=1e-5, atol=1e-6 / eps)
    if weighting == statistics:
        clipped = clipped_surrogate(log_policy(logits), old_log_probs, advantages, weighting=weighting)
        (other,) = torch.autograd.grad(clipped.sum(), logits)
        torch.testing.assert_close(gradient, 2 / eps * other, rtol=1e-5, atol=1e-6 / eps)


SURROGATES = [
    *(lambda p, q, a, w=w: clipped_surrogate(p, q, a, weighting=w, ratio_cap=3.0) for w in WEIGHTINGS),
    *(lambda p, q, a, w=w: regressive_surrogate(p, q, a, weighting=w, statistics="uniform") for w in WEIGHTINGS),
    lambda p, q, a: regressive_surrogate(p, q, a, weighting="policy", statistics="policy"),
]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("num_outputs", [2, 21_841])
def test_float32_agrees_with_float64_from_two_outputs_to_imagenet_21k(surrogate, num_outputs):
    inputs = random_inputs(num_sites=2, num_outputs=num_outputs)
    narrow, wide = (inputs[0].to(dtype, copy=True).requires_grad_() for dtype in (torch.float32, torch.float64))
    expected = surrogate(wide, *inputs[1:])
    actual = surrogate(narrow, *(tensor.float() for tensor in inputs[1:]))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
    expected.sum().backward(), actual.sum().backward()
    largest = wide.grad.abs().max().item()
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-3, atol=1e-5 + 1e-4 * largest)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_extreme_logits_stay_finite(surrogate):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]], requires_grad=True)
    for old_logits in (logits.detach(), -logits.detach(), logits.detach().roll(1, 1)):
        value = surrogate(log_policy(logits), log_policy(old_logits), torch.tensor([[-1.0, 1.0, 3.0]] * 3))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


sizes = {"num_sites": st.integers(1, 4), "num_outputs": st.integers(2, 6), "seed": st.integers(0, 10**6)}


@pytest.mark.parametrize("surrogate", SURROGATES)
@settings(max_examples=15)
@given(**sizes)
def test_permuted_candidates_have_permuted_gradients_and_sites_are_independent(surrogate, num_sites, num_outputs, seed):
    inputs = random_inputs(num_sites, num_outputs, seed)
    order = torch.randperm(num_outputs, generator=torch.Generator().manual_seed(seed))
    gradients, values = [], []
    for log_probs, old_log_probs, advantages in (inputs, [tensor[:, order] for tensor in inputs]):
        leaf = log_probs.clone().requires_grad_()
        values.append(surrogate(leaf, old_log_probs, advantages))
        gradients.append(torch.autograd.grad(values[-1].sum(), leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0][:, order])
    torch.testing.assert_close(values[1], values[0])
    for n in range(num_sites):
        torch.testing.assert_close(surrogate(*(tensor[n : n + 1] for tensor in inputs)), values[0][n : n + 1])


@settings(max_examples=30)
@given(**sizes, factor=st.floats(0.01, 100), weighting=st.sampled_from(WEIGHTINGS))
def test_clipped_is_homogeneous_and_pessimistic(num_sites, num_outputs, seed, factor, weighting):
    inputs = random_inputs(num_sites, num_outputs, seed)
    value = clipped_surrogate(*inputs, weighting=weighting)
    scaled = clipped_surrogate(*inputs[:2], factor * inputs[2], weighting=weighting)
    torch.testing.assert_close(scaled, factor * value)
    unclipped = clipped_surrogate(*inputs, weighting=weighting, clip_low=1, clip_high=math.exp(5))
    assert (value <= unclipped + 1e-9).all()  # the surrogate never promises more than the plain ratio does


@settings(max_examples=30)
@given(**sizes, shift=st.floats(-3, 3), factor=st.floats(0.1, 10))
def test_regressive_sees_the_log_ratio_up_to_shift_and_scale(num_sites, num_outputs, seed, shift, factor):
    log_probs, old_log_probs, advantages = random_inputs(num_sites, num_outputs, seed)
    moved = old_log_probs + factor * (log_probs - old_log_probs) + shift
    expected = regressive_surrogate(log_probs, old_log_probs, advantages, eps=1e-8)
    assert (expected <= 0).all()
    torch.testing.assert_close(regressive_surrogate(moved, old_log_probs, advantages, eps=1e-8), expected)


@pytest.mark.parametrize("shapes", [[(2, 3), (2, 3), (2, 4)], [(2, 3), (1, 3), (2, 3)], [(3,)] * 3, [(2, 3, 4)] * 3])
@pytest.mark.parametrize("surrogate", [clipped_surrogate, regressive_surrogate])
def test_errors(shapes, surrogate):
    with pytest.raises(ValueError, match=r"are \[\(.*\], expected one shape \(N, K\)"):
        surrogate(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=r"ratio_cap is 1\.1, expected at least 1 \+ clip_high = 1\.2, or None"):
        clipped_surrogate(*[torch.zeros(2, 3)] * 3, ratio_cap=1.1)
