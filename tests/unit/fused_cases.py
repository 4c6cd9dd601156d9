"""The cases of test_fused.py, which runs them in a process of its own: Triton has to be told before it is imported."""

import itertools
import math
import os

import pytest
import torch

from grpo_rm.fused import fused_grpo_rm_loss, is_fusable
from grpo_rm.losses import Objective, grpo_rm_loss
from grpo_rm.rewards import MatrixReward, accuracy_reward, region_iou_reward, uniformity_reward
from grpo_rm.sites import Sites, site_weights, valid_sites

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DEFAULT_REWARDS = {"accuracy": (accuracy_reward, 1.0), "uniformity": (uniformity_reward, 1.0)}
SHAPES = [(3, 2), (170, 5), (3, 13), (2, 1000), (1, 21841), (2, 7, 3, 5), (1, 40, 65)]


def objective(rewards=None, **options):
    rewards = DEFAULT_REWARDS if rewards is None else rewards
    return Objective(
        rewards={name: reward for name, (reward, _) in rewards.items()},
        reward_weights={name: weight for name, (_, weight) in rewards.items()},
        **options,
    )


def all_rewards(outputs):
    """Two of each kind, one of them only logged."""
    matrices = torch.randn(2, outputs, outputs, generator=torch.Generator().manual_seed(1))
    return {
        "first": (MatrixReward(matrices[0]), 0.7),
        "accuracy": (accuracy_reward, 1.5),
        "other": (MatrixReward(matrices[1]), -0.2),
        "uniformity": (uniformity_reward, 0.5),
        "logged": (MatrixReward(matrices[0]), 0.0),
    }


