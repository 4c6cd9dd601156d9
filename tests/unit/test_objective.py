"""The clipped surrogate against loops, finite differences and the properties of the algorithm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.objective import clipped_objective, site_mean
from grpo_rm.policy import log_policy

STATS = {"entropy", "old_kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_inputs(num_sites=6, num_outputs=5, seed=0, spread=0.5):
    """Log-probabilities, old log-probabilities that differ by about `spread`, and advantages, in float64."""
    logits = random_tensor(num_sites, num_outputs, seed=3 * seed)
    old_logits = logits + spread * random_tensor(num_sites, num_outputs, seed=3 * seed + 1)
    return log_policy(logits), log_policy(old_logits), random_tensor(num_sites, num_outputs, seed=3 * seed + 2)


def naive_objective(log_probs, old_log_probs, advantages, weighting, clip_low, clip_high, valid):
    """Loss and statistics with loops over Python floats."""
    sites = [n for n, is_valid in enumerate(valid) if is_valid]
    num_outputs = len(log_probs[0])
    sums = dict.fromkeys([*STATS, "loss"], 0.0)
    for n in sites:
        for k in range(num_outputs):
            new, old, advantage = log_probs[n][k], old_log_probs[n][k], advantages[n][k]
            ratio = math.exp(max(-5.0, min(5.0, new - old)))
            clipped = max(1 - clip_low, min(1 + clip_high, ratio))
            weight = 1 / num_outputs if weighting == "uniform" else math.exp(old)
            sums["loss"] -= weight * min(ratio * advantage, clipped * advantage)
            sums["entropy"] -= math.exp(new) * new
            sums["old_kl"] += math.exp(old) * (old - new)
            is_low = advantage < 0 and ratio < 1 - clip_low
            is_high = advantage > 0 and ratio > 1 + clip_high
            sums["clip_ratio/low_mean"] += is_low / num_outputs
            sums["clip_ratio/high_mean"] += is_high / num_outputs
            sums["clip_ratio/region_mean"] += (is_low or is_high) / num_outputs
    return {name: value / max(1, len(sites)) for name, value in sums.items()}


@pytest.mark.parametrize("weighting", ["uniform", "policy"])
@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.2), (0.2, 0.28), (0.0, 0.0), (1.0, 3.0)])
@pytest.mark.parametrize("valid", [None, [True, False, True, True, False, False]])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_naive_reference(weighting, clip_low, clip_high, valid, spread):
    for seed in range(3):
        inputs = random_inputs(seed=seed, spread=spread)
        mask = None if valid is None else torch.tensor(valid)
        output = clipped_objective(*inputs, weighting=weighting, clip_low=clip_low, clip_high=clip_high, valid=mask)
        lists = [tensor.tolist() for tensor in inputs]
        expected = naive_objective(*lists, weighting, clip_low, clip_high, valid or [True] * 6)
        assert output.loss.item() == pytest.approx(expected.pop("loss"))
        assert {name: value.item() for name, value in output.stats.items()} == pytest.approx(expected, abs=1e-7)


def test_golden_by_hand():
    """Two candidates, pi (.6, .4), pi_old (.5, .5), A (1, -1): ratios 1.2 and .8.

    Clipping at .9 and 1.1 leaves 1.1 and -.9, of which the mean is .1; the first is clipped above, the second below.
    """
    log_probs = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    old_log_probs = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    output = clipped_objective(log_probs, old_log_probs, torch.tensor([[1.0, -1.0]]), clip_low=0.1, clip_high=0.1)
    assert output.loss.item() == pytest.approx(-0.1)
    assert output.stats["clip_ratio/low_mean"].item() == 0.5
    assert output.stats["clip_ratio/high_mean"].item() == 0.5
    assert output.stats["clip_ratio/region_mean"].item() == 1.0
    assert output.stats["entropy"].item() == pytest.approx(0.6730117)
    assert output.stats["old_kl"].item() == pytest.approx(0.0204110)
    policy = clipped_objective(
        log_probs, torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[1.0, -1.0]]), weighting="policy", clip_high=0.5
    )
    assert policy.loss.item() == pytest.approx(-(0.25 * 1.5 - 0.75 * 0.8), rel=1e-6)  # ratios 2.4 and .533


def test_min_leaves_a_ratio_unclipped_where_clipping_would_help():
    """A ratio that is too high counts in full against a negative advantage, one too low against a positive one."""
    log_probs, old_log_probs = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    output = clipped_objective(log_probs, old_log_probs, torch.tensor([[-1.0, 1.0]]))
    assert output.loss.item() == pytest.approx((1.6 - 0.4) / 2)
    assert output.stats["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("weighting", ["uniform", "policy"])
@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.2), (0.1, 0.6)])
def test_gradients(weighting, clip_low, clip_high):
    logits, old_logits = 2 * random_tensor(8, 5, seed=21), 2 * random_tensor(8, 5, seed=22)
    old_logits[0, 0] += 30  # far over the clamp of the log-ratio
    advantages, valid = random_tensor(8, 5, seed=23), torch.tensor([True] * 6 + [False] * 2)
    old_log_probs = log_policy(old_logits)
    log_ratio = log_policy(logits) - old_log_probs
    kinks = torch.tensor([-5.0, 5.0, math.log(1 - clip_low), math.log(1 + clip_high)])
    assert (log_ratio.unsqueeze(-1) - kinks).abs().min() > 1e-4
    assert (log_ratio.abs() > 5).any()

    def loss(z):
        return clipped_objective(
            log_policy(z),
            old_log_probs,
            advantages,
            weighting=weighting,
            clip_low=clip_low,
            clip_high=clip_high,
            valid=valid,
        ).loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    loss(logits).backward()
    assert logits.grad[:6].abs().sum(dim=1).min() > 0
    assert logits.grad[6:].abs().max() == 0


def test_clipped_candidates_get_no_gradient():
    log_probs = torch.tensor([[0.6, 0.3, 0.1]]).log().requires_grad_()
    old_log_probs = torch.tensor([[0.3, 0.3, 0.4]]).log()  # ratios 2, 1, .25
    clipped_objective(log_probs, old_log_probs, torch.tensor([[1.0, 1.0, -1.0]])).loss.backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0, -1 / 3, 0])
    log_probs.grad = None
    clipped_objective(log_probs, old_log_probs, torch.tensor([[-1.0, -1.0, 1.0]])).loss.backward()
    assert log_probs.grad[0].tolist() == pytest.approx([2 / 3, 1 / 3, -0.25 / 3])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_ratio_is_bounded_by_exp_5(sign):
    """Where pi_old(k) is tiny and A < 0, min() would leave a ratio of e^20: it counts as e^5."""
    log_probs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old_log_probs = torch.tensor([[-1.0, -1.0 - 20 * sign]])
    output = clipped_objective(log_probs, old_log_probs, torch.tensor([[0.0, -sign]]))
    expected = math.exp(5) / 2 if sign > 0 else -math.exp(-5) / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    output.loss.backward()
    assert log_probs.grad.abs().max() == 0


def test_at_the_old_policy_nothing_is_clipped_and_the_loss_is_minus_the_mean_advantage():
    log_probs, _, advantages = random_inputs()
    centered = group_advantages(advantages)
    output = clipped_objective(log_probs, log_probs, centered)
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert output.stats["clip_ratio/region_mean"] == 0
    assert output.stats["old_kl"] == 0
    assert clipped_objective(log_probs, log_probs, advantages).loss.item() == pytest.approx(-advantages.mean().item())


@pytest.mark.parametrize("weighting", ["uniform", "policy"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [(0, 1, 2), (0,), (1,), (2,)])
def test_masked_sites_count_nowhere_whatever_their_values(weighting, bad, where):
    log_probs, old_log_probs, advantages = random_inputs()
    valid = torch.tensor([True, False, True, True, False, True])
    damaged = [log_probs.clone(), old_log_probs.clone(), advantages.clone()]
    for index in where:
        damaged[index][~valid] = bad
    damaged[0].requires_grad_()
    output = clipped_objective(*damaged, weighting=weighting, valid=valid)
    output.loss.backward()
    kept = [tensor[valid].clone() for tensor in (log_probs, old_log_probs, advantages)]
    kept[0].requires_grad_()
    expected = clipped_objective(*kept, weighting=weighting)
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.stats, expected.stats)
    torch.testing.assert_close(damaged[0].grad[valid], kept[0].grad)
    assert damaged[0].grad[~valid].tolist() == [[0] * 5] * 2


def test_no_valid_site_means_no_loss_and_no_gradient():
    log_probs = torch.full((2, 3), float("nan"), requires_grad=True)
    output = clipped_objective(
        log_probs, log_probs, torch.full((2, 3), float("inf")), valid=torch.zeros(2, dtype=torch.bool)
    )
    output.loss.backward()
    assert output.loss == 0
    assert log_probs.grad.tolist() == [[0, 0, 0]] * 2
    assert all(value == 0 for value in output.stats.values())


def test_gradient_flows_into_the_policy_alone():
    log_probs, old_log_probs, advantages = (tensor.requires_grad_() for tensor in random_inputs())
    output = clipped_objective(log_probs, old_log_probs, advantages, weighting="policy")
    output.loss.backward()
    assert log_probs.grad.abs().sum() > 0
    assert old_log_probs.grad is None
    assert advantages.grad is None
    assert set(output.stats) == STATS
    assert not any(value.requires_grad for value in output.stats.values())
    assert all(value.shape == () for value in output.stats.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    narrow = [tensor.to(dtype) for tensor in random_inputs()]
    wide = [tensor.float() for tensor in narrow]
    narrow[0].requires_grad_(), wide[0].requires_grad_()
    actual, expected = clipped_objective(*narrow), clipped_objective(*wide)
    assert actual.loss.dtype == torch.float32
    assert actual.loss == expected.loss
    assert actual.stats == expected.stats
    actual.loss.backward(), expected.loss.backward()
    assert torch.equal(narrow[0].grad, wide[0].grad.to(dtype))


@pytest.mark.parametrize("weighting", ["uniform", "policy"])
@pytest.mark.parametrize("num_outputs", [2, 21_841])
def test_float32_agrees_with_float64_from_two_outputs_to_imagenet_21k(weighting, num_outputs):
    log_probs, old_log_probs, advantages = random_inputs(num_sites=2, num_outputs=num_outputs)
    expected = clipped_objective(log_probs, old_log_probs, advantages, weighting=weighting)
    actual = clipped_objective(log_probs.float(), old_log_probs.float(), advantages.float(), weighting=weighting)
    torch.testing.assert_close(actual.loss.double(), expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.stats["entropy"].double(), expected.stats["entropy"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "policy"])
def test_extreme_logits_stay_finite(weighting):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]], requires_grad=True)
    output = clipped_objective(
        log_policy(logits),
        log_policy(-logits.detach()),
        torch.tensor([[-1.0, 1.0, 3.0]] * 3),
        weighting=weighting,
    )
    output.loss.backward()
    assert output.loss.isfinite()
    assert logits.grad.isfinite().all()
    assert all(value.isfinite() for value in output.stats.values())


sizes = {"num_sites": st.integers(1, 4), "num_outputs": st.integers(2, 6), "seed": st.integers(0, 10**6)}


@settings(max_examples=30)
@given(**sizes, weighting=st.sampled_from(["uniform", "policy"]))
def test_permuted_candidates_have_permuted_gradients(num_sites, num_outputs, seed, weighting):
    inputs = random_inputs(num_sites, num_outputs, seed)
    order = torch.randperm(num_outputs, generator=torch.Generator().manual_seed(seed))
    gradients, outputs = [], []
    for log_probs, old_log_probs, advantages in (inputs, [tensor[:, order] for tensor in inputs]):
        leaf = log_probs.clone().requires_grad_()
        outputs.append(clipped_objective(leaf, old_log_probs, advantages, weighting=weighting))
        outputs[-1].loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0][:, order])
    torch.testing.assert_close(outputs[1].loss.detach(), outputs[0].loss.detach())
    torch.testing.assert_close(outputs[1].stats, outputs[0].stats)


@settings(max_examples=30)
@given(**sizes, factor=st.floats(0.01, 100), weighting=st.sampled_from(["uniform", "policy"]))
def test_is_homogeneous_and_pessimistic_and_a_mean_over_sites(num_sites, num_outputs, seed, factor, weighting):
    inputs = random_inputs(num_sites, num_outputs, seed)
    loss = clipped_objective(*inputs, weighting=weighting).loss
    scaled = clipped_objective(*inputs[:2], factor * inputs[2], weighting=weighting).loss
    torch.testing.assert_close(scaled, factor * loss)
    unclipped = clipped_objective(*inputs, weighting=weighting, clip_low=1, clip_high=math.exp(5)).loss
    assert loss >= unclipped - 1e-9  # the surrogate never promises more than the plain ratio does
    doubled = clipped_objective(*(tensor.repeat(2, 1) for tensor in inputs), weighting=weighting).loss
    torch.testing.assert_close(doubled, loss)
    singles = [
        clipped_objective(*(tensor[n : n + 1] for tensor in inputs), weighting=weighting).loss for n in range(num_sites)
    ]
    torch.testing.assert_close(torch.stack(singles).mean(), loss)


def test_site_mean():
    values = torch.tensor([1.0, float("nan"), 5.0])
    assert site_mean(values, torch.tensor([True, False, True])) == 3
    assert site_mean(values, torch.zeros(3, dtype=torch.bool)) == 0
    assert site_mean(values[::2], None) == 3


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 3), (2, 3), (2, 4)], {}, r"shapes \[\(2, 3\), \(2, 3\), \(2, 4\)\], expected one shape \(N, K\)"),
        ([(2, 3), (1, 3), (2, 3)], {}, r"expected one shape \(N, K\)"),
        ([(3,), (3,), (3,)], {}, r"shapes \[\(3,\), \(3,\), \(3,\)\], expected one shape \(N, K\)"),
        ([(2, 3, 4)] * 3, {}, r"expected one shape \(N, K\)"),
        ([(2, 3)] * 3, {"valid": torch.ones(3, dtype=torch.bool)}, r"valid is torch.bool \(3,\), expected bool \(2,\)"),
        ([(2, 3)] * 3, {"valid": torch.ones(2)}, r"valid is torch.float32 \(2,\), expected bool \(2,\)"),
        ([(2, 3)] * 3, {"weighting": "mean"}, 'weighting is \'mean\', expected "uniform" or "policy"'),
        ([(2, 3)] * 3, {"clip_low": -0.1}, "clip_low is -0.1 and clip_high 0.2, expected 0 or more"),
        ([(2, 3)] * 3, {"clip_high": -0.1}, "clip_low is 0.2 and clip_high -0.1, expected 0 or more"),
    ],
)
def test_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        clipped_objective(*(torch.zeros(shape) for shape in shapes), **options)
