"""A loss computed part by part is the loss, whatever the parts and the layout of the logits."""

import pytest
import torch

from grpo_rm import loss_parts
from grpo_rm.losses import GrpoRmLoss, Objective, cross_entropy_loss, grpo_rm_loss
from grpo_rm.rewards import MatrixReward, accuracy_reward, region_iou_reward, uniformity_reward
from grpo_rm.sites import Sites, site_weights, valid_sites

ALL_TERMS = {"beta": 0.1, "entropy_weight": 0.1, "supervised_weight": 0.1, "eps": 0.01}


def objective(rewards=None, **settings):
    rewards = rewards or {"accuracy": accuracy_reward, "uniformity": uniformity_reward}
    return Objective(rewards=rewards, reward_weights=dict.fromkeys(rewards, 1.0), **settings)


def draw(shape, *, layout=torch.contiguous_format, dtype=torch.float32, seed=0):
    """Sites of which a fifth is void, with old and reference logits."""
    generator = torch.Generator().manual_seed(seed)
    logits, old, reference = (2 * torch.randn(shape, generator=generator) for _ in range(3))
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -1
    if len(shape) == 4:
        logits = logits.contiguous(memory_format=layout)
    weights = site_weights(valid_sites(targets))
    return Sites(logits.to(dtype).requires_grad_(), targets, weights, old.to(dtype), reference.to(dtype))


def gradient_of(output, sites):
    return torch.autograd.grad(output.loss, sites.logits)[0]


def check(loss, whole, sites, *, rtol=1e-5, atol=1e-7):
    """In parts of two sizes and at once: the same loss, statistics and gradient."""
    actual, expected = loss(sites), whole(sites)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert list(actual.stats) == list(expected.stats)
    for name, value in actual.stats.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected.stats[name], rtol=1e-5, atol=2e-6, msg=name)
    torch.testing.assert_close(gradient_of(actual, sites), gradient_of(expected, sites), rtol=rtol, atol=atol)


SHAPES = [(3, 5, 4, 6), (3, 70, 4, 6), (7, 5, 3, 1), (9, 5), (4, 5, 1, 1)]


@pytest.mark.parametrize("part", [1, 60, 200])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_add_up(shape, layout, part, monkeypatch):
    settings, sites, sizes = objective(**ALL_TERMS), draw(shape, layout=layout), []

    def whole(sites):
        sizes.append(sites.weights.numel())
        return grpo_rm_loss(sites, settings)

    monkeypatch.setattr(loss_parts, "PART", part)
    check(lambda sites: loss_parts.loss_in_parts(whole, sites), whole, sites)
    assert sum(sizes[:-1]) == sizes[-1] == sites.weights.numel()
    if part == 1:
        assert set(sizes[:-1]) == {1}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_losses_of_the_arms(layout, monkeypatch):
    """What a trainer calls is cut, where the rewards allow it; torch's own in float64 is the reference."""
    sites = draw((2, 5, 6, 7), layout=layout)
    matrix = MatrixReward(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    rewards = {"accuracy": accuracy_reward, "matrix": matrix, "uniformity": uniformity_reward}
    settings = objective(rewards, statistics="policy", weighting="policy")
    expected = {
        "cross_entropy": gradient_of(cross_entropy_loss(sites), sites),
        "grpo_rm": gradient_of(GrpoRmLoss(settings)(sites), sites),
    }
    monkeypatch.setattr(loss_parts, "PART", 64)
    for name, loss in {"cross_entropy": cross_entropy_loss, "grpo_rm": GrpoRmLoss(settings)}.items():
        torch.testing.assert_close(gradient_of(loss(sites), sites), expected[name], rtol=1e-5, atol=1e-7)
    leaf = sites.logits.detach().double().requires_grad_()
    targets = sites.targets.masked_fill(sites.weights == 0, -100)
    plain = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad((plain * sites.weights).sum(), leaf)
    torch.testing.assert_close(expected["cross_entropy"].double(), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, monkeypatch):
    sites = draw((2, 5, 4, 4), dtype=dtype)
    settings = objective(**ALL_TERMS)
    monkeypatch.setattr(loss_parts, "PART", 20)
    check(GrpoRmLoss(settings), lambda sites: grpo_rm_loss(sites, settings), sites, rtol=1e-2, atol=1e-6)


def test_several_labels(monkeypatch):
    sites = draw((2, 5, 4, 4))
    members = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    sites = sites._replace(targets=members, weights=site_weights(valid_sites(members)))
    settings = objective(**ALL_TERMS)
    monkeypatch.setattr(loss_parts, "PART", 20)
    check(GrpoRmLoss(settings), lambda sites: grpo_rm_loss(sites, settings), sites)


def test_a_reward_of_regions_or_of_the_user_s_sees_whole_images(monkeypatch):
    seen = []

    def own_reward(group):
        seen.append(len(group.outputs))
        return group.old_log_probs

    sites = draw((2, 5, 4, 6))
    expected = GrpoRmLoss(objective({"region": region_iou_reward}))(sites).loss
    monkeypatch.setattr(loss_parts, "PART", 20)
    GrpoRmLoss(objective({"own": own_reward}))(sites)
    assert seen == [48, 48]  # the check of the first batch, and the step
    assert torch.equal(GrpoRmLoss(objective({"region": region_iou_reward}))(sites).loss, expected)


def test_incoming_gradient_and_a_second_backward(monkeypatch):
    sites = draw((2, 5, 4, 4))
    expected = gradient_of(cross_entropy_loss(sites), sites)
    monkeypatch.setattr(loss_parts, "PART", 20)
    loss = cross_entropy_loss(sites).loss
    (-3 * loss).backward(retain_graph=True)
    torch.testing.assert_close(sites.logits.grad, -3 * expected)
    loss.backward()
    torch.testing.assert_close(sites.logits.grad, -2 * expected)
    with torch.no_grad():
        assert not cross_entropy_loss(sites).loss.requires_grad


def test_shapes_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(loss_parts, "PART", 20)
    sites = draw((2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"targets are \(2, 3, 4\), expected labels \(2, 4, 4\)"):
        cross_entropy_loss(sites._replace(targets=sites.targets[:, :3]))


@pytest.mark.parametrize("part", [20, 1 << 18])
def test_one_pixel_an_image_is_classification_bit_for_bit(part, monkeypatch):
    monkeypatch.setattr(loss_parts, "PART", part)
    images = draw((9, 5))
    pixels = Sites(*(one.detach().reshape(*one.shape, 1, 1) for one in images if one is not None))
    pixels.logits.requires_grad_()
    for loss in (cross_entropy_loss, GrpoRmLoss(objective(**ALL_TERMS))):
        image, pixel = loss(images), loss(pixels)
        assert torch.equal(image.loss, pixel.loss)
        assert torch.equal(gradient_of(image, images), gradient_of(pixel, pixels).flatten(1))
