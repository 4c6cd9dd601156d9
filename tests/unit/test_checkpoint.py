"""A model on disk is the same model."""

import json

import pytest
import torch

from grpo_rm.checkpoint import CONFIG, WEIGHTS, load_config, load_model, save_model
from grpo_rm.model import Model, ModelConfig

IMAGES = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Model(
        ModelConfig(
            encoder="test_resnet",
            channels=3,
            image_size=16,
            crop_pct=0.9,
            interpolation="bilinear",
            mean=[0.1, 0.2, 0.3],
            std=[0.4, 0.5, 0.6],
            classes=["Äpfel", "b"],
            encoder_args={"channels": [8, 8, 8, 8], "stem_width": 8},
        )
    )
    model.train()(IMAGES)  # moves the statistics of batch normalization
    return model.eval()


def test_round_trip_is_exact(model, tmp_path):
    save_model(model, tmp_path / "deep" / "down")
    loaded = load_model(tmp_path / "deep" / "down")
    assert loaded.config == model.config
    assert load_config(tmp_path / "deep" / "down") == model.config
    assert not loaded.training
    with torch.inference_mode():
        for expected, actual in zip(model(IMAGES), loaded(IMAGES), strict=True):
            assert torch.equal(expected, actual)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_equal_weights_give_equal_bytes_and_nothing_else_is_left(model, tmp_path):
    save_model(model, tmp_path / "a")
    save_model(load_model(tmp_path / "a").train(), tmp_path / "b")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CONFIG, WEIGHTS]


def test_saving_over_a_model_replaces_it(model, tmp_path):
    save_model(model, tmp_path)
    with torch.no_grad():
        model.head.bias += 1
    save_model(model, tmp_path)
    assert torch.equal(load_model(tmp_path).head.bias, model.head.bias)


def test_config_json_is_plain(model, tmp_path):
    save_model(model, tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert values["encoder"] == "test_resnet"
    assert values["classes"] == ["Äpfel", "b"]
    assert values["task"] == "classification"


@pytest.mark.parametrize("load", [load_model, load_config])
def test_no_model(load, tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"no model in .*\(config\.json is missing\): run `dvc repro`"):
            load(directory)


def test_missing_weights(model, tmp_path):
    save_model(model, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model(tmp_path)
