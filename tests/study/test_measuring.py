"""Corrupted images, where trainings start, and answers that give the same metrics again."""

import json

import numpy as np
import pytest
import torch

from grpo_rm.checkpoint import save_model
from grpo_rm.config import load_config
from grpo_rm.evaluation.measurement import measure
from grpo_rm.evaluation.pixels import pixel_sums
from grpo_rm.evaluation.segmentation import pixel_metrics, ratio_sums
from grpo_rm.inference import Predictions
from grpo_rm.model import Model, ModelConfig
from pipelines.measurements import TEST
from study.comparisons import METRICS, read_measured
from study.measuring import corrupt_batches, kept_answers, kept_dense_answers, write_answers
from study.trial import initial_model
from study.workspace import ROOT


def test_corrupted_images_do_not_depend_on_batches():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8))
    labels, ids = torch.arange(60), [str(number) for number in range(60)]
    whole = corrupt_batches([(images, labels)], ids)[0][0]
    parts = corrupt_batches([(images[:25], labels[:25]), (images[25:], labels[25:])], ids)
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert [part.shape[0] for part, _ in parts] == [25, 35]
    assert (whole != images).flatten(1).any(dim=1).all()


@pytest.fixture
def pretrained(tmp_path, monkeypatch):
    """A model of three classes, beside prepared data of two."""
    config = ModelConfig("test_resnet", 3, 32, 1.0, "bicubic", [0.1] * 3, [0.2] * 3, ["a", "b", "c"])
    model = Model(config)
    save_model(model, tmp_path / "model")
    (tmp_path / "data/prepared").mkdir(parents=True)
    dataset = {"classes": ["x", "y"], "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "data/prepared/dataset.json").write_text(json.dumps(dataset))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model/model.safetensors", model


def seeded(seed):
    return load_config(ROOT / "params.yaml").model_copy(update={"seed": seed})


def test_a_pretrained_encoder_keeps_its_normalization_and_gets_a_head_by_seed(pretrained):
    weights, model = pretrained
    first, again, other = (initial_model(seeded(seed), weights) for seed in (0, 0, 1))
    assert first.config.classes == ["x", "y"]
    assert first.config.mean == [0.1] * 3
    for created in (first, other):
        for one, expected in zip(created.encoder.parameters(), model.encoder.parameters(), strict=True):
            assert torch.equal(one, expected)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_model_from_scratch_follows_from_the_seed(pretrained):  # noqa: ARG001 - its data
    first, again, other = (initial_model(seeded(seed), None).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_answers_give_the_metrics_again(tmp_path):
    generator = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 3
        embeddings = generator.normal(size=(count, 4)).astype(np.float32)
        embeddings[np.arange(count), labels] += 1
        return Predictions(embeddings, 2 * embeddings[:, :3], labels)

    train, val, test = (split(count) for count in (60, 30, 45))
    measured = measure(train, val, test, ks=[10, 20], knn_temperature=0.07)
    write_answers(tmp_path / "a.npz", kept_answers(measured, test))
    sums = read_measured(tmp_path / "a.npz").sums[TEST]
    compared = [name for name in METRICS if name in measured.metrics]
    assert len(compared) == 7
    for name in compared:
        assert sums[name].value == pytest.approx(measured.metrics[name], abs=1e-6), name


def test_dense_answers_give_the_metrics_again(tmp_path):
    torch.manual_seed(0)
    pixels = pixel_sums(torch.randn(5, 3, 8, 8), torch.randint(-1, 3, (5, 8, 8)))
    places = {"knn_top1_k20_t0.07": ratio_sums(np.array([1.0, 2, 3, 4, 0]), np.array([4, 4, 4, 4, 0]))}
    sums = pixel_metrics(pixels) | places
    write_answers(tmp_path / "a.npz", kept_dense_answers(pixels, sums))
    again = read_measured(tmp_path / "a.npz").sums[TEST]
    assert {"miou", "ece", "nll", "knn_top1_k20_t0.07"} <= set(again)
    assert {name: metric.value for name, metric in again.items()} == pytest.approx(
        {name: metric.value for name, metric in sums.items()}
    )
    assert again["knn_top1_k20_t0.07"].value == 10 / 16
