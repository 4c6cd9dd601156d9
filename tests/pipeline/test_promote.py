"""Promotion and rollback, and what a person does to the aliases by hand, in a real registry."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from grpo_rm.config import load_config
from pipelines import promote as promotion
from pipelines.onnx_model import OnnxModel, self_test
from pipelines.promote import promote
from pipelines.register import register
from pipelines.tracking import aliases, registry

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning"),  # mlflow, of its own type hints
]

NAME = "grpo-rm-digits"
ONNX, SELF_TEST = Path("models/onnx/encoder.onnx"), Path("models/onnx/self_test.npz")


@pytest.fixture(scope="module")
def base(finished, tmp_path_factory):
    """What stage register reads, and a copy of the store: version 1 is champion, version 2 the challenger."""
    import mlflow

    root = tmp_path_factory.mktemp("registry")
    for name in ("data/prepared", "models", "reports"):
        shutil.copytree(finished.root / name, root / name)
    for name in ("params.yaml", "dvc.lock"):
        shutil.copyfile(finished.root / name, root / name)
    shutil.copyfile(finished.root / "mlruns/mlflow.db", root / "mlflow.db")
    shutil.rmtree(root / "reports/data_docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        mlflow.MlflowClient().delete_registered_model(NAME)
        assert "the first version that passed" in register_candidate()["promotion"]
        assert register_candidate("second")["version"] == "2"
    return root


@pytest.fixture
def client(base, tmp_path, monkeypatch):
    """A copy of it to work in."""
    import mlflow

    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/copy/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/copy/mlflow.db")
    return mlflow.MlflowClient()


def register_candidate(
    note: str | None = None, *, accuracy: float | None = None, least: float = 0.9, auto: bool = False
) -> dict:
    """Run stage register; with a note, the candidate is another file than before, which answers the same.

    The gate asks for the accuracy `least`. Another `accuracy` is what evaluation.json says.
    """
    if note:
        model = onnx.load(ONNX)
        onnx.helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | {"note": note})
        ONNX.unlink()
        onnx.save(model, ONNX)
    evaluation = json.loads(Path("reports/evaluation.json").read_text())
    if accuracy is not None:
        evaluation["models"]["grpo_rm"]["accuracy"] = accuracy
        Path("reports/evaluation.json").unlink()
        Path("reports/evaluation.json").write_text(json.dumps(evaluation))
    config = load_config()
    gate = config.register_.gate.model_copy(update={"thresholds": {"accuracy": least}})
    settings = config.register_.model_copy(update={"promote": "auto" if auto else "manual", "gate": gate})
    return register(config.model_copy(update={"register_": settings}))


def points_to(client, alias: str = "champion") -> str | None:
    version = client.get_registered_model(NAME).aliases.get(alias)
    return version and str(version)


def stored_model(client, version: str) -> Path:
    """Return the directory of the artifact store that holds a version."""
    return Path(client.get_model_version_download_uri(NAME, version).removeprefix("file://"))


def test_promotion_and_rollback(client):
    promoted = promote(by="ada", reason="ready")
    assert (promoted.name, promoted.version, promoted.previous, promoted.reason) == (NAME, "2", "1", "ready")
    assert points_to(client) == "2"
    tags = client.get_model_version(NAME, "2").tags
    assert tags.pop("promotion.at").endswith("+00:00")
    assert {key: tags[key] for key in tags if key.startswith("promotion")} == {
        "promotion.by": "ada",
        "promotion.reason": "ready",
        "promotion.forced": "false",
        "promotion.replaced": "1",
    }
    assert "back: python -m pipelines.promote 1" in promotion.describe(promoted)
    again = promote("2", by="bob")
    assert not again.has_moved
    assert "nothing changed" in promotion.describe(again)
    assert client.get_model_version(NAME, "2").tags["promotion.by"] == "ada"

    back = promote("1")
    assert (back.version, back.previous, back.reason) == ("1", "2", "the gate passed")
    assert points_to(client) == "1"
    assert client.get_model_version(NAME, "1").tags["promotion.replaced"] == "2"
    result = register_candidate(auto=True)  # version 2 again
    assert (result["version"], points_to(client)) == ("2", "1")
    assert "was champion before and was taken down" in result["promotion"]

    promote("2", by="bob", reason="better after all")
    promote("1", by="cy")
    promote("2", by="bob", reason="sure now")
    tags = client.get_model_version(NAME, "2").tags
    assert (tags["promotion.by"], tags["promotion.reason"]) == ("bob", "sure now")
    earlier = [tags[f"promotion.{number}"].partition("+00:00: ")[2] for number in (1, 2)]
    assert earlier == [
        "by ada, in the place of version 1: ready",
        "by bob, in the place of version 1: better after all",
    ]
    assert "promotion.3" not in tags


def test_a_failed_gate_takes_force_and_a_reason(client, monkeypatch, capsys):
    assert register_candidate("weak", least=1.1)["version"] == "3"
    with pytest.raises(ValueError, match=r"gate of version 3 failed \(accuracy\), expected passed.*--force --reason"):
        promote()
    with pytest.raises(ValueError, match="a forced promotion without a reason"):
        promote(force=True, reason=" ")
    assert points_to(client) == "1"
    monkeypatch.setattr(sys, "argv", ["promote", "3", "--force", "--reason", "labels were wrong", "--name", NAME])
    promotion.main()
    assert "version 3 is the champion, in the place of version 1" in capsys.readouterr().out
    tags = client.get_model_version(NAME, "3").tags
    assert (tags["promotion.forced"], tags["promotion.reason"]) == ("true", "labels were wrong")
    for key in [key for key in client.get_model_version(NAME, "2").tags if key.startswith("gate")]:
        client.delete_model_version_tag(NAME, "2", key)
    with pytest.raises(ValueError, match="gate of version 2 has no verdict"):
        promote("2")


def test_force_never_promotes_what_does_not_run(client):
    with np.load(SELF_TEST) as file:
        stored = dict(file)
    stored["logits"] = stored["logits"] + np.float32(0.01)
    SELF_TEST.unlink()
    np.savez(SELF_TEST, **stored)
    assert register_candidate("third")["version"] == "3"
    with pytest.raises(ValueError, match=r"fails its self-test: largest difference from what is stored 0.01"):
        promote("3", force=True, reason="I want it")

    assert register_candidate("fourth")["version"] == "4"
    with (stored_model(client, "4") / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"model.onnx of version 4 .* is not what was registered: SHA-256 "):
        promote("4", force=True, reason="I want it")
    (stored_model(client, "4") / "extra_files/self_test.npz").unlink()
    shutil.copyfile(ONNX, stored_model(client, "4") / "model.onnx")
    with pytest.raises(ValueError, match=r"self_test.npz of version 4 .*: SHA-256 missing, expected"):
        promote("4", force=True, reason="I want it")
    shutil.rmtree(stored_model(client, "4"))
    with pytest.raises(FileNotFoundError, match=r"version 4 of .* has no model.onnx in the artifact store"):
        promote("4")
    client.delete_model_version_tag(NAME, "2", "self_test.sha256")
    with pytest.raises(ValueError, match=r"version 2 .* has no self-test.*registers the model anew"):
        promote("2", force=True, reason="I want it")
    assert register_candidate("second")["version"] == "5"  # and so it does
    assert points_to(client) == "1"


def test_what_is_not_there(client, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no version 9, expected a version out of 1, 2"):
        promote("9")
    with pytest.raises(ValueError, match="has no version abc"):
        promote("abc")
    with pytest.raises(ValueError, match=r"other in sqlite.* has no alias `challenger`, nor any version; see --name"):
        promote(name="other")
    client.delete_registered_model_alias(NAME, "challenger")
    with pytest.raises(ValueError, match="has no alias `challenger`, expected a version out of 1, 2"):
        promote()
    shutil.rmtree("reports")
    assert promotion.last_name() == NAME
    shutil.rmtree("data")
    with pytest.raises(FileNotFoundError, match="name a model with --name"):
        promote()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nothing.db")
    with pytest.raises(ValueError, match=r"nothing.db not found: `dvc repro` registers"):
        promote(name=NAME)
    assert not (tmp_path / "nothing.db").exists()


def test_a_champion_made_or_taken_down_by_hand(client):
    client.set_registered_model_alias(NAME, "champion", "2")  # in the UI
    assert register_candidate()["promotion"] == "it already is the champion"
    assert client.get_model_version(NAME, "2").tags["promotion.by"] == "unknown"
    client.set_registered_model_alias(NAME, "champion", "1")  # and back
    result = register_candidate(auto=True)
    assert "champion stays version 1: this version was champion before and was taken down" in result["promotion"]

    client.delete_registered_model_alias(NAME, "champion")
    for note in (None, "third"):
        result = register_candidate(note, auto=True)
        assert result["gate"]["has_passed"]
        assert "there is no champion" in result["promotion"]
    assert points_to(client) is None
    assert promote("3").previous is None
    client.delete_model_version(NAME, "3")  # which deletes its aliases
    assert "a person took the alias from version 3" in register_candidate("fourth", auto=True)["promotion"]
    assert points_to(client) is None
    assert points_to(client, "challenger") == "4"


def test_a_challenger_moved_by_hand_stays_until_there_is_a_new_version(client):
    client.set_registered_model_alias(NAME, "challenger", "1")
    assert register_candidate()["version"] == "2"
    assert points_to(client, "challenger") == "1"
    client.delete_registered_model_alias(NAME, "challenger")
    assert register_candidate()["aliases"] == []
    newer = register_candidate("third", auto=True)
    assert newer["aliases"] == ["challenger"]
    assert "champion stays version 1, which it does not beat" in newer["promotion"]
    register_candidate("second")  # not touched by a person: the candidate of this run gets it
    assert points_to(client, "challenger") == "2"


def test_a_champion_that_cannot_be_read(client, capfd):
    assert register_candidate("third")["version"] == "3"
    client.set_registered_model_alias(NAME, "champion", "3")
    stored = stored_model(client, "3") / "model.onnx"
    model = onnx.load(stored)
    del model.metadata_props[:]
    onnx.save(model, stored)
    assert "lacks grpo_rm.classes, grpo_rm.preprocessing, grpo_rm.training" in warning_about_the_champion(
        client, capfd, "second"
    )
    stored.write_bytes(b"something else")
    assert "is no ONNX file that runs here" in warning_about_the_champion(client, capfd)
    shutil.rmtree(stored.parent)
    assert "has no model.onnx in the artifact store" in warning_about_the_champion(client, capfd)


def warning_about_the_champion(client, capfd, note: str | None = None) -> str:
    result = register_candidate(note)
    assert result["version"] == "2"
    clause = result["gate"]["clauses"][-1]
    assert (clause["name"], clause["has_passed"]) == ("champion.accuracy", False)
    assert points_to(client) == "3"
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    return warnings[0]


def test_what_a_person_wrote_stays(client):
    client.update_registered_model(NAME, "our digits")
    text = client.get_model_version(NAME, "2").description
    assert text.startswith("Gate passed.")
    client.update_model_version(NAME, "2", f"{text}\n\nSeen by Ada.")
    register_candidate(least=1.1)
    register_candidate(least=1.2)
    assert client.get_registered_model(NAME).description == "our digits"
    text = client.get_model_version(NAME, "2").description
    assert text.startswith("Gate failed.")
    assert text.endswith(f"{registry.OWN_TEXT}\n\nSeen by Ada.")
    assert text.count(registry.OWN_TEXT) == 1
    assert client.get_model_version(NAME, "2").tags["gate"] == "failed"


def test_descriptions_fit_into_the_database():
    own = "x" * 4000
    text = registry.keep_own_text("y" * 3000, own)
    assert len(text) == registry.MAX_DESCRIPTION
    assert text.endswith(f"\n\n{own}")
    assert registry.keep_own_text("y" * 3000, "x" * 4950) == "x" * 4950


def test_a_run_deleted_by_hand_stops_nothing(client, capfd):
    client.delete_run(client.get_model_version(NAME, "2").run_id)
    register_candidate(accuracy=0.95)
    assert "warning: the run of version 2 was deleted" in capfd.readouterr().err


def test_the_numbers_are_on_the_page_of_the_model(client):
    def numbers() -> dict:
        source = client.get_model_version(NAME, "2").source
        metrics = client.get_logged_model(source.rpartition("/")[2]).metrics
        assert {(m.dataset_name, m.dataset_digest[-4:]) for m in metrics} == {("digits", ".dir")}
        return {m.key: m.value for m in metrics}

    measured = json.loads(Path("reports/evaluation.json").read_text())["models"]["grpo_rm"]
    assert numbers() == {f"test_{key}": pytest.approx(value) for key, value in measured.items()}
    register_candidate(accuracy=0.93)
    assert numbers()["test_accuracy"] == 0.93


def test_the_self_test_notices(client, tmp_path):  # noqa: ARG001
    self_test(ONNX, SELF_TEST)
    with np.load(SELF_TEST) as file:
        good = dict(file)
    assert good["images"].shape == (8, 32, 32, 1) and good["images"].dtype == np.uint8
    assert OnnxModel(ONNX).classes == [str(digit) for digit in range(10)]
    wrong = {
        r"embedding is \(8, 96\), expected \(8, 95\)": {"embedding": good["embedding"][:, 1:]},
        "largest difference from what is stored nan": {"logits": np.full_like(good["logits"], np.nan)},
        "largest difference from what is stored 0.1": {"logits": good["logits"] + np.float32(0.1)},
        "smallest cosine of the embeddings -1": {"embedding": -good["embedding"], "max_abs_error": 1e9},
        "does not run on the images": {"images": good["images"][:, 1:]},
    }
    for message, change in wrong.items():
        np.savez(tmp_path / "wrong.npz", **good | change)
        with pytest.raises(ValueError, match=message):
            self_test(ONNX, tmp_path / "wrong.npz")
    np.savez(tmp_path / "wider.npz", **good | {"logits": good["logits"] + np.float32(0.1), "max_abs_error": 0.2})
    self_test(ONNX, tmp_path / "wider.npz")
    np.savez(tmp_path / "less.npz", images=good["images"])
    for file in (tmp_path / "less.npz", ONNX, tmp_path / "none.npz"):
        with pytest.raises(ValueError, match="is no self-test of an export"):
            self_test(ONNX, file)
    with pytest.raises(ValueError, match="is no ONNX file that runs here"):
        self_test(SELF_TEST, SELF_TEST)


def test_the_same_model_writes_the_same_self_test(client, tmp_path):  # noqa: ARG001
    """Whatever the number of threads, and at any time: DVC and the registry go by the bytes."""
    import torch

    from grpo_rm.checkpoint import load_model
    from pipelines.export import SELF_TEST_IMAGES, example_images, write_self_test

    model = load_model(Path("models/finetune/grpo_rm"))
    images = example_images(model.config)[:SELF_TEST_IMAGES]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        write_self_test(model, images, tmp_path / "again.npz", load_config().export)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "again.npz").read_bytes() == SELF_TEST.read_bytes()


def test_the_alias_is_the_truth_and_the_tags_are_history(client):
    assert aliases.find_alias("nothing", "champion") == aliases.Alias(None, None)
    champion = aliases.find_alias(NAME, "champion")
    assert champion == aliases.Alias("1", "1")
    assert not champion.was_moved
    client.set_registered_model_alias(NAME, "champion", "2")
    assert aliases.find_alias(NAME, "champion") == aliases.Alias("2", "1")
    assert aliases.find_alias(NAME, "champion").was_moved


def test_a_version_names_the_commit_that_came_after_it(client, monkeypatch):
    from pipelines.flow import origin

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def commit(*files: str) -> str:
        git("add", *files)
        git("commit", "--quiet", "--message", "x")
        return git("rev-parse", "HEAD")

    monkeypatch.setattr(origin, "ROOT", Path())
    git("init", "--quiet")
    parent = commit("dvc.lock")
    for key, value in {"git.commit": parent, "git.dirty": "true"}.items():
        client.set_model_version_tag(NAME, "2", key, value)
    register_candidate()  # which describes version 2 anew
    assert f"commit `{parent}` with uncommitted changes" in client.get_model_version(NAME, "2").description

    after = commit("params.yaml")
    assert not origin.name_commit(NAME, "2", parent)  # it is not the newest: others' commits came between
    assert not origin.name_commit(NAME, "1", after)  # made at another commit
    assert origin.name_commit(NAME, "2", after)
    version = client.get_model_version(NAME, "2")
    assert (version.tags["git.commit"], version.tags["git.dirty"]) == (after, "false")
    assert f"Made at commit `{after}`, from data" in version.description

    client.set_model_version_tag(NAME, "1", "git.commit", parent)
    client.set_model_version_tag(NAME, "1", "dvc.lock", "of other parameters")
    assert not origin.name_commit(NAME, "1", after)
