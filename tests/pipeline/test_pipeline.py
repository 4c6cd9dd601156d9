"""The whole DAG on the embedded digits, for real."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.lineage import sha256

pytestmark = pytest.mark.pipeline

MODELS = ("pretrain", "grpo_rm", "cross_entropy")
METRICS = {
    *("accuracy", "top5_accuracy", "f1_macro", "worst_class_accuracy", "nll", "brier", "ece"),
    *("temperature", "nll_calibrated", "brier_calibrated", "ece_calibrated"),
    *("knn_top1_k10_t0.07", "knn_top1_k20_t0.07", "linear_probe_top1", "alignment", "uniformity", "effective_rank"),
    *("retrieval_map", "retrieval_recall_k1", "retrieval_recall_k5", "retrieval_recall_k10"),
    *(f"robustness/{name}" for name in ("noise", "blur", "brightness", "contrast", "jpeg", "pixelation")),
    *("robustness/accuracy", "robustness/mce"),
}
NOT_COMPARED = {"temperature", "alignment", "uniformity", "effective_rank", "robustness/mce"}


def read_json(path) -> Any:
    return json.loads(path.read_text())


def query(workspace, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(workspace.root / "mlruns/mlflow.db")) as database:
        return database.execute(sql).fetchall()


def test_outputs(finished):
    expected = [
        "data/prepared/manifest.parquet",
        "data/prepared/test/00000.parquet",
        "reports/validation.json",
        "reports/data_docs/index.html",
        "models/pretrain/model.safetensors",
        "models/finetune/grpo_rm/config.json",
        "models/finetune/cross_entropy/training.json",
        "reports/training/grpo_rm.csv",
        "reports/index.html",
        "models/onnx/encoder.onnx",
        "reports/registration.json",
    ]
    missing = [name for name in expected if not (finished.root / name).is_file()]
    assert not missing


def test_evaluation_has_every_metric_of_every_model(finished):
    evaluation = read_json(finished.root / "reports/evaluation.json")
    assert set(evaluation["models"]) == set(MODELS)
    for metrics in evaluation["models"].values():
        assert set(metrics) == METRICS
        assert all(np.isfinite(value) for value in metrics.values())
    assert evaluation["models"]["grpo_rm"]["accuracy"] > 0.95
    assert set(evaluation["comparison"]["accuracy"]) == {
        "difference",
        "low",
        "high",
        "confidence",
        "num_samples",
        "p_value",
        "p_corrected",
    }
    assert set(evaluation["comparison"]) == METRICS - NOT_COMPARED | {"mcnemar"}
    assert set(evaluation["validation"]) == set(MODELS)
    over = evaluation["over_pretrained"]["accuracy"]
    of_models = evaluation["models"]
    assert over["difference"] == pytest.approx(of_models["grpo_rm"]["accuracy"] - of_models["pretrain"]["accuracy"])


@pytest.mark.parametrize("model", MODELS)
def test_predictions_give_the_reported_accuracy(finished, model):
    table = pq.read_table(finished.root / f"reports/predictions/{model}.parquet").to_pandas()
    test = table[table.split == "test"]
    assert table.split.value_counts().to_dict() == {"train": 1071, "val": 362, "test": 364}
    accuracy = np.mean(np.stack(test.logits).argmax(axis=1) == test.label)
    assert accuracy == read_json(finished.root / "reports/evaluation.json")["models"][model]["accuracy"]


def test_the_arms_differ_in_the_loss_alone(finished):
    trained = {arm: read_json(finished.root / f"models/finetune/{arm}/training.json") for arm in MODELS[1:]}
    parameters = {arm: dict(description["parameters"]) for arm, description in trained.items()}
    del parameters["grpo_rm"]["objective"]
    assert parameters["grpo_rm"] | {"arm": ""} == parameters["cross_entropy"] | {"arm": ""}
    assert trained["grpo_rm"]["initial_model"] == trained["cross_entropy"]["initial_model"]


def test_onnx_says_what_it_is(finished):
    import onnxruntime

    session = onnxruntime.InferenceSession(finished.root / "models/onnx/encoder.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["grpo_rm.classes"]) == list("0123456789")
    training = json.loads(metadata["grpo_rm.training"])
    assert training["data"] in (finished.root / "dvc.lock").read_text()
    assert training["parameters"]["objective"]["rewards"] == {"accuracy": 1.0, "uniformity": 1.0}
    embedding, logits = session.run(None, {"images": np.zeros((5, 32, 32, 1), np.uint8)})
    assert embedding.shape == (5, 96)
    assert logits.shape == (5, 10)


@pytest.mark.slow
def test_export_twice_gives_the_same_bytes(workspace):
    before = (workspace.root / "models/onnx/encoder.onnx").read_bytes()
    workspace.succeed("python", "-m", "pipelines.export")
    assert (workspace.root / "models/onnx/encoder.onnx").read_bytes() == before
    assert str(workspace.root).encode() not in before
    assert b"site-packages" not in before


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(workspace):
    before = (workspace.root / "models/finetune/grpo_rm/model.safetensors").read_bytes()
    workspace.succeed("python", "-m", "pipelines.finetune", "grpo_rm")
    assert (workspace.root / "models/finetune/grpo_rm/model.safetensors").read_bytes() == before


def test_every_training_is_a_run(finished):
    runs = dict(query(finished, "select name, run_uuid from runs where status = 'FINISHED' order by start_time desc"))
    assert {"pretrain", "finetune@grpo_rm", "finetune@cross_entropy", "evaluate", "report"} <= set(runs)
    run = runs["finetune@grpo_rm"]
    parameters = dict(query(finished, f"select key, value from params where run_uuid = '{run}'"))
    assert parameters["objective.rewards.accuracy"] == "1.0"
    steps = query(finished, f"select count(distinct step) from metrics where key = 'train_loss' and run_uuid = '{run}'")
    assert steps[0][0] >= 3 * 16
    keys = {key for (key,) in query(finished, f"select distinct key from metrics where run_uuid = '{run}'")}
    assert {"rewards/accuracy/mean", "entropy", "clip_ratio/region_mean", "val_accuracy"} <= keys
    assert any(key.startswith("system/") for key in keys)
    tags = dict(query(finished, f"select key, value from tags where run_uuid = '{run}'"))
    assert tags["git.dirty"] == "false"
    assert len(tags["git.commit"]) == 40
    assert (
        dict(query(finished, "select name, digest from datasets"))["digits"] in (finished.root / "dvc.lock").read_text()
    )
    tagged = "select distinct name, value from input_tags join inputs using (input_uuid) where destination_id"
    found = f"{tagged} = '{run}'"
    assert dict(query(finished, found))["validation.passed"] == "true"
    (folder,) = query(finished, f"select artifact_uri from runs where run_uuid = '{run}'")[0]
    recorded = Path(folder.removeprefix("file://")) / "data/validation.json"
    assert recorded.read_bytes() == (finished.root / "reports/validation.json").read_bytes()


def test_the_first_version_is_challenger_and_champion(finished):
    registration = read_json(finished.root / "reports/registration.json")
    assert registration["gate"]["has_passed"]
    aliases = dict(query(finished, "select alias, version from registered_model_aliases where name = 'grpo-rm-digits'"))
    assert aliases == {"challenger": 1, "champion": 1}


def test_the_registered_version_leads_back(finished):
    tags = dict(query(finished, "select key, value from model_version_tags where version = 1"))
    assert tags["dvc.onnx"] in (finished.root / "dvc.lock").read_text()
    assert tags["gate"] == "passed"
    (source,) = query(finished, "select run_id from model_versions where version = 1")[0]
    assert query(finished, f"select name from runs where run_uuid = '{source}'") == [("finetune@grpo_rm",)]


LOAD_CHAMPION = """
import sys, mlflow, numpy as np, onnxruntime
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)
model = mlflow.pyfunc.load_model("models:/grpo-rm-digits@champion")
session = onnxruntime.InferenceSession("models/onnx/encoder.onnx")
np.testing.assert_array_equal(model.predict(images)["logits"], session.run(["logits"], {"images": images})[0])
print(mlflow.pyfunc.get_model_dependencies("models:/grpo-rm-digits@champion", format="pip"))
"""


def test_the_registered_model_answers_like_the_file(finished):
    requirements = finished.succeed("python", "-W", "ignore", "-c", LOAD_CHAMPION).splitlines()[-1]
    assert any(line.startswith("onnxruntime==") for line in Path(requirements).read_text().splitlines())


def test_nothing_changed_runs_nothing(finished):
    output = finished.succeed("dvc", "repro")
    assert "Running stage" not in output
    assert finished.succeed("git", "status", "--porcelain") == ""


def test_the_control_does_not_depend_on_the_objective(workspace):
    workspace.set(objective__eps=0.5)
    status = json.loads(workspace.succeed("dvc", "status", "--json"))
    assert "finetune@grpo_rm" in status
    assert "finetune@cross_entropy" not in status


def test_the_control_does_not_depend_on_rewards(workspace):
    folder = workspace.root / "data/rewards"
    (folder / "README.md").write_text("read")
    assert workspace.succeed("dvc", "status", "--json").strip() == "{}"
    (folder / "costs.csv").write_text("true,0,1\n")
    status = json.loads(workspace.succeed("dvc", "status", "--json"))
    assert set(status) == {"finetune@grpo_rm", "evaluate", "register"}  # the last two for matrices of costs


def test_rewards_from_files_are_trained_with_and_recorded(workspace):
    """The examples of data/rewards, with a head of prototypes."""
    text = (workspace.root / "params.yaml").read_text()
    own = "    cost_matrix: 0.1\n    class_similarity: 0\n    data.rewards.example:ordinal_reward: 0.5\n"
    (workspace.root / "params.yaml").write_text(text.replace("    uniformity: 1.0\n", own))
    workspace.set(objective__cost_matrix="data/rewards/example_costs.csv", objective__refresh="epoch")
    workspace.set(encoder__head="prototypes", pretrain__epochs=2, finetune__epochs=1, finetune__knn_every=1)
    workspace.set(objective__beta=0.01, finetune__num_iterations=2, finetune__accumulation=2)
    workspace.succeed("python", "-m", "pipelines.pretrain")
    workspace.succeed("python", "-m", "pipelines.finetune", "grpo_rm")
    folder = workspace.root / "models/finetune/grpo_rm"
    assert read_json(folder / "training.json")["reward_files"] == {
        "data.rewards.example:ordinal_reward": sha256(workspace.root / "data/rewards/example.py"),
        "data/rewards/example_costs.csv": sha256(workspace.root / "data/rewards/example_costs.csv"),
    }
    assert read_json(folder / "config.json")["head"] == "prototypes"
    curve = (workspace.root / "reports/training/grpo_rm.csv").read_text().splitlines()[0].split(",")
    rewards = ("accuracy", "cost_matrix", "class_similarity", "data.rewards.example:ordinal_reward")
    assert {f"rewards/{name}/mean" for name in rewards} | {"val_knn_top1_k20_t0.07", "kl"} <= set(curve)
    workspace.succeed("python", "-m", "pipelines.export")
    parity = read_json(workspace.root / "reports/export.json")["parity"]
    assert all(batch["max_abs_error"] < 1e-4 for batch in parity.values())


def test_dvc_shows_metrics_and_plots(finished):
    shown = json.loads(finished.succeed("dvc", "metrics", "show", "--json"))[""]["data"]
    models = read_json(finished.root / "reports/evaluation.json")["models"]
    assert {name: shown[f"reports/metrics/{name}.json"]["data"] for name in MODELS} == models
    finished.succeed("dvc", "plots", "show", "--json")


def test_summary_names_what_to_open(finished):
    summary = finished.succeed("python", "-m", "pipelines.summary")
    for expected in ("GRPO-RM", "cross-entropy", "gate: passed", "grpo-rm-digits version 1", "index.html", "make ui"):
        assert expected in summary
