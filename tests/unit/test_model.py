"""The model of all arms: uint8 images in, embedding and logits out."""

import json

import pytest
import torch
from torch import nn

from grpo_rm.checkpoint import load_model, save_model
from grpo_rm.head import PrototypeHead
from grpo_rm.model import Model, ModelConfig

TINY = {"channels": [8, 8, 8, 8], "stem_width": 8}


def config(channels=1, classes=("a", "b", "c"), mean=(0.25,), std=(0.5,), **options):
    return ModelConfig(
        encoder="test_resnet",
        channels=channels,
        image_size=16,
        crop_pct=1.0,
        interpolation="bicubic",
        mean=list(mean),
        std=list(std),
        classes=list(classes),
        **({"encoder_args": TINY} | options),
    )


class Record(nn.Module):
    """An encoder that keeps what it is given and says the mean of each channel."""

    def __init__(self, channels):
        super().__init__()
        self.num_features = channels

    def forward(self, pixels):
        self.pixels = pixels
        return pixels.mean(dim=(2, 3))


def test_normalization_golden():
    """Gray 0, 51 and 255 with mean .25 and std .5: -.5, -.1 and 1.5."""
    encoder = Record(1)
    model = Model(config(), encoder=encoder)
    images = torch.tensor([[0, 51], [255, 0]], dtype=torch.uint8).view(1, 2, 2, 1)
    embedding, _ = model(images)
    torch.testing.assert_close(encoder.pixels, torch.tensor([[[[-0.5, -0.1], [1.5, -0.5]]]]))
    torch.testing.assert_close(embedding, torch.tensor([[0.1]]))


def test_normalization_is_per_channel_and_channels_come_last():
    encoder = Record(3)
    model = Model(config(3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)), encoder=encoder)
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model(images)
    assert encoder.pixels.shape == (2, 3, 4, 5)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        expected = (images[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(encoder.pixels[:, channel].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_embedding_and_logits(channels):
    model = Model(config(channels, mean=[0.5] * channels, std=[0.5] * channels)).eval()
    embedding, logits = model(torch.randint(0, 256, (4, 16, 16, channels), dtype=torch.uint8))
    assert embedding.shape == (4, 8)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits, embedding @ model.head.weight.T + model.head.bias)


def test_the_head_is_that_of_the_configuration():
    assert type(Model(config()).head) is nn.Linear
    model = Model(config(head="prototypes", temperature=0.5)).eval()
    assert isinstance(model.head, PrototypeHead)
    embedding, logits = model(torch.zeros(4, 16, 16, 1, dtype=torch.uint8))
    assert logits.abs().max() == 0
    model.head.set_prototypes(embedding[:3] + torch.eye(3, 8), torch.arange(3))
    _, logits = model(torch.zeros(4, 16, 16, 1, dtype=torch.uint8))
    assert 0 < logits.abs().max() <= 2
    with pytest.raises(ValueError, match='head is \'cosine\', expected "linear" or "prototypes"'):
        Model(config(head="cosine"))


def test_prototypes_are_saved(tmp_path):
    model = Model(config(head="prototypes", temperature=0.5))
    model.head.set_prototypes(torch.randn(9, 8), torch.arange(9) % 3)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.head.prototypes, model.head.prototypes)
    assert loaded.head.temperature == 0.5


def test_a_configuration_from_before_there_were_heads(tmp_path):
    save_model(Model(config()), tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["head"], saved["temperature"]
    path.write_text(json.dumps(saved))
    assert type(load_model(tmp_path).head) is nn.Linear


def test_the_encoder_is_built_from_the_configuration():
    assert Model(config()).encoder.num_features == 8
    assert Model(config(encoder_args={})).encoder.num_features == 96
    encoder = Record(1)
    assert Model(config(), encoder=encoder).encoder is encoder


def test_mean_and_std_are_no_weights():
    """They are in config.json; weights move between models of other data."""
    model = Model(config())
    assert not {"mean", "std"} & set(model.state_dict())
    assert model.to(torch.float64).mean.dtype == torch.float64
