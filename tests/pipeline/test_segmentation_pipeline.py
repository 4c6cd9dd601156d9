"""The whole DAG on the embedded shapes, for real: the same stages, another task."""

import json

import numpy as np
import onnxruntime
import pytest

from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.evaluation.pixels import confusion_per_image
from pipelines.dense_predictions import decode_classes, read_dense_predictions
from pipelines.onnx_model import OnnxModel

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


def read_json(workspace, name):
    return json.loads((workspace.root / "reports" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def segmented(finished):
    finished.succeed("python", "-m", "pipelines.configure", "configs/shapes.yaml")
    finished.set(pretrain__epochs=6, finetune__epochs=2, finetune__seeds="[1]", segmentation__window=32)
    finished.succeed("dvc", "repro", "register")
    finished.succeed("dvc", "repro")
    yield finished
    finished.restore()
    finished.restore_store()


def test_evaluation_follows_from_the_masks(segmented):
    """By another way: the stored masks against the prepared ones, counted anew."""
    split = read_dense_split(segmented.root / "data/prepared", "test")
    evaluation = read_json(segmented, "evaluation")
    for name in ("pretrain", "grpo_rm", "cross_entropy"):
        ids, outputs = read_dense_predictions(segmented.root / f"reports/predictions/{name}.parquet")
        assert ids["test"] == list(split.ids)
        total = sum(
            confusion_per_image(decode_classes(said)[None], truth[None].astype(np.int64), 4)[0]
            for said, truth in zip(outputs["test"].masks, split.masks, strict=True)
        )
        hits, union = np.diag(total), total.sum(axis=0) + total.sum(axis=1) - np.diag(total)
        assert evaluation["models"][name]["miou"] == pytest.approx((hits / union).mean())
    assert evaluation["seed_spread"]["miou"]["num_seeds"] == 2
    assert evaluation["comparison"]["miou"]["num_samples"] == len(split.ids)


def test_the_model_learns_and_is_registered(segmented):
    evaluation, registration = read_json(segmented, "evaluation"), read_json(segmented, "registration")
    assert evaluation["models"]["grpo_rm"]["miou"] > 0.3
    clauses = {clause["name"]: clause["has_passed"] for clause in registration["gate"]["clauses"]}
    assert clauses["candidate"] and clauses["metrics"] and clauses["constant"]
    assert registration["name"] == "grpo-rm-shapes" and "challenger" in registration["aliases"]


def test_the_file_answers_images_of_any_size(segmented):
    model = OnnxModel(segmented.root / "models/onnx/encoder.onnx")
    assert model.task == "segmentation" and model.classes == ["background", "circle", "square", "triangle"]
    session = onnxruntime.InferenceSession(segmented.root / "models/onnx/encoder.onnx")
    embedding, logits = session.run(None, {"images": np.zeros((2, 31, 70, 3), np.uint8)})
    assert embedding.shape == (2, 32) and logits.shape == (2, 4, 8, 18)


def test_the_page_shows_segmentations(segmented):
    page = (segmented.root / "reports/index.html").read_text()
    assert 'id="segmentations"' in page and "mean IoU" in page and "val_accuracy" not in page


def test_the_arms_differ_in_the_loss_alone(segmented):
    trained = {
        arm: json.loads((segmented.root / f"models/finetune/{arm}/training.json").read_text())["parameters"]
        for arm in ("grpo_rm", "cross_entropy")
    }
    assert trained["grpo_rm"].pop("objective")["rewards"]["region_iou"] == 0.3
    assert {trained[arm].pop("arm") for arm in trained} == set(trained)
    assert trained["grpo_rm"] == trained["cross_entropy"]
    assert trained["grpo_rm"]["segmentation"]["window"] == 32


def test_what_a_change_makes_stale(segmented):
    """Nothing, and then all trainings by a change of the block of the task."""
    assert json.loads(segmented.succeed("dvc", "status", "--json")) == {}
    segmented.set(segmentation__site_stride=2)
    stale = set(json.loads(segmented.succeed("dvc", "status", "--json")))
    assert {"pretrain", "finetune@grpo_rm", "finetune@cross_entropy", "grpo_rm_seed@1", "cross_entropy_seed@1"} <= stale
    assert not {"prepare", "validate"} & stale
    segmented.set(segmentation__site_stride=4)
