"""Gate, versions and aliases in a real registry."""

import json
import math
from collections.abc import Callable

import pytest

from pipelines.register import decide_promotion

ALIASES = """
import json, sys, mlflow
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
client = mlflow.MlflowClient()
for alias, version in (pair.split("=") for pair in sys.argv[1:]):
    client.set_registered_model_alias("grpo-rm-digits", alias, version)
model = client.get_registered_model("grpo-rm-digits")
versions = client.search_model_versions("name = 'grpo-rm-digits'")
print(json.dumps({"aliases": {k: str(v) for k, v in model.aliases.items()}, "versions": len(versions)}))
"""


@pytest.mark.parametrize(
    ("champion", "has_passed", "is_auto", "beats", "expected"),
    [
        (None, True, False, False, (True, "the first version that passed")),
        (None, False, True, False, (False, "the gate failed")),
        ("1", True, False, True, (False, "until a person moves it")),
        ("1", True, True, True, (True, "it beats version 1")),
        ("1", True, True, False, (False, "does not beat")),
        ("1", False, True, True, (False, "the gate failed")),
        ("2", True, True, True, (False, "already is the champion")),
        ("2", False, True, True, (False, "already is the champion")),
    ],
)
def test_who_moves_the_champion(champion, has_passed, is_auto, beats, expected):
    moves, reason = decide_promotion(champion, "2", has_passed=has_passed, is_auto=is_auto, beats_champion=beats)
    assert moves is expected[0]
    assert expected[1] in reason


def register(workspace) -> dict:
    workspace.succeed("python", "-m", "pipelines.register")
    return json.loads((workspace.root / "reports/registration.json").read_text())


def registry(workspace, *moves: str) -> dict:
    return json.loads(workspace.succeed("python", "-W", "ignore", "-c", ALIASES, *moves).splitlines()[-1])


@pytest.mark.pipeline
def test_the_same_bytes_make_no_second_version(workspace):
    before = registry(workspace)["versions"]
    result = register(workspace)
    assert registry(workspace)["versions"] == before
    assert result["promotion"] == "it already is the champion"


@pytest.mark.pipeline
def test_a_candidate_against_a_champion(workspace):
    """Another model is registered, compared with the champion, promoted by hand and found again."""
    first = registry(workspace)["aliases"]["champion"]
    workspace.set(finetune__epochs=2)
    workspace.succeed("dvc", "repro")
    result = json.loads((workspace.root / "reports/registration.json").read_text())
    assert [clause["name"] for clause in result["gate"]["clauses"]] == ["accuracy", "control", "champion"]
    second = result["version"]
    assert registry(workspace)["aliases"] == {"challenger": second, "champion": first}
    assert f"champion stays version {first}" in result["promotion"]

    moved = registry(workspace, f"champion={second}")  # what a person does in the UI
    assert moved["aliases"]["champion"] == second
    summary = workspace.succeed("python", "-m", "pipelines.summary")
    assert f"registered: grpo-rm-digits version {second} (challenger, champion)\n" in summary
    assert register(workspace)["promotion"] == "it already is the champion"
    registry(workspace, f"champion={first}")  # and takes back
    workspace.set(register__promote="auto")
    result = register(workspace)
    assert "does not beat" in result["promotion"]
    assert result["aliases"] == ["challenger"]

    change(workspace, "reports/evaluation.json", lambda value: value["models"]["grpo_rm"].update(accuracy=math.nan))
    result = register(workspace)
    assert not result["gate"]["has_passed"]
    assert "accuracy nan, expected at least 0.9" in result["gate"]["clauses"][0]["reason"]
    assert "because the gate failed" in result["promotion"]
    assert registry(workspace)["aliases"]["champion"] == first
    workspace.succeed("dvc", "checkout", "--quiet", "--force", "reports/evaluation.json")

    for key, value in (("classes", list("9876543210")), ("split", {"seed": 1})):
        change(workspace, "data/prepared/dataset.json", lambda described, new={key: value}: described.update(new))
        clause = register(workspace)["gate"]["clauses"][-1]
        assert not clause["has_passed"]
        assert "cannot be compared with the champion" in clause["reason"]
        workspace.succeed("dvc", "checkout", "--quiet", "--force", "data/prepared")

    workspace.succeed("git", "checkout", "--quiet", ".")  # back to the first model: restored, but registered anew
    assert "Running stage 'register'" in workspace.succeed("dvc", "repro")
    assert registry(workspace)["aliases"]["challenger"] == first


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
