"""The losses of the arms: what their gradients at the logits are, derived by hand, and what they report."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.losses import cross_entropy_loss, grpo_rm_loss
from grpo_rm.policy import log_policy

BOTH = {"accuracy": 1.0, "uniformity": 1.0}
ACCURACY = {"accuracy": 1.0, "uniformity": 0.0}


def random_logits(num_sites=6, num_outputs=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_sites, num_outputs, dtype=torch.float64, generator=generator)
    return logits, torch.randint(num_outputs, (num_sites,), generator=generator)


def push(loss, logits, targets, **options):
    """Return dJ/dz of each site: minus the gradient of the loss, which is a mean over the sites."""
    leaf = logits.clone().requires_grad_()
    loss(log_policy(leaf), targets, **options).loss.backward()
    return -leaf.grad * len(logits)


def one_hot(targets, num_outputs):
    return F.one_hot(targets, num_outputs).double()


def test_cross_entropy_equals_torch():
    logits, targets = random_logits()
    expected = logits.clone().requires_grad_()
    F.cross_entropy(expected, targets).backward()
    output = cross_entropy_loss(log_policy(logits), targets)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, targets))
    torch.testing.assert_close(push(cross_entropy_loss, logits, targets), -expected.grad * len(logits))
    assert output.stats["entropy"].item() == pytest.approx(
        torch.distributions.Categorical(logits=logits).entropy().mean().item()
    )


def test_cross_entropy_golden():
    log_probs = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    output = cross_entropy_loss(log_probs, torch.tensor([0, 1]))
    assert output.loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize("void", [-1, -100, 255])
def test_cross_entropy_ignores_invalid_sites(void):
    logits, targets = random_logits()
    valid = torch.tensor([True, True, False, True, False, True])
    marked = targets.masked_fill(~valid, void)
    leaf = logits.clone().requires_grad_()
    output = cross_entropy_loss(log_policy(leaf), marked, valid)
    output.loss.backward()
    expected = logits.clone().requires_grad_()
    loss = F.cross_entropy(expected, marked, ignore_index=void)
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(leaf.grad, expected.grad)
    entropy = torch.distributions.Categorical(logits=logits[valid]).entropy().mean()
    torch.testing.assert_close(output.stats["entropy"], entropy)
    nothing = cross_entropy_loss(log_policy(logits), marked, torch.zeros(6, dtype=torch.bool))
    assert nothing.loss == 0


def test_golden_of_five_outputs():
    """pi = (.5, .3, .1, .05, .05), y = 2: dJ/dz is the golden advantage over K."""
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]], dtype=torch.float64).log()
    actual = push(grpo_rm_loss, logits, torch.tensor([2]), reward_weights=BOTH, eps=0)
    expected = [a / 5 for a in (-1.0403, -0.6242, 1.8726, -0.1040, -0.1040)]
    assert actual[0].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("num_outputs", [2, 10])
def test_uniform_weighting_is_a_constant_push_of_accuracy(num_outputs):
    """sqrt(K - 1) / K at the label, whatever the confidence."""
    logits, targets = random_logits(4, num_outputs)
    for factor in (0.01, 1, 5):
        actual = push(grpo_rm_loss, factor * logits, targets, reward_weights=ACCURACY, eps=0)
        at_label = actual.gather(1, targets[:, None])
        torch.testing.assert_close(at_label, torch.full_like(at_label, math.sqrt(num_outputs - 1) / num_outputs))


@settings(max_examples=30)
@given(
    num_outputs=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    weights=st.tuples(st.floats(0.1, 2), st.floats(0, 2)),
    scale=st.sampled_from(["group", "none"]),
    statistics=st.sampled_from(["uniform", "policy"]),
    weighting=st.sampled_from(["uniform", "policy"]),
)
def test_gradient_at_the_logits(num_outputs, seed, weights, scale, statistics, weighting):
    """weighting uniform: A_j / K - p_j mean(A); policy: p_j (A_j - sum_k p_k A_k)."""
    logits, targets = random_logits(3, num_outputs, seed)
    probs = logits.softmax(dim=-1)
    reward = weights[0] * one_hot(targets, num_outputs) - weights[1] * probs
    old = log_policy(logits) if statistics == "policy" else None
    advantages = group_advantages(reward, scale=scale, eps=0.01, old_log_probs=old)
    w = torch.full_like(probs, 1 / num_outputs) if weighting == "uniform" else probs
    expected = w * advantages - probs * (w * advantages).sum(dim=-1, keepdim=True)
    if (weighting, statistics) == ("uniform", "uniform"):
        torch.testing.assert_close(expected, advantages / num_outputs)
    actual = push(
        grpo_rm_loss,
        logits,
        targets,
        reward_weights={"accuracy": weights[0], "uniformity": weights[1]},
        scale=scale,
        statistics=statistics,
        weighting=weighting,
        eps=0.01,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)  # rewards are float32


def test_policy_weighting_with_policy_statistics_is_the_bernoulli_deviation():
    """dJ/dz_y = sqrt(p_y (1 - p_y)) with the accuracy reward alone."""
    logits, targets = random_logits()
    p = logits.softmax(dim=-1).gather(1, targets[:, None])
    actual = push(
        grpo_rm_loss, logits, targets, reward_weights=ACCURACY, statistics="policy", weighting="policy", eps=0
    )
    torch.testing.assert_close(actual.gather(1, targets[:, None]), (p * (1 - p)).sqrt())


@settings(max_examples=30)
@given(num_outputs=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_cross_entropy_is_a_member_of_the_family(num_outputs, seed):
    """Accuracy and uniformity, scale none, weighting uniform: cross-entropy's gradient over K."""
    logits, targets = random_logits(4, num_outputs, seed)
    actual = push(grpo_rm_loss, logits, targets, reward_weights=BOTH, scale="none")
    control = push(cross_entropy_loss, logits, targets)
    torch.testing.assert_close(actual, control / num_outputs, rtol=1e-6, atol=1e-12)


