"""Dense models: features and logits of images of any size, and the sites that losses see of them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from grpo_rm.checkpoint import hash_model, load_model, save_model
from grpo_rm.dense import create_dense_encoder, places, take_levels
from grpo_rm.dense_head import DecoderHead, LinearHead, create_dense_head
from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_sites import dense_sites, site_targets, upsample
from grpo_rm.losses import Objective, cross_entropy_loss, grpo_rm_loss
from grpo_rm.masks import VOID
from grpo_rm.model import DenseConfig, Model, ModelConfig
from grpo_rm.rewards import accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites, site_count, site_weights, valid_sites

AGGREGATIONS = ("per_image", "per_site", "constant")
SIZES = [(17, 23), (8, 8), (240, 180)]
STRIDES = {"test_resnet": [4, 8, 16, 32], "test_vit": [16, 16, 16], "test_convnext": [4, 8, 16, 32]}
REWARDS = {"accuracy": accuracy_reward, "uniformity": uniformity_reward}
OBJECTIVES = {
    "cross_entropy": None,
    "grpo_rm": Objective(rewards=REWARDS, reward_weights={"accuracy": 1.0, "uniformity": 1.0}),
    "all_settings": Objective(
        rewards=REWARDS,
        reward_weights={"accuracy": 1.0, "uniformity": 0.5},
        statistics="policy",
        weighting="policy",
        candidates=2,
        beta=0.1,
        entropy_weight=0.1,
        supervised_weight=0.5,
    ),
    "regressive": Objective(
        rewards=REWARDS, reward_weights={"accuracy": 1.0, "uniformity": 1.0}, surrogate="regressive", eps=0.1
    ),
}


def config(encoder="test_resnet", strides=(8,), *, image_size=64, channels=3, **options):
    return DenseConfig(
        encoder,
        channels,
        image_size,
        "bilinear",
        [0.5] * channels,
        [0.25] * channels,
        ["a", "b", "c"],
        list(strides),
        **options,
    )


def create(encoder="test_resnet", strides=(8,), **options):
    torch.manual_seed(0)
    return DenseModel(config(encoder, strides, **options)).eval()


def images_of(height, width, count=2, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def loss_of(sites, objective):
    return (cross_entropy_loss(sites) if objective is None else grpo_rm_loss(sites, objective)).loss


# model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoder", STRIDES)
@pytest.mark.parametrize("head", ["linear", "decoder"])
def test_images_of_any_size(encoder, size, head):
    strides = STRIDES[encoder] if head == "decoder" else STRIDES[encoder][-2:-1]
    model = create(encoder, strides, head=head, width=12)
    embedding, logits = model(images_of(*size))
    expected = tuple(-(-side // strides[0]) for side in size)
    assert model.stride == strides[0]
    assert embedding.shape == (2, 12 if head == "decoder" else model.levels.dims[0], *expected)
    assert logits.shape == (2, 3, *expected)
    assert logits.isfinite().all()
    assert upsample(logits, size, model.stride).shape == (2, 3, *size)


@pytest.mark.parametrize("encoder", STRIDES)
def test_every_weight_is_trained(encoder):
    """What nothing uses is removed: a weight without gradient would stop DistributedDataParallel."""
    for strides in (STRIDES[encoder], STRIDES[encoder][:1]):
        model = create(encoder, strides, head="decoder").train()
        model(images_of(64, 64))[1].square().sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("encoder", STRIDES)
def test_padding_is_the_mean_color_and_is_cropped(encoder):
    model = create(encoder, STRIDES[encoder], head="decoder")
    images = images_of(40, 50)
    model.mean.fill_(51 / 255)  # a color that uint8 has
    height, width = (-(-side // max(model.config.strides)) * max(model.config.strides) for side in (40, 50))
    padded = torch.full((2, height, width, 3), 51, dtype=torch.uint8)
    padded[:, :40, :50] = images
    for got, whole in zip(model(images), model(padded), strict=True):
        rows, columns = places((40, 50), model.stride)
        torch.testing.assert_close(got, whole[..., :rows, :columns])
        assert got.shape[-2:] == (rows, columns)


def test_features_are_those_of_timm():
    model = create("test_vit", [16])
    images = images_of(64, 96)
    pixels = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    tokens = model.encoder.forward_features(pixels)[:, model.encoder.num_prefix_tokens :]
    embedding, logits = model(images)
    torch.testing.assert_close(embedding.flatten(2).movedim(1, -1), tokens)
    weight, bias = model.head.classify.weight.flatten(1), model.head.classify.bias
    torch.testing.assert_close(logits.flatten(2).movedim(1, -1), tokens @ weight.T + bias)


def test_an_encoder_of_classification_goes_on():
    """Its weights have the same names, and its features are the same but for what came after them."""
    whole = Model(ModelConfig("test_resnet", 3, 64, 1.0, "bilinear", [0.5] * 3, [0.25] * 3, ["a", "b"])).eval()
    expected = whole.encoder.forward_features(torch.zeros(1, 3, 64, 64))
    model = DenseModel(config(strides=[32]), encoder=copy.deepcopy(whole.encoder)).eval()
    assert set(model.encoder.state_dict()) <= set(whole.encoder.state_dict())
    images = torch.full((1, 64, 64, 3), 0, dtype=torch.uint8)
    model.mean.zero_()
    torch.testing.assert_close(model(images)[0], expected)
    assert "layer3.0.conv1.weight" not in create(strides=[4]).encoder.state_dict()


def test_features_of_a_plain_vit_are_spread_over_its_depth():
    encoder = create_dense_encoder("test_vit", pretrained=False, channels=3, image_size=32)
    assert len(encoder.blocks) == 6
    assert take_levels(encoder, [16] * 3, channels=3, image_size=32).indices == (1, 3, 5)
    assert take_levels(encoder, [16], channels=3, image_size=32).indices == (5,)
    with pytest.raises(ValueError, match="have 16 7 times, expected at most 6"):
        take_levels(encoder, [16] * 7, channels=3, image_size=32)


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_the_image_size_need_not_fit_the_patch(encoder):
    model = create(encoder, STRIDES[encoder][-1:], image_size=50)
    assert model.levels.fixed_size is None
    assert model(images_of(50, 50))[1].shape[-1] == places((50, 50), model.stride)[0]


def test_an_encoder_of_one_size_takes_smaller_images():
    model = create("test_vit_relpos", [16], image_size=50)
    assert model.levels.fixed_size == 64
    assert model(images_of(17, 23))[1].shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="images are 17 x 65, expected at most 64 x 64"):
        model(images_of(17, 65))


def test_an_encoder_that_needs_a_coarser_multiple_than_its_strides():
    """The attention of pvt_v2 looks at 8 x 8 places of the first stage as one."""
    model = create("pvt_v2_b0", [4], image_size=224)
    assert (model.levels.multiple, model.levels.fixed_size) == (32, None)
    assert model(images_of(17, 23))[1].shape == (2, 3, 5, 6)


def test_gray_images():
    assert create(channels=1)(images_of(9, 9, channels=1))[1].shape == (2, 3, 2, 2)


def test_strides_that_are_not_there():
    for strides in ([], [3], [8, 4]):
        with pytest.raises(ValueError, match=r"strides are .*, expected some of ResNet's, ascending: \[2, 4, 8, 16"):
            create(strides=strides)


def test_the_norm_of_a_place_depends_on_nothing_else():
    head = DecoderHead([4, 6], 8, 3)
    fine, coarse = torch.randn(1, 4, 4, 4), torch.randn(1, 6, 2, 2)
    embedding, _ = head([fine, coarse])
    torch.testing.assert_close(embedding.mean(dim=1), torch.zeros(1, 4, 4), atol=1e-6, rtol=0)
    changed = fine.clone()
    changed[..., 0, 0] += 5
    other, _ = head([changed, coarse])
    assert torch.equal(other[..., 1:, :], embedding[..., 1:, :])
    assert not torch.equal(other[..., 0, 0], embedding[..., 0, 0])


def test_decoder_golden():
    """Sum of the fine features and of the coarse ones, which bilinear upsampling brings from (0, 4) to (0, 1, 3, 4)."""
    head = DecoderHead([2, 2], 2, 1)
    for project in head.projections:
        torch.nn.init.zeros_(project.bias)
        project.weight.data = torch.eye(2).view(2, 2, 1, 1)
    head.norm = torch.nn.Identity()
    coarse = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2).repeat(1, 2, 1, 1)
    embedding, _ = head([torch.full((1, 2, 2, 4), 10.0), coarse])
    assert embedding[0, 1].tolist() == [[10, 11, 13, 14]] * 2


def test_heads():
    assert isinstance(create_dense_head("linear", [4], 2, width=8), LinearHead)
    with pytest.raises(ValueError, match='head is "linear" and there are 2 strides'):
        create_dense_head("linear", [4, 4], 2, width=8)
    with pytest.raises(ValueError, match='head is \'prototypes\', expected "linear" or "decoder"'):
        create_dense_head("prototypes", [4], 2, width=8)


@pytest.mark.parametrize("encoder", STRIDES)
def test_saved_and_loaded(encoder, tmp_path):
    model = create(encoder, STRIDES[encoder][:2], head="decoder", width=8)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, DenseModel)
    assert loaded.config == model.config
    assert hash_model(loaded) == hash_model(model)
    assert not loaded.training
    assert torch.equal(loaded(images_of(17, 23))[1], model(images_of(17, 23))[1])


# sites


@pytest.mark.parametrize("site_stride", [1, 2, 4])
def test_upsampled_logits_stay_where_their_pixels_are(site_stride):
    """Logits linear in the place's middle are linear in the pixel's middle, in images of no multiple of the stride."""
    size, stride = (18, 21), 8
    height, width = places(size, stride)
    rows, columns = (torch.arange(n) * stride + stride / 2 for n in (height, width))
    logits = (rows.unsqueeze(1) + 3 * columns).expand(1, 2, height, width)
    got = upsample(logits, size, stride, site_stride=site_stride)
    rows, columns = (torch.arange(n) * site_stride + site_stride / 2 for n in places(size, site_stride))
    expected = (rows.unsqueeze(1) + 3 * columns).expand(1, 2, len(rows), len(columns))
    edge = 4 // site_stride  # before the first middle there is nothing to interpolate with
    torch.testing.assert_close(
        got[..., edge:, edge:][..., : 8 // site_stride, : 8 // site_stride],
        expected[..., edge:, edge:][..., : 8 // site_stride, : 8 // site_stride],
    )
    assert got.shape == expected.shape


def test_upsampling_by_a_whole_number_is_that_of_torch():
    logits = torch.randn(2, 3, 4, 5)
    expected = F.interpolate(logits, size=(32, 40), mode="bilinear", align_corners=False)
    assert torch.equal(upsample(logits, (32, 40), 8), expected)
    assert upsample(logits, (32, 40), 8, site_stride=8) is logits


def test_shapes_and_strides_that_do_not_fit():
    with pytest.raises(ValueError, match=r"logits are \(1, 2, 3, 3\), expected \(B, K, 3, 2\) for images of 17 x 16"):
        upsample(torch.zeros(1, 2, 3, 3), (17, 16), 8)
    for site_stride in (0, 3, 16):
        with pytest.raises(
            ValueError, match=f"site_stride is {site_stride}, expected a divisor of the head's stride 8"
        ):
            upsample(torch.zeros(1, 2, 2, 2), (16, 16), 8, site_stride=site_stride)


def test_masks_golden():
    """Five columns at stride 2: 0 and 1, 2 and 3, 4 alone."""
    masks = torch.arange(25).view(1, 5, 5)
    assert site_targets(masks, 2).tolist() == [[[0, 3, 4], [15, 18, 19], [20, 23, 24]]]
    assert torch.equal(site_targets(masks, 1), masks)
    assert site_targets(masks, 32).tolist() == [[[12]]]


def test_masks_of_a_stride_are_not_shifted():
    """In the mean a label is of the middle of its place, where its logit is."""
    rows = torch.arange(64).view(1, -1, 1).expand(1, 64, 64)
    for stride in (2, 4, 8, 16):
        centers = stride / 2 + stride * torch.arange(64 // stride)
        assert ((site_targets(rows, stride)[0, :, 0] + 0.5) - centers).mean() == 0


def test_masks_of_a_stride_have_no_label_of_their_own():
    masks = torch.where(torch.rand(2, 17, 23) < 0.5, VOID, 7)
    assert set(site_targets(masks, 4).unique().tolist()) == {VOID, 7}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("has_void", [False, True])
def test_segmentation_of_one_place_is_classification(name, aggregation, has_void):
    """Bit for bit, in loss and gradient; with an old policy and a reference."""
    generator = torch.Generator().manual_seed(1)
    logits, old, reference = (2 * torch.randn(9, 5, generator=generator) for _ in range(3))
    labels = torch.randint(5, (9,), generator=generator)
    if has_void:
        labels[[2, 5]] = VOID
    flat = logits.clone().requires_grad_()
    dense = logits.view(9, 5, 1, 1).clone().requires_grad_()
    others = {"old_logits": old.view(9, 5, 1, 1), "reference_logits": reference.view(9, 5, 1, 1)}
    sites = dense_sites(dense, labels.view(9, 1, 1), stride=1, site_stride=1, aggregation=aggregation, **others)
    expected = loss_of(
        Sites(flat, labels, site_weights(valid_sites(labels), aggregation), old, reference), OBJECTIVES[name]
    )
    loss = loss_of(sites, OBJECTIVES[name])
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, dense)
    (wanted,) = torch.autograd.grad(expected, flat)
    assert torch.equal(gradient.view(9, 5), wanted)
    assert wanted.abs().sum() > 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_void_place_changes_nothing(name, aggregation):
    generator = torch.Generator().manual_seed(2)
    logits, old, reference = (torch.randn(3, 5, 4, 6, generator=generator) for _ in range(3))
    masks = torch.randint(5, (3, 13, 23), generator=generator)
    masks[0, :, 8:] = VOID
    masks[2] = VOID
    void = (site_targets(masks, 4) < 0).unsqueeze(1)

    def run(value):
        leaves = [one.masked_fill(void, value).requires_grad_() for one in (logits, old, reference)]
        others = {"old_logits": leaves[1], "reference_logits": leaves[2]}
        sites = dense_sites(leaves[0], masks, stride=4, site_stride=4, aggregation=aggregation, **others)
        loss = loss_of(sites, OBJECTIVES[name])
        return loss, torch.autograd.grad(loss, leaves[0])[0]

    loss, gradient = run(0.0)
    assert loss.isfinite()
    assert gradient.masked_select(void).abs().sum() == 0
    assert (gradient != 0).any(dim=1, keepdim=True).sum() == (~void).sum()
    for value in (50.0, float("nan"), float("inf")):
        other_loss, other = run(value)
        assert torch.equal(other_loss, loss)
        assert torch.equal(other, gradient)


@pytest.mark.parametrize("aggregation", ["per_image", "per_site"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_void_border_is_as_none(name, aggregation):
    """Of every pixel: the loss of the mask and of the mask with a void border to the right and below is the same."""
    logits = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    masks = torch.randint(4, (2, 6, 6), generator=torch.Generator().manual_seed(4))
    results = []
    for pad in (0, 3):
        leaf = F.pad(logits, (0, pad, 0, pad), value=9.0).requires_grad_()
        padded = F.pad(masks, (0, pad, 0, pad), value=VOID)
        others = {"old_logits": leaf.detach() * 0.9, "reference_logits": leaf.detach() * 0.5}
        sites = dense_sites(leaf, padded, stride=1, site_stride=1, aggregation=aggregation, **others)
        loss = loss_of(sites, OBJECTIVES[name])
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0][..., :6, :6]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-12)


def test_at_every_pixel_the_cross_entropy_is_that_of_torch():
    logits = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    masks = torch.randint(-1, 4, (2, 18, 29))
    expected = F.cross_entropy(upsample(logits, (18, 29), 8), masks, ignore_index=VOID)
    sites = dense_sites(logits, masks, stride=8, site_stride=1, aggregation="per_site")
    torch.testing.assert_close(cross_entropy_loss(sites).loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_of_a_batch_add_up(aggregation):
    logits = torch.randn(4, 3, 2, 3, dtype=torch.float64)
    masks = torch.randint(-1, 3, (4, 12, 20))
    masks[1, :, :16] = VOID
    options = {"stride": 8, "site_stride": 4, "aggregation": aggregation}
    count = site_count(valid_sites(site_targets(masks, 4)), aggregation)
    whole = cross_entropy_loss(dense_sites(logits, masks, **options)).loss
    parts = [
        cross_entropy_loss(dense_sites(logits[part], masks[part], **options, count=count)).loss
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=0)
