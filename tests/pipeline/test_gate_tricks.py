"""The gate on a real candidate and a real champion: every kind of metric, and what is done to fool it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from candidate_files import (
    CORRUPTED_IMAGES,
    EVALUATION,
    NAME,
    ONNX,
    PREDICTIONS,
    change_metadata,
    change_predictions,
    edit,
    failed,
    prepare_sketches,
    set_parameters,
    state_metrics,
    stored_file,
    verdict,
    with_gate,
    write_answers,
)
from image_sets import encode, noise, write

from grpo_rm.checkpoint import load_model, save_model
from grpo_rm.config import load_config
from grpo_rm.datasets import read_split
from grpo_rm.evaluation.gate import beats
from pipelines import export
from pipelines.batches import PREPARED
from pipelines.models import DIRECTORIES
from pipelines.register import register

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning"),  # mlflow, of its own type hints
]

LAX = {"accuracy": -1.0}
SOUND = {"candidate", "metrics", "accuracy", "constant", "control.accuracy", "champion.accuracy"}


@pytest.fixture(scope="module")
def base(finished, tmp_path_factory):
    """What stage register reads, with an extra set and corrupted images, and a store where version 1 is champion."""
    import mlflow

    root = tmp_path_factory.mktemp("gate")
    for name in ("data/prepared", "data/rewards", "models", "reports"):
        shutil.copytree(finished.root / name, root / name, copy_function=shutil.copyfile)
    for name in ("params.yaml", "dvc.lock"):
        shutil.copyfile(finished.root / name, root / name)
    shutil.copyfile(finished.root / "mlruns/mlflow.db", root / "mlflow.db")
    shutil.rmtree(root / "reports/data_docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        mlflow.MlflowClient().delete_registered_model(NAME)
        set_parameters()
        prepare_sketches()
        for name, directory in DIRECTORIES.items():
            write_answers(name, directory)
        state_metrics()
        assert "the first version that passed" in register(load_config())["promotion"]
    return root


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    """A copy of it to work in."""
    import mlflow

    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/copy/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/copy/mlflow.db")
    return tmp_path / "copy"


EVERY_KIND = (
    "f1_macro",
    "top5_accuracy",
    "nll_calibrated",
    "ece_calibrated",
    "knn_top1_k10_t0.07",
    "linear_probe_top1",
    "retrieval_map",
    "robustness/accuracy",
    "robustness/noise",
    "sketch/accuracy",
    "sketch/f1_macro",
)


@pytest.mark.usefixtures("here")
def test_the_champion_is_measured_by_every_kind_of_metric():
    """It is the same file as the candidate, so everything has to be as stage evaluate found it for the candidate."""
    given = verdict(with_gate(champion=dict.fromkeys(EVERY_KIND, -0.08), control=dict.fromkeys(EVERY_KIND, -1.0)))
    assert not failed(given) and not given.beats_champion
    said = given.as_json()
    assert said["champion"]["version"] == "1"
    stated = json.loads(EVALUATION.read_text())["models"]["grpo_rm"]
    assert said["champion"]["metrics"] == pytest.approx(stated, abs=2e-3)
    sizes = {"robustness": CORRUPTED_IMAGES, "sketch": 60, "": len(read_split(PREPARED, "test").ids)}
    for rival in ("control", "champion"):
        compared = said["comparison"][rival]
        assert set(compared) == set(EVERY_KIND)
        for name, interval in compared.items():
            assert interval["num_samples"] == sizes[name.rpartition("/")[0]]
            assert interval["p_corrected"] >= interval["p_value"]
    assert {abs(interval["difference"]) < 2e-3 for interval in said["comparison"]["champion"].values()} == {True}
    assert any(interval["difference"] for interval in said["comparison"]["control"].values())


@pytest.mark.usefixtures("here")
def test_what_takes_long_is_done_only_where_it_is_asked_for():
    metrics = verdict().as_json()["champion"]["metrics"]
    assert {"accuracy", "ece_calibrated", "sketch/accuracy"} <= set(metrics)
    assert not [name for name in metrics if name.startswith(("knn", "linear", "retrieval", "robustness"))]
    assert "robustness/mce" in verdict(with_gate(champion={"robustness/noise": -1.0})).as_json()["champion"]["metrics"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["robustness/accuracy", "robustness/contrast", "sketch/accuracy", "onnx/size_mb"])
def test_a_clause_that_passes_and_one_that_fails(name):
    stated = json.loads(EVALUATION.read_text())["models"]["grpo_rm"] | {"onnx/size_mb": ONNX.stat().st_size / 1e6}
    sign = -1 if name == "onnx/size_mb" else 1
    for added, has_passed in ((-1e-3, True), (1e-3, False)):
        given = verdict(with_gate(thresholds={name: stated[name] + sign * added}))
        assert set(failed(given)) == (set() if has_passed else {name})
    if not name.startswith("onnx"):
        assert set(failed(verdict(with_gate(control={name: -1.0}, champion={name: 1.0})))) == {f"champion.{name}"}


@pytest.mark.usefixtures("here")
def test_costs_and_groups_are_compared():
    classes = [str(digit) for digit in range(10)]
    rows = [",".join([name, *("0" if name == other else "2" for other in classes)]) for name in classes]
    Path("data/rewards/costs.csv").write_text("\n".join([",".join(["", *classes]), *rows]))
    manifest = pq.read_table(PREPARED / "manifest.parquet").to_pydict()
    manifest["group"] = [("left", "right", "")[row % 3] for row in range(len(manifest["id"]))]
    pq.write_table(pa.table(manifest), PREPARED / "manifest.parquet")
    config = with_gate(champion={"expected_cost": -0.1, "worst_group_accuracy": -0.1}, control=LAX)
    objective = config.objective.model_copy(update={"cost_matrix": "data/rewards/costs.csv"})
    given = verdict(config.model_copy(update={"objective": objective}))
    assert set(failed(given)) == {"metrics"}  # stage evaluate has not run with them
    metrics = given.as_json()["champion"]["metrics"]
    assert metrics["expected_cost"] == pytest.approx(2 * (1 - metrics["accuracy"]))
    assert metrics["worst_group_accuracy"] <= metrics["accuracy"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training": {"split": {"seed": 1}}}, "trained with another split of the data, so perhaps on these test"),
        ({"training": {"data": "0" * 32 + ".dir"}}, "it was trained on other data: 000"),
        ({"classes": list("1234567890")}, "it knows other classes, or in another order"),
    ],
)
def test_a_candidate_of_other_data(changes, why):
    change_metadata(ONNX, **changes)
    result = register(load_config())
    clauses = {clause["name"]: clause for clause in result["gate"]["clauses"]}
    assert set(clauses) == SOUND - {"metrics"}
    assert not clauses["candidate"]["has_passed"] and why in clauses["candidate"]["reason"]
    assert "champion stays version 1, because the gate failed" in result["promotion"]
    assert result["champion"] == {"version": "1", "metrics": {}}


def shuffle(columns: dict) -> None:
    columns["id"] = columns["id"][::-1]


def claim(columns: dict) -> None:
    """Call right whatever the model said."""
    columns["label"] = [int(np.argmax(row)) for row in columns["logits"]]


def diverge(columns: dict) -> None:
    columns["logits"][-1] = [math.nan] * 10


def forget(columns: dict) -> None:
    columns["split"] = [{"test": "train"}.get(split, split) for split in columns["split"]]


def invent(columns: dict) -> None:
    """Say what the labels are."""
    columns["logits"] = [[9.0 * (digit == label) for digit in range(10)] for label in columns["label"]]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (shuffle, "are of other images or labels"),
        (claim, "are of other images or labels"),
        (diverge, "have NaN or infinite logits"),
        (forget, "are of other images or labels"),
        (invent, "its predictions are not those of models/onnx/encoder.onnx: logits differ by"),
    ],
)
def test_predictions_that_are_not_the_candidates(change, why):
    change_predictions("grpo_rm", change)
    given = verdict()
    assert set(failed(given)) >= {"candidate", "constant", "control.accuracy", "champion.accuracy"}
    assert why in failed(given)["candidate"]
    assert not given.beats_champion


@pytest.mark.usefixtures("here")
def test_predictions_of_another_model():
    shutil.copyfile(PREDICTIONS / "cross_entropy.parquet", PREDICTIONS / "grpo_rm.parquet")
    assert "is not what models/finetune/grpo_rm/model.safetensors says" in failed(verdict())["candidate"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("file", ["cross_entropy.parquet", "robustness/cross_entropy.parquet"])
def test_a_control_that_is_another_model(file):
    shutil.copyfile(PREDICTIONS / file.replace("cross_entropy", "pretrain"), PREDICTIONS / file)
    with pytest.raises(ValueError, match=r"is not what models/finetune/cross_entropy/model.safetensors says"):
        verdict()


@pytest.mark.usefixtures("here")
def test_answers_to_corrupted_images_that_are_missing():
    shutil.rmtree(PREDICTIONS / "robustness")
    edit(lambda models: models["grpo_rm"].update({"robustness/accuracy": 0.99}))
    reasons = failed(verdict(with_gate(thresholds={"robustness/accuracy": 0.95})))
    assert "there are no answers to corrupted images" in reasons["candidate"]


@pytest.mark.usefixtures("here")
def test_corrupted_images_that_were_picked():
    for name in DIRECTORIES:
        path = PREDICTIONS / f"robustness/{name}.parquet"
        table = pq.read_table(path)
        others = sorted(set(table["id"].to_pylist()))[:10]
        rows = [row for row in table.to_pylist() if row["id"] in others]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    assert "other images than evaluate.robustness chooses" in failed(verdict())["candidate"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, {"metrics": "accuracy nan (measured again: 0."}),
        (1.0, {"metrics": "evaluation.json says accuracy 1.0000 (measured again: 0."}),
        (None, {"metrics": "accuracy nothing (measured again: 0."}),
    ],
)
def test_a_metric_that_was_edited_or_is_missing(value, expected):
    edit(lambda models: models["grpo_rm"].pop("accuracy"))
    if value is not None:
        edit(lambda models: models["grpo_rm"].update(accuracy=value))
    reasons = failed(verdict())
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["linear_probe_top1", "robustness/accuracy", "sketch/accuracy", "f1_macro"])
def test_any_metric_that_the_gate_asks_for_is_measured_again(name):
    edit(lambda models: models["grpo_rm"].update({name: 1.1}))
    assert not failed(verdict())
    assert set(failed(verdict(with_gate(thresholds={name: 0.05})))) == {"metrics"}


@pytest.mark.usefixtures("here")
def test_an_edited_comparison_changes_nothing():
    before = verdict(with_gate(control={"accuracy": 0.5}))
    content = json.loads(EVALUATION.read_text())
    content["comparison"]["accuracy"] |= {"difference": 0.9, "low": 0.8, "high": 1.0}
    EVALUATION.write_text(json.dumps(content))
    assert verdict(with_gate(control={"accuracy": 0.5})).as_json() == before.as_json()
    assert set(failed(before)) == {"control.accuracy"}


@pytest.mark.usefixtures("here")
def test_the_same_intervals_as_in_the_report():
    """The control is compared again; where nothing was edited, that comes to what stage evaluate has written."""
    stated = json.loads(EVALUATION.read_text())["comparison"]["accuracy"]
    config = load_config()
    resamples = config.evaluate.model_copy(update={"bootstrap_resamples": 10_000})
    compared = verdict(config.model_copy(update={"evaluate": resamples})).as_json()["comparison"]["control"]["accuracy"]
    for key in ("difference", "low", "high", "num_samples", "p_value"):
        assert compared[key] == pytest.approx(stated[key])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training": {"split": {"seed": 1}}}, "it had another split of the data, so it may have been trained on them"),
        ({"classes": list("9876543210")}, "it knows other classes, or in another order: 9, 8"),
    ],
)
def test_a_champion_that_cannot_be_compared(changes, why):
    change_metadata(ONNX, training={"note": why})
    version = register(load_config())["version"]
    assert not failed(verdict(champion=version))
    change_metadata(stored_file(version), **changes)
    given = verdict(champion=version)
    assert set(failed(given)) == {"champion.accuracy"} and why in failed(given)["champion.accuracy"]
    assert given.as_json()["champion"] == {"version": version, "metrics": {}}
    assert not given.beats_champion and not beats(given.rivals[1], given.rivals[0].basis)


@pytest.mark.usefixtures("here")
def test_a_constant_predictor():
    """It went through all stages, and the limits are such that it meets them."""
    model = load_model(DIRECTORIES["grpo_rm"])
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        list(model.head.parameters())[-1][3] = 1.0
    save_model(model, DIRECTORIES["grpo_rm"])
    export.main()
    write_answers("grpo_rm", DIRECTORIES["grpo_rm"])
    state_metrics()
    given = verdict(with_gate(thresholds={"accuracy": 0.0, "nll": 9.0}, control=LAX, champion=LAX))
    assert set(failed(given)) == {"constant"}
    assert "f1_macro minus that of always saying the most frequent class" in failed(given)["constant"]


@pytest.mark.usefixtures("here")
def test_further_seeds_are_compared_with_the_first():
    """Here the arms have changed places, so that on average neither is better."""
    before = verdict().as_json()["comparison"]["control"]["accuracy"]
    (PREDICTIONS / "seeds").mkdir(exist_ok=True)
    for arm, other in (("grpo_rm", "cross_entropy"), ("cross_entropy", "grpo_rm")):
        shutil.copyfile(PREDICTIONS / f"{other}.parquet", PREDICTIONS / f"seeds/{arm}-7.parquet")
        shutil.copytree(DIRECTORIES[other], f"models/finetune/seeds/{arm}/7")
    config = load_config()
    config.finetune.seeds.append(7)
    compared = verdict(config).as_json()["comparison"]
    after = compared["control"]["accuracy"]
    assert compared["same_seed_control"]["accuracy"] == before
    assert after["difference"] == pytest.approx(0, abs=1e-12) and abs(before["difference"]) > 1e-3


def test_training_on_test_images_is_stopped_by_the_validation(workspace):
    """The same files are in train and in test: no model is trained."""
    for place in range(12):
        for part in ("train", "val", "test"):
            for name in ("cat", "dog"):
                seed = 1000 * ("cat", "dog").index(name) + 100 * ("train", "val", "test").index(part) + place
                file = encode(noise(seed, (16, 16)))
                write(workspace.root / "data/raw/leaky", {f"{part}/{name}/{place}.png": file})
    leaked = (workspace.root / "data/raw/leaky/test/cat/3.png").read_bytes()
    write(workspace.root / "data/raw/leaky", {"train/cat/leaked.png": leaked})
    workspace.set(data__source="folder:data/raw/leaky")
    model = workspace.root / "models/pretrain/model.safetensors"
    before = model.read_bytes()
    done = workspace.run("dvc", "repro", "register")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "train/cat/leaked.png" in done.stdout + done.stderr
    assert "Running stage 'pretrain'" not in done.stdout
    assert model.read_bytes() == before
