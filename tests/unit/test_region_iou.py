"""The reward of the regions: the closed form is what mIoU does when one site's prediction is changed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.losses import GrpoRmLoss, Objective, grpo_rm_loss
from grpo_rm.policy import log_policy
from grpo_rm.rewards import Group, accuracy_reward, region_iou_reward, uniformity_reward
from grpo_rm.sites import Sites, site_rows, site_weights, valid_sites

NO_CLASS = -9
RIGHT_AND_REGION = {"accuracy": accuracy_reward, "region_iou": region_iou_reward}


def miou(truth, predictions):
    """Of one image, over the classes in its truth; lists without void sites."""
    total = 0.0
    classes = set(truth)
    for c in classes:
        hits = sum(t == c and p == c for t, p in zip(truth, predictions, strict=True))
        union = sum(t == c or p == c for t, p in zip(truth, predictions, strict=True))
        total += hits / union
    return total / len(classes)


def brute_force(truth, predictions, num_outputs):
    """The definition: mIoU is computed anew for each site and output; a row of zeros where the site is void."""
    valid = [i for i, t in enumerate(truth) if t >= 0]
    rewards = [[0.0] * num_outputs for _ in truth]
    for place, i in enumerate(valid):

        def miou_with(output, place=place):
            changed = [predictions[j] for j in valid]
            changed[place] = output
            return miou([truth[j] for j in valid], changed)

        rewards[i] = [len(valid) * (miou_with(k) - miou_with(NO_CLASS)) for k in range(num_outputs)]
    return rewards


def group_of(truth, logits, outputs=None):
    """A group of (B, sites) masks and (B, sites, K) logits."""
    targets, rows = truth.reshape(-1), logits.flatten(0, 1)
    is_full = outputs is None
    outputs = torch.arange(rows.shape[1]).expand_as(rows) if is_full else outputs
    images = torch.arange(len(truth)).repeat_interleave(truth.shape[1])
    return Group(targets, outputs, log_policy(rows.gather(1, outputs)), is_full=is_full, images=images)


def draw(seed, num_images, num_sites, num_outputs):
    """Masks of which a quarter is void, some classes absent, and logits that are often right."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(num_outputs, (num_images, num_sites), generator=generator)
    logits = torch.randn(num_images, num_sites, num_outputs, generator=generator)
    logits += 2 * torch.nn.functional.one_hot(truth, num_outputs)
    return truth.masked_fill(torch.rand(truth.shape, generator=generator) < 0.25, -1), logits


def expected_of(truth, logits):
    predictions = logits.argmax(-1)
    rows = [
        row
        for one, predicted in zip(truth.tolist(), predictions.tolist(), strict=True)
        for row in brute_force(one, predicted, logits.shape[-1])
    ]
    return torch.tensor(rows)


