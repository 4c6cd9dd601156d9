"""Gate, versions and aliases in a real registry."""

import json

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
    assert register(workspace)["promotion"] == "it already is the champion"
    registry(workspace, f"champion={first}")  # and takes back
    assert register(workspace)["aliases"] == ["challenger"]

    workspace.set(register__promote="auto")
    assert "does not beat" in register(workspace)["promotion"]

    dataset = workspace.root / "data/prepared/dataset.json"
    described = json.loads(dataset.read_text())
    dataset.unlink()
    dataset.write_text(json.dumps(described | {"classes": described["classes"][::-1]}))
    clause = register(workspace)["gate"]["clauses"][-1]
    assert not clause["has_passed"]
    assert "cannot be compared with the champion" in clause["reason"]


@pytest.mark.pipeline
def test_a_failed_gate_registers_and_says_why_and_never_promotes(workspace):
    text = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(text.replace("min_accuracy: 0.9", "min_accuracy: 1.0"))
    evaluation = json.loads((workspace.root / "reports/evaluation.json").read_text())
    evaluation["models"]["grpo_rm"]["accuracy"] = float("nan")
    (workspace.root / "reports/evaluation.json").unlink()
    (workspace.root / "reports/evaluation.json").write_text(json.dumps(evaluation))
    champion = registry(workspace)["aliases"]["champion"]
    result = register(workspace)
    assert not result["gate"]["has_passed"]
    assert "accuracy nan, expected at least 1" in result["gate"]["clauses"][0]["reason"]
    assert registry(workspace)["aliases"]["champion"] == champion
