"""timm encoders by name: what they give, what is refused and in which words, and that pretrained weights arrive."""

import huggingface_hub.constants
import pytest
import timm
import torch

from grpo_rm.encoder import create_encoder, embedding_dim, pretrained_normalization


def create(name="test_resnet", *, pretrained=False, channels=3, image_size=32, args=None):
    return create_encoder(name, pretrained=pretrained, channels=channels, image_size=image_size, args=args)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit.r160_in1k"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 48])
def test_images_to_pooled_embeddings(name, channels, image_size):
    encoder = create(name, channels=channels, image_size=image_size)
    embedding = encoder(torch.zeros(2, channels, image_size, image_size))
    assert embedding.shape == (2, embedding_dim(encoder))
    assert encoder.training


def test_embedding_dim_of_an_encoder_with_a_hidden_layer_before_its_head():
    encoder = create("mobilenetv3_small_050", channels=1)
    assert encoder(torch.zeros(2, 1, 32, 32)).shape == (2, embedding_dim(encoder))
    assert embedding_dim(encoder) != encoder.num_features


def test_arguments_reach_timm():
    encoder = create(args={"channels": [8, 8, 8, 24], "stem_width": 8})
    assert embedding_dim(encoder) == 24
    assert create("test_vit", args={"img_size": 64}, image_size=64).patch_embed.img_size == (64, 64)


def test_pretrained_normalization():
    assert pretrained_normalization(create("test_resnet")) == ([0.5] * 3, [0.5] * 3)
    assert pretrained_normalization(create("resnet10t")) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "test_resnt"}, r"timm has no encoder 'test_resnt'; nearest: test_resnet, .*timm\.list_models\(\)"),
        ({"name": "?"}, "timm has no encoder '\\?'; nearest: none"),
        ({"name": "test_resnet.nonsense"}, "no weights 'test_resnet.nonsense'; it has test_resnet.r160_in1k"),
        ({"name": "test_vit4.nonsense"}, "no weights 'test_vit4.nonsense'; it has none for this encoder"),
        ({"name": "test_vit4", "pretrained": True}, "no pretrained weights of 'test_vit4': set encoder.pretrained to"),
        (
            {"args": {"nonsense": 1}},
            r"timm refuses encoder 'test_resnet' with image_size 32 and arguments \{'nonsense': 1\}: .*'nonsense'",
        ),
        ({"name": "test_vit", "args": {"num_heads": 0}}, "timm refuses encoder 'test_vit'"),
        ({"args": {"drop_path_rate": "much"}}, "timm refuses encoder 'test_resnet'"),
        ({"args": {"global_pool": ""}}, r"gives \(1, 96, 1, 1\), expected a pooled embedding \(1, D\)"),
        (
            {"name": "test_vit", "image_size": 40},
            "'test_vit' cannot take image_size 40: its patches are 16 pixels wide, so use a multiple such as 32",
        ),
        ({"name": "test_vit", "image_size": 8}, "use a multiple such as 16"),
        ({"name": "test_convnext", "image_size": 16}, "cannot take image_size 16: .*It was made for 160 pixels"),
        ({"name": "test_maxvit", "image_size": 8}, "'test_maxvit'.* image_size 8"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        create(**options)


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConnectionError,
        match=r"weights of encoder 'test_resnet' could not be downloaded.*"
        r"set encoder\.pretrained to false",
    ):
        create(pretrained=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A whole timm model with a classifier, and its weights in a file as timm publishes them."""
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", pretrained=False)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), {"pretrained_cfg_overlay": {"file": str(path)}}


def test_pretrained_weights_arrive(published):
    model, args = published
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    encoder = create(pretrained=True, args=args).eval()
    torch.testing.assert_close(encoder(images), expected)
    assert not torch.allclose(create(pretrained=False).eval()(images), expected, atol=1e-2)


def test_pretrained_weights_of_gray_images_are_the_sum_over_the_colors(published):
    """So a gray image has the embedding of the same image in three equal channels."""
    model, args = published
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model.forward_head(model.forward_features(images.expand(-1, 3, -1, -1)), pre_logits=True)
    encoder = create(pretrained=True, channels=1, args=args).eval()
    torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-4)


def test_patches_that_overlap_need_no_multiple():
    """They are 7 pixels wide and 4 apart."""
    encoder = create_encoder("pvt_v2_b0", pretrained=False, channels=3, image_size=64)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, embedding_dim(encoder))