def test_golden():
    """Truth 0 0 1, predicted 0 1 1: n / C = 3 / 2, and of each site what the other two leave of I and U."""
    logits = torch.tensor([[[5.0, 0, 0], [0, 5, 0], [0, 5, 0]]])
    rewards = region_iou_reward(group_of(torch.tensor([[0, 0, 1]]), logits))
    golden = [
        [3 / 2 / 2, -3 / 2 * 1 / (2 * 3), 0],  # U_0 = 2, I_1 = 1, U_1 = 2
        [3 / 2 / 2, -3 / 2 * 1 / (1 * 2), 0],  # U_0 = 2, I_1 = 1, U_1 = 1: its own prediction is left out
        [-3 / 2 * 1 / (2 * 3), 3 / 2 / 2, 0],  # I_0 = 1, U_0 = 2, U_1 = 2
    ]
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, torch.tensor(golden))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.integers(2, 6))
def test_brute_force(seed, num_images, num_sites, num_outputs):
    truth, logits = draw(seed, num_images, num_sites, num_outputs)
    actual = region_iou_reward(group_of(truth, logits))
    torch.testing.assert_close(actual, expected_of(truth, logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_columns_of_the_whole_set(seed):
    """Any order; the old policy's best output is among them, as it always is."""
    truth, logits = draw(seed, 2, 7, 6)
    rows = logits.flatten(0, 1)
    outputs = rows.topk(3).indices.flip(1)
    labels = truth.reshape(-1, 1).clamp(min=0)
    has_label = (outputs == labels).any(dim=1, keepdim=True)
    outputs = torch.where(has_label | (torch.arange(3) > 0), outputs, labels)
    whole = region_iou_reward(group_of(truth, logits))
    assert torch.equal(region_iou_reward(group_of(truth, logits, outputs)), whole.gather(1, outputs))


def test_one_site_an_image_is_accuracy():
    truth, logits = draw(0, 40, 1, 5)
    group = group_of(truth, logits)
    assert torch.equal(region_iou_reward(group), accuracy_reward(group))
    assert accuracy_reward(group).sum() > 10  # else nothing was compared


def test_small_regions_weigh_more_and_absent_classes_nothing():
    """Ninety sites of class 0 and ten of class 1, all right: 1 / (C U) times n; class 2 is in no truth."""
    truth = torch.tensor([[0] * 90 + [1] * 10])
    rewards = region_iou_reward(group_of(truth, 9.0 * torch.nn.functional.one_hot(truth, 3)))
    torch.testing.assert_close(rewards[0, 0], torch.tensor(100 / (2 * 90)))
    torch.testing.assert_close(rewards[99, 1], torch.tensor(100 / (2 * 10)))
    assert (rewards[:, 2] == 0).all()
    torch.testing.assert_close(rewards[0, 1], torch.tensor(-100 / 2 / 11))
    torch.testing.assert_close(rewards[99, 0], torch.tensor(-100 / 2 / 91))


def test_images_without_a_label_and_void_sites():
    """Nothing is NaN; a void site's prediction does not count."""
    truth, logits = draw(3, 2, 6, 4)
    truth[0] = -1
    rewards = region_iou_reward(group_of(truth, logits))
    assert (rewards[:6] == 0).all() and rewards.isfinite().all()
    truth[1, 0] = -1
    before = region_iou_reward(group_of(truth, logits))
    logits[1, 0] = torch.randn(4)
    assert torch.equal(region_iou_reward(group_of(truth, logits)), before)


def test_large_images():
    """Counts over a million sites stay exact in float32: the mean reward of right answers is that of the formula."""
    truth = torch.zeros(1, 3_000_000, dtype=torch.int64)
    truth[:, -1] = 1
    logits = torch.nn.functional.one_hot(truth, 2).float()
    rewards = region_iou_reward(group_of(truth, logits))
    torch.testing.assert_close(rewards[0], torch.tensor([0.5, -3e6 / 2 / 2]), rtol=1e-6, atol=0)
    torch.testing.assert_close(rewards[-1], torch.tensor([-3e6 / 2 / 3e6, 3e6 / 2]), rtol=1e-6, atol=0)


def test_what_it_cannot_do():
    truth, logits = draw(0, 1, 4, 3)
    group = group_of(truth, logits)
    with pytest.raises(ValueError, match=r"targets are \(4, 3\), expected \(N,\), one label a site.*Leave this reward"):
        region_iou_reward(Group(torch.ones(4, 3, dtype=torch.bool), group.outputs, group.old_log_probs))
    with pytest.raises(ValueError, match=r"images is None, expected \(N,\) int64: say Group\(images="):
        region_iou_reward(Group(group.targets, group.outputs, group.old_log_probs))


def dense_sites_of(truth, logits, old_logits=None):
    """(B, sites) and (B, sites, K) as Sites of one row of pixels."""
    masks = truth.unsqueeze(1)
    pixels, old = (
        None if one is None else one.movedim(-1, 1).unsqueeze(2).double().requires_grad_(one is logits)
        for one in (logits, old_logits)
    )
    return Sites(pixels, masks, site_weights(valid_sites(masks)), old)


@pytest.mark.parametrize("has_old", [False, True])
def test_in_the_loss(has_old):
    """The image of each site reaches the reward, which goes by the old policy: the gradient is A / K by hand."""
    truth, logits = draw(1, 3, 8, 4)
    old_logits = draw(2, 3, 8, 4)[1] if has_old else None
    sites = dense_sites_of(truth, logits, old_logits)
    settings = Objective(rewards={"region_iou": region_iou_reward}, reward_weights={"region_iou": 1.0}, scale="none")
    rewards = expected_of(truth, old_logits if has_old else logits).double()
    output = GrpoRmLoss(settings)(sites)
    probs = (old_logits if has_old else logits).double().flatten(0, 1).softmax(-1)
    mean = (sites.weights.reshape(-1, 1) * probs * rewards).sum()
    torch.testing.assert_close(output.stats["rewards/region_iou/mean"], mean, rtol=1e-5, atol=1e-6)
    if has_old:
        return
    advantages = (rewards - rewards.mean(dim=-1, keepdim=True)) * sites.weights.reshape(-1, 1)
    (gradient,) = torch.autograd.grad(output.loss, sites.logits)
    torch.testing.assert_close(gradient.movedim(1, -1).reshape(-1, 4), -advantages / 4, rtol=1e-5, atol=1e-7)


def test_cross_entropy_cannot_say_this():
    """Two sites of equal logits and label, in images of different regions, are pushed differently."""
    truth = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]])
    logits = 3.0 * torch.nn.functional.one_hot(truth, 3)
    sites = dense_sites_of(truth, logits)
    settings = Objective(rewards={"region_iou": region_iou_reward}, reward_weights={"region_iou": 1.0}, scale="none")
    (gradient,) = torch.autograd.grad(grpo_rm_loss(sites, settings).loss, sites.logits)
    assert gradient[0, 0, 0, 0] > gradient[1, 0, 0, 0]  # both negative: of the small region more so


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_group_scale_leaves_the_shape_alone(eps):
    """A reward of any size has advantages of one size, until eps is above its deviation."""
    truth, logits = draw(4, 1, 30, 4)
    rows = site_rows(dense_sites_of(truth, logits))
    assert (rows.targets == truth.reshape(-1)).all()
    for factor in (1.0, 100.0):
        weights = {"accuracy": 0.0, "region_iou": factor}
        settings = Objective(rewards=RIGHT_AND_REGION, reward_weights=weights, eps=eps)
        sites = dense_sites_of(truth, logits)
        (gradient,) = torch.autograd.grad(grpo_rm_loss(sites, settings).loss, sites.logits)
        lengths = (gradient / sites.weights.unsqueeze(1).clamp(min=1e-9)).norm(dim=1).reshape(-1)[truth[0] >= 0]
        assert (lengths <= 1 / math.sqrt(4) + 1e-9).all()
        if eps == 0 or factor == 100:
            torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=0.02, atol=0)


def test_reward_with_uniformity_on_the_first_batch():
    """The check of the first batch sees images as well; candidates too."""
    truth, logits = draw(5, 2, 6, 5)
    rewards = {"region_iou": region_iou_reward, "uniformity": uniformity_reward}
    weights = {"region_iou": 1.0, "uniformity": 1.0}
    for candidates in (None, 2):
        loss = GrpoRmLoss(Objective(rewards=rewards, reward_weights=weights, candidates=candidates))
        assert loss(dense_sites_of(truth, logits)).loss.isfinite()


def test_several_labels_are_refused_by_the_loss():
    sites = Sites(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2))
    loss = GrpoRmLoss(Objective(rewards={"region_iou": region_iou_reward}, reward_weights={"region_iou": 1.0}))
    with pytest.raises(ValueError, match=r"the reward 'region_iou' failed: ValueError: targets are \(2, 3\)"):
        loss(sites)