def test_group_scale_keeps_the_direction_of_cross_entropy_at_a_constant_norm():
    logits, targets = random_logits()
    actual = push(grpo_rm_loss, logits, targets, reward_weights=BOTH, eps=0)
    control = push(cross_entropy_loss, logits, targets)
    torch.testing.assert_close(F.cosine_similarity(actual, control), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(actual.norm(dim=1), torch.full((6,), 5**-0.5, dtype=torch.float64))


def test_uniformity_weight_interpolates_between_constant_push_and_cross_entropy():
    logits, targets = random_logits()
    weights = {"accuracy": 1.0, "uniformity": 0.3}
    actual = push(grpo_rm_loss, logits, targets, reward_weights=weights, scale="none")
    constant = push(grpo_rm_loss, logits, targets, reward_weights=ACCURACY, scale="none")
    torch.testing.assert_close(constant, (one_hot(targets, 5) - 1 / 5) / 5)
    torch.testing.assert_close(actual, 0.7 * constant + 0.3 * push(cross_entropy_loss, logits, targets) / 5)


def test_reward_weights_scale_each_reward():
    logits, targets = random_logits()
    stats = grpo_rm_loss(log_policy(logits), targets, reward_weights={"accuracy": 3.0, "uniformity": 0.5}).stats
    expected = 3 * stats["rewards/accuracy/mean"] + 0.5 * stats["rewards/uniformity/mean"]
    torch.testing.assert_close(stats["reward"], expected)


def test_a_single_reward_named_alone():
    logits, targets = random_logits()
    torch.testing.assert_close(
        push(grpo_rm_loss, logits, targets, reward_weights={"accuracy": 1.0}),
        push(grpo_rm_loss, logits, targets, reward_weights=ACCURACY),
    )


def naive_mean_and_std(probs, rewards):
    means = [sum(p * r for p, r in zip(*row, strict=True)) for row in zip(probs, rewards, strict=True)]
    stds = [
        math.sqrt(sum(p * (r - mean) ** 2 for p, r in zip(*row, strict=True)))
        for row, mean in zip(zip(probs, rewards, strict=True), means, strict=True)
    ]
    return sum(means) / len(means), sum(stds) / len(stds)


def test_statistics_are_expectations_under_the_old_policy():
    logits, targets = random_logits()
    probs = logits.softmax(dim=-1)
    accuracy, uniformity = one_hot(targets, 5), -probs
    weights = {"accuracy": 2.0, "uniformity": 0.5}
    stats = grpo_rm_loss(log_policy(logits), targets, reward_weights=weights).stats
    for name, values in {"accuracy": accuracy, "uniformity": uniformity}.items():
        mean, std = naive_mean_and_std(probs.tolist(), values.tolist())
        assert stats[f"rewards/{name}/mean"].item() == pytest.approx(mean)
        assert stats[f"rewards/{name}/std"].item() == pytest.approx(std)
    mean, std = naive_mean_and_std(probs.tolist(), (2 * accuracy + 0.5 * uniformity).tolist())
    assert stats["reward"].item() == pytest.approx(mean)
    assert stats["reward_std"].item() == pytest.approx(std)
    assert stats["rewards/accuracy/mean"].item() == pytest.approx(probs.gather(1, targets[:, None]).mean().item())
    assert stats["frac_reward_zero_std"] == 0
    assert stats["clip_ratio/region_mean"] == 0
    assert stats["old_kl"].item() == pytest.approx(0, abs=1e-12)
    assert not any(value.requires_grad for value in stats.values())


def test_frac_reward_zero_std_counts_sites_without_a_signal():
    """A label outside the output set is rewarded nowhere: one of four sites here, and the mask leaves it out."""
    log_probs = log_policy(torch.zeros(4, 3))
    targets = torch.tensor([0, 255, 2, 1])
    assert grpo_rm_loss(log_probs, targets, reward_weights=ACCURACY).stats["frac_reward_zero_std"] == 0.25
    valid = torch.tensor([True, False, True, True])
    assert grpo_rm_loss(log_probs, targets, valid, reward_weights=ACCURACY).stats["frac_reward_zero_std"] == 0


@pytest.mark.parametrize("statistics", ["uniform", "policy"])
@pytest.mark.parametrize("void", [-1, 255])
def test_invalid_sites_change_nothing(statistics, void):
    logits, targets = random_logits()
    valid = torch.tensor([True, True, False, True, False, True])
    damaged = log_policy(logits).masked_fill(~valid.unsqueeze(-1), float("nan")).requires_grad_()
    options = {"reward_weights": BOTH, "statistics": statistics, "eps": 0.0}
    output = grpo_rm_loss(damaged, targets.masked_fill(~valid, void), valid, **options)
    output.loss.backward()
    kept = log_policy(logits)[valid].requires_grad_()
    expected = grpo_rm_loss(kept, targets[valid], **options)
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.stats, expected.stats)
    torch.testing.assert_close(damaged.grad[valid], kept.grad)
    assert damaged.grad[~valid].abs().max() == 0


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_saturated_logits_stay_finite(eps):
    logits = torch.tensor([[1e4, -1e4, 0.0], [300.0, 0.0, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    for statistics in ("uniform", "policy"):
        output = grpo_rm_loss(
            log_policy(logits), torch.tensor([0, 0, 0]), reward_weights=BOTH, statistics=statistics, eps=eps
        )
        (gradient,) = torch.autograd.grad(output.loss, logits)
        assert gradient.isfinite().all()
        assert all(value.isfinite() for value in output.stats.values())
        assert gradient[0].abs().max() == 0  # rightly saturated: there is nothing to learn
        if statistics == "uniform":  # under pi_old itself the rewards do not spread where p(label) is 0
            assert gradient[2].abs().max() > 0  # wrongly saturated: still pushed


def test_options_reach_the_objective():
    logits, targets = random_logits()
    for options, message in [
        ({"scale": "batch"}, "scale is 'batch'"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weighting": "mean"}, "weighting is 'mean'"),
        ({"clip_low": -1.0}, "clip_low is -1.0"),
        ({"clip_high": -1.0}, "clip_high -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            grpo_rm_loss(log_policy(logits), targets, reward_weights=BOTH, **options)
