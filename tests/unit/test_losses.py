"""The losses: what their gradients at the logits are, derived by hand, and what they report."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.losses import GrpoRmLoss, Objective, cross_entropy_loss, grpo_rm_loss
from grpo_rm.policy import log_policy
from grpo_rm.rewards import MatrixReward, accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites, site_count, site_weights, valid_sites

REWARDS = {"accuracy": accuracy_reward, "uniformity": uniformity_reward}
BOTH = {"accuracy": 1.0, "uniformity": 1.0}
ACCURACY = {"accuracy": 1.0, "uniformity": 0.0}
CHOICES = ("uniform", "policy")


def objective_of(weights=BOTH, *, rewards=REWARDS, **settings):
    return Objective(rewards={name: rewards[name] for name in weights}, reward_weights=weights, **settings)


def random_logits(num_sites=6, num_outputs=5, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_sites, num_outputs, dtype=torch.float64, generator=generator)
    return logits, torch.randint(num_outputs, (num_sites,), generator=generator)


def sites_of(logits, targets, old_logits=None, reference_logits=None, *, aggregation="per_image"):
    valid = valid_sites(targets)
    return Sites(logits, targets, site_weights(valid, aggregation), old_logits, reference_logits)


def run(objective, logits, targets, *others):
    """Return loss, gradient and statistics; `objective` None is cross-entropy."""
    leaf = logits.clone().requires_grad_()
    sites = sites_of(leaf, targets, *others)
    output = cross_entropy_loss(sites) if objective is None else grpo_rm_loss(sites, objective)
    return output.loss.detach(), torch.autograd.grad(output.loss, leaf)[0], output.stats


def push(objective, logits, targets, *others):
    """Return dJ/dz of each site: minus the gradient of the loss, which is a mean over the sites."""
    return -run(objective, logits, targets, *others)[1] * len(logits)


def one_hot(targets, num_outputs):
    return F.one_hot(targets, num_outputs).double()


# cross-entropy


def test_cross_entropy_equals_torch():
    logits, targets = random_logits()
    leaf = logits.clone().requires_grad_()
    F.cross_entropy(leaf, targets).backward()
    loss, gradient, stats = run(None, logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-12)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert stats["entropy"].item() == pytest.approx(entropy)
    assert stats["max_abs_logit"].item() == pytest.approx(logits.abs().max().item())
    assert set(stats) == {"entropy", "max_abs_logit"}


def test_cross_entropy_golden():
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    assert run(None, logits, torch.tensor([0, 1]))[0].item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_cross_entropy_of_several_labels_is_their_mean():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]).log()
    members = torch.tensor([[True, False, True], [False, True, False]])
    expected = (-(math.log(0.5) + math.log(0.2)) / 2 - math.log(0.3)) / 2
    assert run(None, logits, members)[0].item() == pytest.approx(expected)
    logits, targets = random_logits()
    members = one_hot(targets, 5).bool()
    torch.testing.assert_close(run(None, logits, members), run(None, logits, targets))


@pytest.mark.parametrize("void", [-1, -100])
def test_cross_entropy_ignores_void_sites(void):
    logits, targets = random_logits(2, 24)
    logits, targets = logits.view(2, 4, 6), torch.tensor([[0, void, 3, 1, void, 2], [void] * 6])
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf, targets, ignore_index=void)
    expected.backward()
    loss, gradient, _ = run(None, logits, targets)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-12)


# the gradient at the logits, with pi_old the present policy


def test_golden_of_five_outputs():
    """pi = (.5, .3, .1, .05, .05), y = 2: dJ/dz is the golden advantage over K."""
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]], dtype=torch.float64).log()
    actual = push(objective_of(eps=0), logits, torch.tensor([2]))
    expected = [a / 5 for a in (-1.0403, -0.6242, 1.8726, -0.1040, -0.1040)]
    assert actual[0].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("num_outputs", [2, 10])
def test_uniform_weighting_is_a_constant_push_of_accuracy(num_outputs):
    """sqrt(K - 1) / K at the label, whatever the confidence."""
    logits, targets = random_logits(4, num_outputs)
    for factor in (0.01, 1, 5):
        at_label = push(objective_of(ACCURACY, eps=0), factor * logits, targets).gather(1, targets[:, None])
        torch.testing.assert_close(at_label, torch.full_like(at_label, math.sqrt(num_outputs - 1) / num_outputs))


@settings(max_examples=30)
@given(
    num_outputs=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    weights=st.tuples(st.floats(0.1, 2), st.floats(0, 2)),
    scale=st.sampled_from(["group", "none"]),
    statistics=st.sampled_from(CHOICES),
    weighting=st.sampled_from(CHOICES),
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
    objective = objective_of(
        dict(zip(REWARDS, weights, strict=True)), scale=scale, statistics=statistics, weighting=weighting, eps=0.01
    )
    torch.testing.assert_close(push(objective, logits, targets), expected, rtol=1e-6, atol=1e-7)


def test_policy_weighting_with_policy_statistics_is_the_bernoulli_deviation():
    """dJ/dz_y = sqrt(p_y (1 - p_y)) with the accuracy reward alone."""
    logits, targets = random_logits()
    p = logits.softmax(dim=-1).gather(1, targets[:, None])
    actual = push(objective_of(ACCURACY, statistics="policy", weighting="policy", eps=0), logits, targets)
    torch.testing.assert_close(actual.gather(1, targets[:, None]), (p * (1 - p)).sqrt(), rtol=1e-6, atol=1e-7)


@settings(max_examples=30)
@given(num_outputs=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_cross_entropy_is_a_member_of_the_family(num_outputs, seed):
    """Accuracy and uniformity, scale none, weighting uniform: cross-entropy's gradient over K."""
    logits, targets = random_logits(4, num_outputs, seed)
    actual = push(objective_of(scale="none"), logits, targets)
    torch.testing.assert_close(actual, push(None, logits, targets) / num_outputs, rtol=1e-6, atol=1e-12)


