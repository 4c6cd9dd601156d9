"""Gate, versions and aliases in a real registry."""

import json
import math
from collections.abc import Callable

import pytest
import yaml

from grpo_rm.config import load_config
from pipelines.register import decide_promotion, register
from pipelines.tracking.aliases import Alias
from pipelines.tracking.store import use_tracking_store

VERSION = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
client = mlflow.MlflowClient()
model = client.get_registered_model("grpo-rm-digits")
version = client.get_model_version("grpo-rm-digits", "1")
metrics = client.get_logged_model(version.source.rpartition("/")[2]).metrics
loaded = mlflow.pyfunc.load_model("models:/grpo-rm-digits@challenger")
stored = np.load("models/onnx/self_test.npz")
answer = loaded.predict({"images": stored["images"]})
print(json.dumps({
    "model": model.description,
    "version": version.description,
    "tags": version.tags,
    "run": client.get_run(version.run_id).data.tags["dvc.stage"],
    "metrics": {metric.key: [metric.value, metric.dataset_digest] for metric in metrics},
    "inputs": str(loaded.metadata.get_input_schema()),
    "example": (loaded.input_example["images"] == stored["images"][:2]).all().item(),
    "example_type": str(loaded.input_example["images"].dtype),
    "error": max(float(abs(answer[name] - stored[name]).max()) for name in ("embedding", "logits")),
}))
"""


@pytest.mark.parametrize(
    ("champion", "last", "has_passed", "is_auto", "beats", "expected"),
    [
        (None, None, True, False, False, (True, "the first version that passed")),
        (None, None, False, True, False, (False, "the gate failed")),
        (None, "1", True, True, False, (False, "a person took the alias from version 1")),
        ("1", "1", True, False, True, (False, "until a person moves it")),
        ("1", "1", True, True, True, (True, "it beats version 1")),
        ("1", "1", True, True, False, (False, "does not beat")),
        ("1", "1", False, True, True, (False, "the gate failed")),
        ("2", "2", True, True, True, (False, "already is the champion")),
        ("2", "1", False, True, True, (False, "already is the champion")),
    ],
)
def test_who_moves_the_champion(champion, last, has_passed, is_auto, beats, expected):
    moves, reason = decide_promotion(
        Alias(champion, last), "2", has_passed=has_passed, was_champion=False, is_auto=is_auto, beats_champion=beats
    )
    assert moves is expected[0]
    assert expected[1] in reason


@pytest.mark.parametrize("champion", [Alias(None, "2"), Alias("1", "2"), Alias("1", "1")])
def test_what_was_taken_down_stays_down(champion):
    moves, reason = decide_promotion(
        champion, "2", has_passed=True, was_champion=True, is_auto=True, beats_champion=True
    )
    assert not moves
    assert "was champion before and was taken down; `python -m pipelines.promote 2`" in reason


@pytest.fixture
def in_workspace(workspace, monkeypatch: pytest.MonkeyPatch):
    """The workspace, for code that runs in this process: a process for each call takes seconds to import mlflow."""
    monkeypatch.chdir(workspace.root)
    monkeypatch.setattr("pipelines.lineage.ROOT", workspace.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return workspace


def register_again() -> dict:
    return register(load_config())


def registry(*moves: str) -> dict:
    """Move aliases, as a person does, and return them and the number of versions."""
    client = use_tracking_store()
    for alias, version in (pair.split("=") for pair in moves):
        client.set_registered_model_alias("grpo-rm-digits", alias, version)
    aliases = client.get_registered_model("grpo-rm-digits").aliases
    versions = client.search_model_versions("name = 'grpo-rm-digits'")
    return {"aliases": {alias: str(version) for alias, version in aliases.items()}, "versions": len(versions)}


@pytest.mark.pipeline
def test_a_version_explains_itself(workspace):
    said = json.loads(workspace.succeed("python", "-W", "ignore", "-c", VERSION).splitlines()[-1])
    assert "post-trained with GRPO-RM on `digits`" in said["model"]
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in said["model"]
    assert "Gate passed." in said["version"]
    measured = json.loads((workspace.root / "reports/evaluation.json").read_text())["models"]
    numbers = " | ".join(f"{measured[name]['accuracy']:.4f}" for name in ("pretrain", "cross_entropy", "grpo_rm"))
    assert f"| accuracy | {numbers} |" in said["version"]

    tags = said["tags"]
    gate = {key: value for key, value in tags.items() if key.partition(".")[0] == "gate"}
    clauses = ("gate", "gate.accuracy", "gate.candidate", "gate.constant", "gate.control.accuracy", "gate.metrics")
    assert gate == dict.fromkeys(clauses, "passed")
    assert (tags["git.dirty"], tags["promotion.by"]) == ("false", "stage register")
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]
    assert (tags["dvc.data"], tags["dvc.onnx"]) == (lock["prepare"]["outs"][0]["md5"], lock["export"]["outs"][0]["md5"])
    made_by = workspace.succeed("git", "rev-parse", "HEAD", "HEAD~1").split()
    assert tags["git.commit"] == made_by[1]
    assert workspace.succeed("python", "-m", "pipelines.dvc_lock", tags["dvc.lock"]).strip() == made_by[0]
    assert "none of the 1 committed versions" in workspace.fail("python", "-m", "pipelines.dvc_lock", "0" * 32)
    assert f"python -m pipelines.dvc_lock {tags['dvc.lock']}" in said["version"]

    assert said["run"] == "finetune@grpo_rm"
    expected = {f"test_{key}": [pytest.approx(value), tags["dvc.data"]] for key, value in measured["grpo_rm"].items()}
    assert said["metrics"] == expected
    assert said["inputs"] == "['images': Tensor('uint8', (-1, 32, 32, 1))]"
    assert said["example"] and said["example_type"] == "uint8"
    assert said["error"] < 1e-4


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore")  # of libraries that mlflow imports
@pytest.mark.usefixtures("in_workspace")
def test_the_same_bytes_make_no_second_version():
    before = registry()["versions"]
    result = register_again()
    assert registry()["versions"] == before
    assert result["promotion"] == "it already is the champion"


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore")
def test_a_candidate_against_a_champion(in_workspace):
    """Another model is registered, compared with the champion, promoted by hand and found again."""
    workspace = in_workspace
    first = registry()["aliases"]["champion"]
    workspace.set(finetune__epochs=2)
    workspace.succeed("dvc", "repro")
    result = json.loads((workspace.root / "reports/registration.json").read_text())
    assert [clause["name"] for clause in result["gate"]["clauses"]] == [
        "candidate",
        "metrics",
        "accuracy",
        "constant",
        "control.accuracy",
        "champion.accuracy",
    ]
    second = result["version"]
    assert result["champion"]["version"] == first and result["champion"]["metrics"]["accuracy"] > 0.5
    assert set(result["comparison"]["control"]) == set(result["comparison"]["champion"]) == {"accuracy"}
    assert registry()["aliases"] == {"challenger": second, "champion": first}
    assert f"champion stays version {first}" in result["promotion"]

    assert f"out of {first}, {second}" in workspace.fail("python", "-m", "pipelines.promote", "99")
    moved = registry(f"champion={second}")  # what a person does in the UI
    assert moved["aliases"]["champion"] == second
    summary = workspace.succeed("python", "-m", "pipelines.summary")
    assert f"registered: grpo-rm-digits version {second} (challenger, champion)\n" in summary
    assert register_again()["promotion"] == "it already is the champion"
    registry(f"champion={first}")  # and takes back
    workspace.set(register__promote="auto")
    result = register_again()
    assert "was champion before and was taken down" in result["promotion"]
    assert result["aliases"] == ["challenger"]

    change(workspace, "reports/evaluation.json", lambda value: value["models"]["grpo_rm"].update(accuracy=math.nan))
    result = register_again()
    assert not result["gate"]["has_passed"]
    assert "evaluation.json says accuracy nan (measured again" in result["gate"]["clauses"][1]["reason"]
    assert "because the gate failed" in result["promotion"]
    assert registry()["aliases"]["champion"] == first
    workspace.succeed("dvc", "checkout", "--quiet", "--force", "reports/evaluation.json")

    for key, value in (("classes", list("9876543210")), ("split", {"seed": 1})):
        change(workspace, "data/prepared/dataset.json", lambda described, new={key: value}: described.update(new))
        clauses = register_again()["gate"]["clauses"]
        assert [clauses[place]["has_passed"] for place in (0, -1)] == [False, False]
        assert {"classes": "it knows other classes", "split": "another split"}[key] in clauses[0]["reason"]
        assert "accuracy cannot be compared with the champion's on these test images: it" in clauses[-1]["reason"]
        workspace.succeed("dvc", "checkout", "--quiet", "--force", "data/prepared")

    workspace.succeed("git", "checkout", "--quiet", ".")  # back to the first model: restored, but registered anew
    assert "Running stage 'register'" in workspace.succeed("dvc", "repro")
    assert registry()["aliases"]["challenger"] == first


def change(workspace, name: str, edit: Callable[[dict], None]) -> None:
    content = json.loads((workspace.root / name).read_text())
    edit(content)
    (workspace.root / name).unlink()
    (workspace.root / name).write_text(json.dumps(content))


@pytest.mark.pipeline
def test_another_store_is_noticed(workspace, tmp_path):
    elsewhere = workspace.succeed("python", "-m", "pipelines.summary", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/x.db")
    assert "grpo-rm-digits is not in sqlite" in elsewhere
    assert "dvc repro --force --single-item register" in elsewhere
