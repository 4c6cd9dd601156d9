"""The model of all arms: uint8 images in, embedding and logits out."""

import pytest
import torch
from torch import nn

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