def test_group_scale_keeps_the_direction_of_cross_entropy_at_a_constant_norm():
    logits, targets = random_logits()
    actual, control = push(objective_of(eps=0), logits, targets), push(None, logits, targets)
    torch.testing.assert_close(F.cosine_similarity(actual, control), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(actual.norm(dim=1), torch.full((6,), 5**-0.5, dtype=torch.float64))


def test_uniformity_weight_interpolates_between_constant_push_and_cross_entropy():
    logits, targets = random_logits()
    actual = push(objective_of({"accuracy": 1.0, "uniformity": 0.3}, scale="none"), logits, targets)
    constant = push(objective_of(ACCURACY, scale="none"), logits, targets)
    torch.testing.assert_close(constant, (one_hot(targets, 5) - 1 / 5) / 5)
    torch.testing.assert_close(actual, 0.7 * constant + 0.3 * push(None, logits, targets) / 5)


def test_a_reward_of_weight_0_is_only_logged():
    logits, targets = random_logits()
    rewards = REWARDS | {"own": lambda group: torch.full_like(group.old_log_probs, 1e30)}
    expected = run(objective_of({"accuracy": 1.0}), logits, targets)
    for logged, weights in (("uniformity", ACCURACY), ("own", {"accuracy": 1.0, "own": 0.0})):
        loss, gradient, stats = run(objective_of(weights, rewards=rewards), logits, targets)
        assert loss == expected[0]
        assert torch.equal(gradient, expected[1])
        assert all(stats[name] == value for name, value in expected[2].items())
        assert f"rewards/{logged}/mean" in stats


def test_the_matrix_of_costs_decides_where_probability_goes():
    """Of two wrong outputs that are equally likely the dearer one is pushed down more."""
    costs = torch.tensor([[0.0, 1.0, 10.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    objective = objective_of({"cost": 1.0}, rewards={"cost": MatrixReward(-costs)})
    gradient = push(objective, torch.zeros(1, 3), torch.tensor([0]))[0]
    assert gradient[0] > gradient[1] > 0 > gradient[2]


# against loops, with every term


def naive_loss(objective, logits, labels, old_logits, reference_logits, reward_of):
    """One site in Python floats: loss, and what is logged of it. `labels` is a set."""

    def softmax(values):
        top = max(values)
        total = sum(math.exp(z - top) for z in values)
        return [math.exp(z - top) / total for z in values]

    def mean(values, weights):
        return sum(v * w for v, w in zip(values, weights, strict=True))

    full_old, full = softmax(old_logits), softmax(logits)
    outputs = list(range(len(logits)))
    if objective.candidates is not None and objective.candidates < len(logits) - 1:
        ranked = sorted(outputs, key=lambda k: (k not in labels, -old_logits[k]))
        outputs = ranked[: objective.candidates + 1]
    p, q, reference = (softmax([z[k] for k in outputs]) for z in (logits, old_logits, reference_logits))
    size = len(outputs)
    rewards = [reward_of(k, labels, q[index]) for index, k in enumerate(outputs)]
    even = [1 / size] * size
    stats_weights = q if objective.statistics == "policy" else even
    center = mean(rewards, stats_weights)
    std = math.sqrt(mean([(r - center) ** 2 for r in rewards], stats_weights))
    divisor = std + objective.eps if objective.scale == "group" else 1
    advantages = [(r - center) / divisor for r in rewards]
    weights = q if objective.weighting == "policy" else even
    log_ratios = [math.log(a / b) for a, b in zip(p, q, strict=True)]
    low = high = 0.0
    if objective.surrogate == "clipped":
        gains = []
        for log_ratio, advantage in zip(log_ratios, advantages, strict=True):
            ratio = math.exp(max(-5, min(5, log_ratio)))
            clipped = max(1 - objective.clip_low, min(1 + objective.clip_high, ratio))
            gains.append(min(min(ratio, objective.ratio_cap or math.inf) * advantage, clipped * advantage))
            low += (advantage < 0 and ratio < 1 - objective.clip_low) / size
            high += (advantage > 0 and ratio > 1 + objective.clip_high) / size
        surrogate = mean(gains, weights)
    else:
        middle = mean(log_ratios, stats_weights)
        spread = math.sqrt(mean([(r - middle) ** 2 for r in log_ratios], stats_weights) + objective.eps**2)
        errors = [(a - (r - middle) / spread) ** 2 for a, r in zip(advantages, log_ratios, strict=True)]
        surrogate = -mean(errors, weights)
    entropy = -mean([math.log(value) for value in p], p)
    kl = mean([math.log(a / b) for a, b in zip(p, reference, strict=True)], p)
    nll = -sum(math.log(full[k]) for k in labels) / len(labels)
    loss = -surrogate + objective.beta * kl - objective.entropy_weight * entropy + objective.supervised_weight * nll
    average = mean(rewards, q)
    return {
        "loss": loss,
        "entropy": entropy,
        "kl": kl,
        "old_kl": mean([-value for value in log_ratios], q),
        "reward": average,
        "reward_std": math.sqrt(mean([(r - average) ** 2 for r in rewards], q)),
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "candidate_mass": sum(full_old[k] for k in outputs),
    }


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num_outputs=st.integers(2, 7),
    surrogate=st.sampled_from(["clipped", "regressive"]),
    scale=st.sampled_from(["group", "none"]),
    statistics=st.sampled_from(CHOICES),
    weighting=st.sampled_from(CHOICES),
    clip=st.sampled_from([(0.2, 0.2, None), (0.1, 0.4, 1.5), (1.0, 0.0, None)]),
    candidates=st.sampled_from([None, 1, 2, 4]),
    extras=st.tuples(*[st.sampled_from([0.0, 0.7])] * 3),
    is_multi=st.booleans(),
    is_fresh=st.booleans(),
)
def test_naive_reference(
    seed, num_outputs, surrogate, scale, statistics, weighting, clip, candidates, extras, is_multi, is_fresh
):
    generator = torch.Generator().manual_seed(seed)
    drawn = 2 * torch.randn(3, 4, num_outputs, dtype=torch.float64, generator=generator)
    logits, old_logits, reference_logits = drawn.unbind()
    old_logits = logits if is_fresh else old_logits
    targets = torch.randint(num_outputs, (4,), generator=generator)
    members = one_hot(targets, num_outputs).bool() | (torch.rand(4, num_outputs, generator=generator) > 0.8)
    rewards = {"accuracy": accuracy_reward, "uniformity": uniformity_reward, "own": lambda group: group.outputs}
    objective = objective_of(
        {"accuracy": 1.3, "uniformity": 0.4, "own": -0.01},
        rewards=rewards,
        surrogate=surrogate,
        scale=scale,
        statistics=statistics,
        weighting=weighting,
        eps=0.02,
        **dict(zip(("clip_low", "clip_high", "ratio_cap"), clip, strict=True)),
        candidates=candidates,
        **dict(zip(("beta", "entropy_weight", "supervised_weight"), extras, strict=True)),
    )
    sites = sites_of(logits, members if is_multi else targets, None if is_fresh else old_logits, reference_logits)
    output = grpo_rm_loss(sites, objective)
    expected = [
        naive_loss(
            objective,
            logits[n].tolist(),
            set(members[n].nonzero().flatten().tolist()) if is_multi else {targets[n].item()},
            old_logits[n].tolist(),
            reference_logits[n].tolist(),
            lambda k, labels, q: 1.3 * (k in labels) - 0.4 * q - 0.01 * k,
        )
        for n in range(4)
    ]
    means = {name: sum(site[name] for site in expected) / 4 for name in expected[0]}
    actual = output.stats | {"loss": output.loss}
    for name, value in means.items():
        if name in actual:
            assert actual[name].item() == pytest.approx(value, rel=1e-6, abs=1e-6), name
    is_cut = candidates is not None and candidates < num_outputs - 1
    absent = set() if objective.beta else {"kl"}
    absent |= set() if is_cut else {"candidate_mass"}
    absent |= set() if surrogate == "clipped" else {name for name in means if name.startswith("clip_")}
    assert set(means) - set(actual) == absent


OBJECTIVES = {
    "default": objective_of(),
    "policy": objective_of(weighting="policy", statistics="policy"),
    "capped": objective_of(clip_low=0.1, clip_high=0.3, ratio_cap=2.0),
    "regressive": objective_of(surrogate="regressive", eps=0.05),
    "all terms": objective_of(beta=0.3, entropy_weight=0.2, supervised_weight=0.5),
    "candidates": objective_of(candidates=2, beta=0.3, entropy_weight=0.2, supervised_weight=0.5),
    "none": objective_of({"accuracy": 0.0, "uniformity": 0.0}, eps=0.0),
}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@each_objective
@pytest.mark.parametrize("is_multi", [False, True])
def test_gradients_against_finite_differences(objective, is_multi):
    logits, targets = random_logits(seed=3)
    old_logits, reference = random_logits(seed=4)[0], random_logits(seed=5)[0]
    members = one_hot(targets, 5).bool() | one_hot((targets + 2) % 5, 5).bool()
    sites = sites_of(logits, members if is_multi else targets, old_logits, reference)
    assert torch.autograd.gradcheck(
        lambda z: grpo_rm_loss(sites._replace(logits=z), objective).loss, logits.requires_grad_()
    )


@each_objective
def test_a_given_old_policy_that_is_the_present_one_is_no_other(objective):
    logits, targets = random_logits()
    fresh = run(objective, logits, targets, None, logits)
    given_logits = run(objective, logits, targets, logits, logits)
    torch.testing.assert_close(fresh, given_logits, rtol=1e-6, atol=1e-9)


def test_reference_logits_are_asked_for():
    logits, targets = random_logits()
    with pytest.raises(ValueError, match=r"beta is 0\.5 and the sites have no reference_logits"):
        run(objective_of(beta=0.5), logits, targets)


@each_objective
def test_candidates_that_are_the_whole_set_are_the_whole_set(objective):
    if objective.candidates:
        return
    logits, targets = random_logits()
    settings = {name: getattr(objective, name) for name in objective.__dataclass_fields__}
    expected = run(objective, logits, targets, None, logits)
    for candidates in (4, 5, 1000):
        actual = run(Objective(**settings | {"candidates": candidates}), logits, targets, None, logits)
        assert actual[0] == expected[0]
        assert torch.equal(actual[1], expected[1])
        assert actual[2] == expected[2]


def test_candidates_leave_the_others_alone():
    logits, targets = random_logits(8, 9)
    gradient = push(objective_of(candidates=3), logits, targets)
    assert (gradient != 0).sum(dim=1).tolist() == [4] * 8
    assert (gradient.gather(1, targets[:, None]) > 0).all()
    masked = logits.scatter(1, targets[:, None], -math.inf)
    assert (gradient.gather(1, masked.topk(3).indices) != 0).all()


# what is logged


def test_what_is_logged():
    """TRL's names, where the thing is the same."""
    logits, targets = random_logits()
    names = {"entropy", "max_abs_logit", "old_kl", "reward", "reward_std", "frac_reward_zero_std"}
    names |= {f"rewards/{name}/{what}" for name in REWARDS for what in ("mean", "std")}
    clip = {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}
    assert set(run(objective_of(), logits, targets)[2]) == names | clip
    assert set(run(objective_of(), logits, targets, 2 * logits)[2]) == names | clip
    stats = run(objective_of(surrogate="regressive", beta=1, candidates=2), logits, targets, None, logits)[2]
    assert set(stats) == names | {"kl", "candidate_mass"}
    assert not any(value.requires_grad or value.shape for value in stats.values())


def test_statistics_of_rewards_by_hand():
    """pi (1/2, 1/4, 1/4), y = 0: accuracy has mean 1/2 and deviation 1/2; uniformity mean -3/8 and deviation 1/8."""
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    stats = run(objective_of({"accuracy": 2.0, "uniformity": 0.5}), logits, torch.tensor([0]))[2]
    golden = {
        "rewards/accuracy/mean": 1 / 2,
        "rewards/accuracy/std": 1 / 2,
        "rewards/uniformity/mean": -3 / 8,
        "rewards/uniformity/std": 1 / 8,
        "reward": 1 - 3 / 16,
        "reward_std": 1 - 1 / 16,
        "frac_reward_zero_std": 0,
        "entropy": 1.5 * math.log(2),
        "max_abs_logit": math.log(4),
    }
    assert {name: stats[name].item() for name in golden} == pytest.approx(golden, abs=1e-7)


def test_frac_reward_zero_std_counts_sites_without_a_signal():
    """A label with no output of its own is rewarded nowhere, here one site of four; a void site does not count."""
    own = {"own": lambda group: (group.outputs == group.targets.unsqueeze(1)) & (group.targets < 2).unsqueeze(1)}
    objective = objective_of({"own": 1.0}, rewards=own)
    logits = torch.zeros(4, 3)
    assert run(objective, logits, torch.tensor([0, 2, 1, 1]))[2]["frac_reward_zero_std"] == 0.25
    assert run(objective, logits, torch.tensor([0, -1, 1, 1]))[2]["frac_reward_zero_std"] == 0


def test_frac_reward_zero_std_is_0_for_accuracy_among_21841_outputs():
    logits = torch.randn(3, 21_841)
    for statistics in CHOICES:
        stats = run(objective_of(ACCURACY, statistics=statistics), logits, torch.tensor([5, 6, 21_840]))[2]
        assert stats["frac_reward_zero_std"] == 0


@pytest.mark.parametrize(("difference", "share"), [(0.0, 1), (1e-8, 1), (1e-5, 0), (0.05, 0)])
def test_frac_reward_zero_std_takes_small_differences_for_a_signal(difference, share):
    own = {"own": lambda group: 3 + difference * (group.outputs == 1).double()}
    stats = run(objective_of({"own": 1.0}, rewards=own), *random_logits(3, 1000))[2]
    assert stats["frac_reward_zero_std"].item() == pytest.approx(share)


# sites


@pytest.mark.parametrize("aggregation", ["per_image", "per_site", "constant"])
@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
def test_parts_of_a_batch_add_up_to_the_whole(aggregation, name):
    logits, _ = random_logits(6, 5 * 3 * 2)
    logits = logits.view(6, 5, 3, 2)
    old_logits, reference = logits.flip(0), logits.roll(1, 0)
    targets = torch.randint(-2, 5, (6, 3, 2), generator=torch.Generator().manual_seed(1))
    targets[1] = -1  # an image without a label
    weights = site_weights(targets >= 0, aggregation)
    count = site_count(targets >= 0, aggregation)

    def evaluate(part, part_weights):
        leaf = logits[part].clone().requires_grad_()
        sites = Sites(leaf, targets[part], part_weights, old_logits[part], reference[part])
        output = cross_entropy_loss(sites) if name == "cross_entropy" else grpo_rm_loss(sites, OBJECTIVES[name])
        return output.loss.detach(), torch.autograd.grad(output.loss, leaf)[0], output.stats

    loss, gradient, stats = evaluate(slice(None), weights)
    parts = [
        evaluate(part, site_weights(targets[part] >= 0, aggregation, count=count))
        for part in (slice(0, 1), slice(1, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)
    for key, value in stats.items():
        values = torch.stack([part[2][key] for part in parts])
        torch.testing.assert_close(values.amax() if key.startswith("max_") else values.sum(), value, msg=key)


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
def test_one_pixel_is_one_image_exactly(name):
    logits, targets = random_logits()
    old_logits, reference = random_logits(seed=1)[0], random_logits(seed=2)[0]
    objective = OBJECTIVES.get(name)
    for marked in (targets, one_hot(targets, 5).bool()):
        flat = run(objective, logits, marked, old_logits, reference)
        dense = run(objective, *(values[..., None, None] for values in (logits, marked, old_logits, reference)))
        assert dense[0] == flat[0]
        assert torch.equal(dense[1], flat[1][..., None, None])
        assert dense[2] == flat[2]


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_void_sites_change_nothing_whatever_their_values(name, bad):
    logits, targets = random_logits()
    old_logits, reference = random_logits(seed=1)[0], random_logits(seed=2)[0]
    void = torch.tensor([False, False, True, False, True, False])
    others = (logits, old_logits, reference)
    kept = run(OBJECTIVES.get(name), logits[~void], targets[~void], old_logits[~void], reference[~void])
    damaged_logits, *damaged = (values.masked_fill(void[:, None], bad) for values in others)
    loss, gradient, stats = run(OBJECTIVES.get(name), damaged_logits, targets.masked_fill(void, -1), *damaged)
    torch.testing.assert_close(loss, kept[0])
    torch.testing.assert_close(gradient[~void], kept[1])
    assert gradient[void].abs().max() == 0
    torch.testing.assert_close(stats, kept[2])


@pytest.mark.parametrize("weights", [{"own": 1.0}, {"accuracy": 1.0, "own": 0.0}])
def test_a_reward_that_is_not_finite_at_void_sites(weights):
    logits, targets = random_logits()
    rewards = REWARDS | {"own": lambda group: group.targets.double().sqrt()[:, None] * group.outputs}
    void = torch.tensor([False, False, True, False, True, False])
    _, gradient, stats = run(objective_of(weights, rewards=rewards), logits, targets.masked_fill(void, -4))
    assert gradient.isfinite().all()
    assert gradient[void].abs().max() == 0
    assert all(value.isfinite() for value in stats.values())


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
def test_without_a_site_that_counts_there_is_no_loss(name):
    logits = torch.full((2, 4, 3), math.nan)
    loss, gradient, stats = run(OBJECTIVES.get(name), logits, torch.full((2, 3), -1), logits, logits)
    assert loss == 0
    assert gradient.tolist() == torch.zeros(2, 4, 3).tolist()
    assert all(value == 0 for value in stats.values())


# numbers


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits, targets = random_logits()
    logits, old_logits = logits.to(dtype), logits.flip(0).to(dtype)
    half = run(OBJECTIVES.get(name), logits, targets, old_logits, old_logits)
    whole = run(OBJECTIVES.get(name), logits.float(), targets, old_logits.float(), old_logits.float())
    assert half[0].dtype == torch.float32
    assert half[0] == whole[0]
    assert torch.equal(half[1], whole[1].to(dtype))
    assert half[2] == whole[2]
    assert all(value.dtype == torch.float32 for value in half[2].values())


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
def test_autocast_changes_nothing(name):
    logits, targets = random_logits()
    expected = run(OBJECTIVES.get(name), logits.float(), targets, None, logits.float())
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(OBJECTIVES.get(name), logits.float(), targets, None, logits.float())
    assert actual[0] == expected[0]
    assert torch.equal(actual[1], expected[1])
    assert actual[2] == expected[2]


@pytest.mark.parametrize("name", [*OBJECTIVES, "cross_entropy"])
@settings(max_examples=15)
@given(
    num_outputs=st.sampled_from([2, 3, 10]),
    scale=st.sampled_from([1e-3, 1.0, 1e2, 1e4]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    is_fresh=st.booleans(),
)
def test_extreme_logits_stay_finite(name, num_outputs, scale, seed, dtype, is_fresh):
    logits, targets = random_logits(4, num_outputs, seed, scale)
    others = [random_logits(4, num_outputs, seed + n, scale)[0].to(dtype) for n in (1, 2)]
    others[0] = None if is_fresh else others[0]
    loss, gradient, stats = run(OBJECTIVES.get(name), logits.to(dtype), targets, *others)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(value.isfinite() for value in stats.values())
    assert -1e-6 <= stats["entropy"] <= math.log(num_outputs) + 1e-5
    # the policy does not see a constant, so the gradient sums to 0
    if dtype != torch.bfloat16:
        assert gradient.sum(dim=1).abs().max() <= 1e-4 * (1 + gradient.abs().max())


@pytest.mark.parametrize("name", ["default", "policy", "all terms", "cross_entropy"])
def test_float32_agrees_with_float64_at_21841_outputs(name):
    logits, targets = random_logits(3, 21_841)
    old_logits = logits + 0.3 * random_logits(3, 21_841, seed=1)[0]
    expected = run(OBJECTIVES.get(name), logits, targets, old_logits, old_logits)
    narrow = (values.float() for values in (old_logits, old_logits))
    loss, gradient, stats = run(OBJECTIVES.get(name), logits.float(), targets, *narrow)
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-4, atol=1e-5)
    wide = expected[1]
    assert (gradient - wide).norm() <= 1e-4 * wide.norm()
    for key, value in expected[2].items():
        torch.testing.assert_close(stats[key].double(), value.double(), rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_saturated_logits_teach_what_is_left_to_learn(eps):
    logits, targets = torch.tensor([[1e4, -1e4, 0.0], [300.0, 0.0, 0.0], [-1e4, 1e4, 1e4]]), torch.tensor([0, 0, 0])
    for statistics in CHOICES:
        gradient = push(objective_of(eps=eps, statistics=statistics), logits, targets)
        assert gradient[0].abs().max() == 0  # rightly saturated: there is nothing to learn
        if statistics == "uniform":  # under pi_old itself the rewards do not spread where p(label) is 0
            assert gradient[2].abs().max() > 0  # wrongly saturated: still pushed


# settings and the callable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rewards": {}, "reward_weights": {}},
            r"rewards are \[\] and reward_weights \[\], expected the same names, at",
        ),
        ({"reward_weights": {"accuracy": 1.0}}, r"rewards are \['accuracy', 'uniformity'\] and reward_weights \['accu"),
        ({"reward_weights": BOTH | {"accuracy": math.nan}}, r"reward_weights\['accuracy'\] is nan, expected a finite"),
        ({"surrogate": "clip"}, 'surrogate is \'clip\', expected "clipped" or "regressive"'),
        ({"scale": "batch"}, 'scale is \'batch\', expected "group" or "none"'),
        ({"statistics": "mean"}, 'statistics is \'mean\', expected "uniform" or "policy"'),
        ({"weighting": "mean"}, 'weighting is \'mean\', expected "uniform" or "policy"'),
        ({"eps": -1.0}, "eps is -1.0, expected a finite number, 0 or more"),
        ({"eps": 0.0, "surrogate": "regressive"}, "eps is 0.0, expected at least 1e-06 with surrogate"),
        ({"clip_low": -0.1}, "clip_low is -0.1, expected a finite number, 0 or more"),
        ({"clip_low": 1.5}, "clip_low is 1.5, expected at most 1"),
        ({"clip_high": math.inf}, "clip_high is inf, expected a finite number"),
        ({"ratio_cap": 1.1}, r"ratio_cap is 1.1, expected at least 1 \+ clip_high = 1.2, or None"),
        ({"candidates": 0}, "candidates is 0, expected at least 1, or None for all outputs"),
        ({"beta": -0.1}, "beta is -0.1, expected a finite number, 0 or more"),
        ({"entropy_weight": math.nan}, "entropy_weight is nan, expected a finite number, 0 or more"),
        ({"supervised_weight": -1}, "supervised_weight is -1, expected a finite number, 0 or more"),
    ],
)
def test_settings_are_checked_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**{"rewards": REWARDS, "reward_weights": BOTH} | settings)


def test_the_callable_is_the_function():
    logits, targets = random_logits()
    loss = pickle.loads(pickle.dumps(GrpoRmLoss(OBJECTIVES["all terms"])))
    sites = sites_of(logits, targets, None, logits)
    for _ in range(2):
        output, expected = loss(sites), grpo_rm_loss(sites, OBJECTIVES["all terms"])
        assert output.loss == expected.loss
        assert output.stats == expected.stats


def test_rewards_are_checked_on_the_first_batch_alone():
    logits, targets = random_logits()
    calls = []

    def own(group):
        calls.append(len(group.targets))
        return torch.full_like(group.old_log_probs, math.nan if len(calls) == 1 else 0.5)

    loss = GrpoRmLoss(objective_of({"own": 1.0}, rewards={"own": own}))
    with pytest.raises(ValueError, match="the reward 'own' is nan at site 0"):
        loss(sites_of(logits, targets))
    loss(sites_of(logits, targets))
    assert len(calls) == 3  # checked again after a failure, then computed
    loss(sites_of(logits, targets))
    assert len(calls) == 4


def test_a_reward_sees_its_group():
    seen = []

    def own(group):
        seen.append(group)
        return group.old_log_probs

    logits, targets = random_logits(3, 6)
    own_reward = {"own": own}
    sites = sites_of(logits.requires_grad_(), targets)
    classes = tuple("abcdef")
    grpo_rm_loss(sites, objective_of({"own": 1.0}, rewards=own_reward, classes=classes))
    grpo_rm_loss(sites, objective_of({"own": 1.0}, rewards=own_reward, classes=classes, candidates=2))
    for group, size in zip(seen, (6, 3), strict=True):
        assert group.classes == classes
        assert torch.equal(group.targets, targets)
        assert group.outputs.shape == (3, size)
        assert not group.old_log_probs.requires_grad
        torch.testing.assert_close(group.old_log_probs, log_policy(logits.detach().gather(1, group.outputs)))
    assert torch.equal(seen[0].outputs, torch.arange(6).expand(3, 6))
    assert torch.equal(seen[1].outputs[:, 0], targets)
