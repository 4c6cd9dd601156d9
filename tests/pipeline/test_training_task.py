"""The task of params.yaml as a training has to know it: weights of classes, and images that the encoder takes."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from grpo_rm.dense_model import DenseModel
from grpo_rm.model import DenseConfig
from pipelines import training_task
from pipelines.training_task import check_sizes, create_task


@pytest.fixture(autouse=True)
def _prepared(tmp_path, monkeypatch):
    rows = [
        ("train", 900, 900, [30, 10]),
        ("train", 40, 30, [0, 60]),
        ("val", 40, 30, [5, 5]),
        ("test", 48, 20, [9, 0]),
    ]
    names = ("split", "width", "height", "mask_counts")
    table = pa.table({name: [row[index] for row in rows] for index, name in enumerate(names)})
    pq.write_table(table, tmp_path / "manifest.parquet")
    monkeypatch.setattr(training_task, "PREPARED", tmp_path)


def create(encoder="test_vit", **args):
    half = [0.5] * 3
    return DenseModel(DenseConfig(encoder, 3, 32, "bilinear", half, half, ["a", "b"], [16], args))


def config_of(**settings):
    dense = {"site_stride": 4, "class_balance": 0.0, "window": None} | settings
    return SimpleNamespace(task="segmentation", segmentation=SimpleNamespace(**dense))


def test_an_encoder_of_one_size_and_larger_images():
    """Training takes crops, so only validation and test count."""
    model = create(dynamic_img_size=False)
    message = "takes images of 32 x 32 pixels alone, and val or test has 48 a side: set segmentation.window to 32"
    for window in (None, 40):
        with pytest.raises(ValueError, match=message):
            check_sizes(model, window)
    check_sizes(model, 32)
    check_sizes(create(), None)


def test_classes_are_balanced_by_the_pixels_of_training_alone():
    task = create_task(config_of(class_balance=1.0), create())
    torch.testing.assert_close(task.class_weights, torch.tensor([100 / 60, 100 / 140]))
    assert create_task(config_of(), create()).class_weights is None


def test_a_model_of_another_task():
    config = config_of()
    config.task = "classification"
    with pytest.raises(ValueError, match="of task segmentation, expected classification: run `dvc repro pretrain`"):
        create_task(config, create())
