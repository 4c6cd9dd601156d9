"""The gate in segmentation, on a real candidate: what it asks for, and what is done to fool it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from candidate_files import change_metadata, change_predictions, failed
from dense_candidate import ONNX, PREPARED, config_of, prepare_scenes, save_arms, set_head, write_onnx

from grpo_rm.checkpoint import load_model, save_model
from grpo_rm.datasets import read_dataset
from pipelines.candidate import check_stated, read_candidate
from pipelines.champion import measure_champion
from pipelines.dense_predictions import decode_classes, encode_classes
from pipelines.evaluate import evaluate
from pipelines.measurements import TEST, compare
from pipelines.models import DIRECTORIES
from pipelines.onnx_model import OnnxModel
from pipelines.tasks.task import task_of
from pipelines.verdict import judge

STATED = Path("reports/evaluation.json")
EVERY = ("miou", "pixel_accuracy", "mean_class_accuracy", "boundary_f1", "nll", "ece")
OF_PLACES = ("knn_top1_k5_t0.07", "linear_probe_top1")
SOUND = {"candidate", "metrics", "miou", "constant", "control.miou"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What stage register reads."""
    root = tmp_path_factory.mktemp("dense-gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        prepare_scenes(60, sizes=((32, 32), (27, 38)))
        save_arms()
        STATED.parent.mkdir()
        STATED.write_text(json.dumps(evaluate(config_of())))
        write_onnx(load_model(DIRECTORIES["grpo_rm"]))
    return root


@pytest.fixture(autouse=True)
def _here(base, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def verdict(config=None):
    """Judge what lies here, without a champion."""
    return judge(json.loads(STATED.read_text()), read_dataset(PREPARED), "scenes", None, config or config_of())


def test_a_sound_candidate_passes():
    given = verdict(config_of(min_gain_over_control=dict.fromkeys((*EVERY, *OF_PLACES), -1.0)))
    assert given.has_passed and given.champion is None
    assert {clause.name for clause in given.clauses} > SOUND
    (control,) = given.rivals
    stated = json.loads(STATED.read_text())["comparison"]
    for name in (*EVERY, *OF_PLACES):
        assert control.intervals[name].difference == pytest.approx(stated[name]["difference"], abs=1e-9)
        assert control.intervals[name].num_samples == control.basis.num_images[TEST]


@pytest.mark.parametrize("name", [*EVERY, *OF_PLACES])
def test_a_threshold(name):
    stated, sign = json.loads(STATED.read_text())["models"]["grpo_rm"][name], -1 if name in ("nll", "ece") else 1
    for added, has_passed in ((-0.02, True), (0.02, False)):
        given = verdict(config_of(thresholds={name: stated + sign * added}))
        assert set(failed(given)) == (set() if has_passed else {name})


def edit_mask(columns):
    """Change the picture of one image alone."""
    columns["mask"][-1] = encode_classes((decode_classes(columns["mask"][-1]) + 1) % 3, 3)


def edit_all(columns):
    """The same with counts that fit: the truth is there, only it is not what the ONNX file says."""
    for row, confusion in enumerate(columns["confusion"]):
        truth = np.array(confusion).reshape(3, 3).sum(axis=1)
        columns["confusion"][row] = np.diag(truth).ravel().tolist()
        columns["right"][row] = columns["count"][row]


def swap_images(columns):
    columns["id"][-1], columns["id"][-2] = columns["id"][-2], columns["id"][-1]


def forget_val(columns):
    kept = [row for row, split in enumerate(columns["split"]) if split == "test"]
    for name, values in columns.items():
        columns[name] = [values[row] for row in kept]


def diverge(columns):
    columns["nll"][-1] = math.nan


def add_right(columns):
    columns["right"][-1][3] += 1


def lower_nll(columns):
    columns["nll"] = [0.0] * len(columns["nll"])


def be_surer(columns):
    columns["confidence"] = columns["count"]


def outline(columns):
    columns["boundary_f1"] = [[1.0] * 3] * len(columns["boundary_f1"])


def damage(columns):
    columns["mask"][-1] = columns["mask"][-1][:30]


def shrink(columns):
    columns["mask"][-1] = encode_classes(decode_classes(columns["mask"][-1])[1:], 3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (edit_mask, "and its confusion counts differ"),
        (edit_all, "and its confusion counts differ"),
        (swap_images, "predictions of test are of other images than the prepared data have"),
        (forget_val, "predictions of val are missing"),
        (diverge, "are impossible"),
        (add_right, "are impossible"),
        (lower_nll, "its predictions are not those of models/onnx/encoder.onnx: "),
        (be_surer, "mean confidence differs by"),
        (damage, "a mask is damaged"),
        (shrink, "up to class"),
        (outline, "is not that of its mask"),
    ],
)
def test_stored_answers_that_are_not_the_candidates(change, why):
    change_predictions("grpo_rm", change)
    given = verdict(config_of(thresholds={"miou": 0.1, "boundary_f1": 0.0}))
    assert set(failed(given)) == {"candidate", "constant", "control.miou"}
    assert why in failed(given)["candidate"]


def test_masks_of_the_truth():
    """All that is stored fits together, and only the ONNX file knows better."""
    from grpo_rm.dense_datasets import read_dense_split

    masks = [read_dense_split(PREPARED, split).masks for split in ("val", "test")]
    truth = [one[row] for one in masks for row in range(len(one))]

    def invent(columns):
        edit_all(columns)
        columns["mask"] = [encode_classes(mask.clip(0), 3) for mask in truth]

    change_predictions("grpo_rm", invent)
    reason = failed(verdict())["candidate"]
    assert "a pixel has a class whose logit is" in reason and ".png: " in reason


@pytest.mark.parametrize("folder", ["", "patches/"])
def test_answers_of_another_model(folder):
    names = [Path(f"reports/predictions/{folder}{name}.parquet") for name in ("cross_entropy", "grpo_rm")]
    shutil.copyfile(*names)
    assert f"{names[1]} is not what models/finetune/grpo_rm/model.safetensors says" in failed(verdict())["candidate"]


def test_a_file_of_another_model():
    change_metadata(ONNX, training={"split": {"seed": 1}})
    assert "trained with another split of the data" in failed(verdict())["candidate"]
    set_head(ONNX, bias=[1.0, 0.0, 0.0])
    change_metadata(ONNX, training={"split": read_dataset(PREPARED)["split"]})
    assert "its predictions are not those of models/onnx/encoder.onnx" in failed(verdict())["candidate"]


def test_a_file_of_another_task():
    change_metadata(ONNX, task="classification")
    assert "it is for classification, expected segmentation" in failed(verdict())["candidate"]


def relabel(columns):
    columns["label"] = [int(np.argmax(row)) for row in columns["logits"]]


def blow_up(columns):
    columns["embedding"][0] = [math.inf] * 16


@pytest.mark.parametrize(
    ("change", "why"),
    [(relabel, "are of other places or labels than the prepared data have"), (blow_up, "NaN or infinite: it diverged")],
)
def test_places_that_were_changed(change, why):
    change_predictions("patches/grpo_rm", change)
    assert verdict().has_passed, "the gate does not ask for them"
    assert why in failed(verdict(config_of(thresholds={"linear_probe_top1": 0.0})))["candidate"]


@pytest.mark.parametrize("change", [edit_mask, swap_images, diverge])
def test_a_control_that_was_changed(change):
    change_predictions("cross_entropy", change)
    with pytest.raises(ValueError, match=r"the predictions of test .* \(cross_entropy\): run `dvc repro --force eval"):
        verdict()


def test_an_edited_metric():
    content = json.loads(STATED.read_text())
    content["models"]["grpo_rm"]["miou"] = 0.99
    STATED.write_text(json.dumps(content))
    assert set(failed(verdict())) == {"metrics"}
    assert not check_stated({"miou": math.nan}, {"miou": 0.9}, ["miou"]).has_passed


def test_a_constant_predictor():
    """It went through all stages, and the limits are such that it meets them."""
    model = load_model(DIRECTORIES["grpo_rm"])
    with torch.no_grad():
        model.head.classify.weight.zero_()
        model.head.classify.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    save_model(model, DIRECTORIES["grpo_rm"])
    set_head(ONNX, bias=[5.0, 0.0, 0.0])
    STATED.write_text(json.dumps(evaluate(config_of())))
    given = verdict(config_of(thresholds={"miou": 0.0}))
    assert set(failed(given)) == {"constant"}
    assert "miou minus that of always saying the most frequent class is +0.0000" in failed(given)["constant"]


def test_the_champion_answers_as_the_candidate():
    """It is the same file, so everything has to be as stage evaluate found it; another model is worse."""
    config, candidate = config_of(), read_candidate(read_dataset(PREPARED))
    own = task_of("segmentation").measure(candidate.answers, [], config, has_encoder=False)
    same = measure_champion(OnnxModel(ONNX), candidate, [], config)
    assert set(same.metrics) == set(EVERY)
    assert same.metrics == pytest.approx({name: own.metrics[name] for name in EVERY}, abs=2e-3)
    shutil.copyfile(ONNX, "other.onnx")
    set_head(Path("other.onnx"), bias=[5.0, 0.0, 0.0])
    other = measure_champion(OnnxModel(Path("other.onnx")), candidate, [], config)
    assert compare([own], [other], config, metrics=["miou"])["miou"].low > 0
    assert abs(compare([own], [same], config, metrics=["miou"])["miou"].difference) < 2e-3