def random_sites(shape, *, has_old=False, has_reference=False, spread=0.4, scale=2.0, dtype=torch.float32, seed=0):
    """About a tenth of the sites without a label, and the last with NaN."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator)
    others = [logits + spread * torch.randn(shape, generator=generator) for _ in range(2)]
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.1] = -1
    if targets.numel() > 2:
        targets.view(-1)[-1] = -1
        for one in (logits, *others):
            one.movedim(1, -1)[targets == -1] = float("nan")
    weights = site_weights(valid_sites(targets)) * (0.5 + torch.rand(targets.shape, generator=generator))
    logits, *others = (one.to(DEVICE, dtype) for one in (logits, *others))
    others = [one if is_wanted else None for one, is_wanted in zip(others, (has_old, has_reference), strict=True)]
    return Sites(logits.requires_grad_(), targets.to(DEVICE), weights.to(DEVICE), *others)


def naive_loss(sites, settings):
    """Site by site in float64, by autograd, from the formulas: the loss and the statistics."""
    logits = (sites.logits, sites.old_logits, sites.reference_logits)
    rows = [None if one is None else one.double().movedim(1, -1).reshape(-1, one.shape[1]) for one in logits]
    totals = {"max_abs_logit": torch.zeros((), dtype=torch.float64)}
    for n, (y, weight) in enumerate(zip(sites.targets.reshape(-1).tolist(), sites.weights.reshape(-1), strict=True)):
        if weight == 0:
            continue
        site = naive_site(*(one if one is None else one[n] for one in rows), y, settings)
        for name, value in site.items():
            totals[name] = totals.get(name, 0) + weight.double() * value
        totals["max_abs_logit"] = max(totals["max_abs_logit"], rows[0][n].detach().abs().max())
    return totals.pop("loss", rows[0].nansum() * 0), totals


def naive_site(logits, old_logits, reference_logits, y, settings):
    outputs = len(logits)
    log_p = logits.log_softmax(0)
    log_q = log_p.detach() if old_logits is None else old_logits.log_softmax(0)
    p, q = log_p.exp(), log_q.exp()
    is_target = torch.arange(outputs, device=logits.device) == y
    stats, reward = {}, torch.zeros_like(q)
    for name, function in settings.rewards.items():
        if isinstance(function, MatrixReward):
            values = function.matrix.to(logits.device)[y].double()
        else:
            values = {accuracy_reward: is_target.double(), uniformity_reward: -q}[function]
        reward = reward + settings.reward_weights[name] * values
        stats[f"rewards/{name}/mean"] = mean = (q * values).sum()
        stats[f"rewards/{name}/std"] = (q * (values - mean) ** 2).sum().sqrt()
    stats["reward"] = (q * reward).sum()
    stats["reward_std"] = (q * (reward - stats["reward"]) ** 2).sum().sqrt()
    stats["frac_reward_zero_std"] = float(reward.max() - reward.min() < 1e-6)
    share = q if settings.statistics == "policy" else torch.full_like(q, 1 / outputs)
    advantage = reward - (share * reward).sum()
    if settings.scale == "group":
        advantage = advantage / ((share * advantage**2).sum().sqrt() + settings.eps)
    rho = (log_p - log_q).clamp(-5, 5).exp().clamp(max=settings.ratio_cap or math.inf)
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    weight = q if settings.weighting == "policy" else torch.full_like(q, 1 / outputs)
    gain = torch.minimum(rho * advantage, rho.clamp(low, high) * advantage)
    if old_logits is None:  # the ratio is 1: nothing is beyond the clip, even where it begins there
        gain = rho * advantage
    surrogate = (weight * gain).sum()
    stats["clip_ratio/low_mean"] = ((rho < low) & (advantage < 0)).double().mean()
    stats["clip_ratio/high_mean"] = ((rho > high) & (advantage > 0)).double().mean()
    stats["clip_ratio/region_mean"] = stats["clip_ratio/low_mean"] + stats["clip_ratio/high_mean"]
    entropy = -(p * log_p).sum()
    stats |= {"entropy": entropy.detach(), "old_kl": (q * (log_q - log_p)).sum().detach()}
    stats["loss"] = -surrogate - settings.entropy_weight * entropy - settings.supervised_weight * log_p[y]
    if settings.beta:
        stats["kl"] = (p * (log_p - reference_logits.log_softmax(0))).sum()
        stats["loss"] = stats["loss"] + settings.beta * stats["kl"]
        stats["kl"] = stats["kl"].detach()
    return stats


def gradient_of(loss, logits):
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def check(sites, settings, *, atol=2e-6, plain_atol=1e-5):
    """Loss, gradient and every statistic are those of the naive loss, and of the plain one, which is less exact."""
    assert is_fusable(sites, settings)
    output, plain = fused_grpo_rm_loss(sites, settings), grpo_rm_loss(sites, settings)
    loss, stats = naive_loss(sites, settings)
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, plain.loss, rtol=1e-4, atol=plain_atol)
    assert output.stats.keys() == plain.stats.keys()
    for name, value in output.stats.items():
        expected = torch.as_tensor(stats.get(name, 0.0), dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=2e-5, msg=name)
        torch.testing.assert_close(value, plain.stats[name], rtol=1e-3, atol=plain_atol, msg=name)
    gradient, *expected = (gradient_of(one, sites.logits) for one in (output.loss, loss, plain.loss))
    assert gradient.dtype == sites.logits.dtype
    assert (gradient.movedim(1, -1)[sites.weights == 0] == 0).all()
    rtol = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}[gradient.dtype]
    torch.testing.assert_close(gradient, expected[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient, expected[1], rtol=rtol, atol=plain_atol)


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, has_old):
    check(random_sites(shape, has_old=has_old), objective())


CHOICES = [
    {"statistics": statistics, "weighting": weighting, "scale": scale}
    for statistics, weighting, scale in itertools.product(
        ("uniform", "policy"), ("uniform", "policy"), ("group", "none")
    )
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("is_fresh", [False, True])
def test_group_statistics(is_fresh, choices):
    rewards = None if is_fresh else all_rewards(5)
    check(random_sites((4, 5), has_old=not is_fresh), objective(rewards, eps=0.01, **choices))


@pytest.mark.parametrize(("accuracy", "uniformity"), [(1.0, None), (None, 2.0), (-1.0, -0.5), (0.5, 1.5)])
def test_reward_weights(accuracy, uniformity):
    weights = {"accuracy": (accuracy_reward, accuracy), "uniformity": (uniformity_reward, uniformity)}
    rewards = {name: (reward, weight) for name, (reward, weight) in weights.items() if weight is not None}
    check(random_sites((4, 5)), objective(rewards))


@pytest.mark.parametrize("statistics", ["uniform", "policy"])
@pytest.mark.parametrize("shape", [(2, 40), (1, 40, 2, 3)])
def test_rewards_in_chunks(shape, statistics):
    check(random_sites(shape, has_old=True), objective(all_rewards(40), statistics=statistics, weighting="policy"))


TERMS = [
    {"clip_low": 0.1, "clip_high": 0.3},
    {"ratio_cap": 1.3},
    {"beta": 0.3},
    {"entropy_weight": 0.2},
    {"clip_low": 0.0, "clip_high": 0.0},
    {"clip_low": 1.0, "clip_high": 3.0},
    {"supervised_weight": 0.5},
    {"beta": 0.1, "entropy_weight": 0.1, "supervised_weight": 0.1, "ratio_cap": 2.0, "weighting": "policy"},
]


@pytest.mark.parametrize(("has_old", "spread"), [(False, 0.4), (True, 2.0)])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_terms(terms, has_old, spread):
    check(random_sites((6, 5), has_old=has_old, has_reference=True, spread=spread), objective(**terms))


def test_terms_of_pixels():
    check(random_sites((2, 7, 3, 5), has_old=True, has_reference=True), objective(**TERMS[-1]))


ALL_TERMS = {"beta": 0.1, "entropy_weight": 0.1, "supervised_weight": 0.1}


@pytest.mark.parametrize("shape", [(3, 40), (2, 7, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, shape):
    check(random_sites(shape, has_old=True, has_reference=True, dtype=dtype), objective(**ALL_TERMS))
    check(random_sites(shape, dtype=dtype), objective(all_rewards(shape[1])))


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 3, 5)])
def test_extreme_logits(shape, has_old):
    check(random_sites(shape, has_old=has_old, has_reference=True, scale=1e4), objective(**ALL_TERMS), atol=1e-4)


@pytest.mark.parametrize("gap", [1e-3, 10.0, 17.0])
@pytest.mark.parametrize("target", [0, 1])
def test_confident_logits(target, gap):
    """Nearly certain, right or wrong: what is left of the errors does not drown in rounding."""
    logits = torch.zeros(1, 6, device=DEVICE)
    logits[0, 0] = gap
    sites = Sites(logits.requires_grad_(), torch.tensor([target], device=DEVICE), torch.ones(1, device=DEVICE))
    check(sites, objective(), atol=2e-5, plain_atol=1e-3)
    check(sites, objective(scale="none"), atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 5), (2, 7, 3, 5)])
def test_all_sites_masked(shape):
    sites = random_sites(shape, has_old=True)
    nothing = Sites(sites.logits, torch.full_like(sites.targets, -1), torch.zeros_like(sites.weights), sites.old_logits)
    check(nothing, objective())
    output = fused_grpo_rm_loss(nothing, objective())
    assert not any([output.loss, *output.stats.values()])


def test_no_signal():
    """Equal rewards: no gradient, and it is said."""
    sites = Sites(torch.zeros(2, 5, device=DEVICE).requires_grad_(), *random_sites((2, 5))[1:3])
    for settings in (objective({"uniformity": (uniformity_reward, 1.0)}), objective({"none": (accuracy_reward, 0.0)})):
        output = fused_grpo_rm_loss(sites, settings)
        torch.testing.assert_close(output.stats["frac_reward_zero_std"], sites.weights.sum())
        assert output.loss.abs() < 1e-3 and gradient_of(output.loss, sites.logits).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float32, 1.0), (torch.float32, -3.0), (torch.bfloat16, 0.3), (torch.float16, 1.0), (torch.float16, 0.3)],
)
def test_incoming_gradient(dtype, factor):
    sites = random_sites((5, 300), dtype=dtype)
    plain = gradient_of(naive_loss(sites, objective())[0] * factor, sites.logits)
    fused = gradient_of(fused_grpo_rm_loss(sites, objective()).loss * factor, sites.logits)
    torch.testing.assert_close(fused, plain, rtol=2e-2, atol=1e-6)


def test_loss_scaling():
    """What a gradient scaler is for: without it the gradient is below what float16 can hold."""
    sites = random_sites((3, 1000), dtype=torch.float16)
    sites = sites._replace(weights=sites.weights / 1e4)
    scale = torch.tensor(65536.0, device=DEVICE)
    expected = gradient_of(naive_loss(sites, objective())[0] * scale, sites.logits)
    assert (expected / scale == 0).float().mean() > 0.9
    gradient = gradient_of(fused_grpo_rm_loss(sites, objective()).loss * scale, sites.logits)
    torch.testing.assert_close(gradient, expected, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "other"])
def test_layouts(layout):
    """Logits that are not contiguous, and old logits in another layout than the logits."""
    sites = random_sites((2, 8, 3, 4), has_old=True)
    logits = sites.logits.detach()
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        logits = torch.cat([logits, logits], dim=3)[..., :4]
    else:
        sites = sites._replace(old_logits=sites.old_logits.contiguous(memory_format=torch.channels_last))
    sites = sites._replace(logits=logits.requires_grad_())
    check(sites, objective())
    check(sites._replace(old_logits=None), objective(all_rewards(8)))


def test_one_pixel_sliced():
    """Nothing is contiguous, neither outputs nor sites."""
    sites = random_sites((4, 6, 1, 2))
    logits = sites.logits.detach()[..., :1].requires_grad_()
    check(Sites(logits, sites.targets[..., :1], sites.weights[..., :1]), objective())


def test_images_are_pixels():
    """(N, K) and (N, K, 1, 1) are the same."""
    sites = random_sites((5, 7))
    dense = Sites(*(None if one is None else one.reshape(*one.shape, 1, 1) for one in sites))
    image, pixel = fused_grpo_rm_loss(sites, objective()), fused_grpo_rm_loss(dense, objective())
    torch.testing.assert_close(image.loss, pixel.loss)
    gradients = [gradient_of(output.loss, sites.logits) for output in (image, pixel)]
    torch.testing.assert_close(*gradients)


def test_naive_gradient():
    """The reference itself, against finite differences."""
    sites = random_sites((2, 4), has_old=True, has_reference=True)
    settings = objective(all_rewards(4), **ALL_TERMS)
    logits = sites.logits.detach().double().requires_grad_()

    def loss(logits):
        return naive_loss(sites._replace(logits=logits), settings)[0]

    assert torch.autograd.gradcheck(loss, logits)


def test_old_policy_gets_no_gradient():
    sites = random_sites((5, 7), has_old=True)
    sites.old_logits.requires_grad_()
    fused_grpo_rm_loss(sites, objective()).loss.backward()
    assert sites.old_logits.grad is None


def test_without_gradient():
    sites = random_sites((5, 7))
    with torch.no_grad():
        output = fused_grpo_rm_loss(sites, objective())
    assert not output.loss.requires_grad and not any(value.requires_grad for value in output.stats.values())
    torch.testing.assert_close(output.loss.double(), naive_loss(sites, objective())[0])


def test_second_backward():
    """The gradient is given away: scaled twice it would be wrong without a word."""
    loss = fused_grpo_rm_loss(random_sites((5, 7)), objective()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def custom_reward(group):
    return group.old_log_probs


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (objective({"own": (custom_reward, 1.0)}), {}),
        (objective({"region": (region_iou_reward, 1.0)}), {}),
        (objective({"matrix": (MatrixReward(torch.zeros(3, 3)), 1.0)}), {}),
        (objective(surrogate="regressive"), {}),
        (objective(candidates=3), {}),
        (objective({"one": (accuracy_reward, 1.0), "two": (accuracy_reward, 1.0)}), {}),
        (objective(beta=0.1), {}),
        (objective(), {"logits": torch.zeros(4, 5, dtype=torch.float64)}),
        (objective(), {"old_logits": torch.zeros(4, 5, dtype=torch.float64)}),
        (objective(), {"targets": torch.zeros(4, 5, dtype=torch.bool)}),
        (objective(), {"weights": torch.zeros(3)}),
        (objective(), {"logits": torch.zeros(4, 32769)}),
    ],
    ids=str,
)
def test_not_fusable(settings, changes):
    sites = random_sites((4, 5))._replace(**{name: value.to(DEVICE) for name, value in changes.items()})
    assert not is_fusable(sites, settings)
    with pytest.raises(ValueError, match="is_fusable"):
        fused_grpo_rm_loss(sites, settings)


@pytest.mark.skipif(DEVICE == "cpu", reason="memory is measured on a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4096, 1000), (512, 21841), (8, 150, 128, 128)])
def test_memory(shape, dtype):
    """The gradient is all that the loss takes."""
    logits = torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), device=DEVICE)
    sites = Sites(logits, targets, site_weights(valid_sites(targets)))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fused_grpo_rm_loss(sites, objective()).loss.backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 1.1 * logits.numel() * logits.element_size()
