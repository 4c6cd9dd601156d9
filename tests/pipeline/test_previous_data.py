"""The previous version of the data, in real repositories of git and DVC."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from manifests import ROOT, limits, make_rows, with_values, write_prepared

from pipelines.validate import validate
from pipelines.validation import previous_data
from pipelines.validation.previous_data import NoPreviousDataError, find_previous_data

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries of DVC and of Great Expectations
]

PREPARED = Path("data/prepared")
STAGE = """
stages:
  prepare:
    cmd: "true"
    params: [data.source]
    outs:
      - data/prepared: {persist: true}
"""


def succeed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(labels: list[int], **changes: Any) -> None:
    """Prepared data, an image for each label."""
    (PREPARED / "train").mkdir(parents=True, exist_ok=True)
    (PREPARED / "train/00000.parquet").write_text(f"images {labels}")
    pq.write_table(pa.table({"label": labels}), PREPARED / "manifest.parquet")
    dataset = {"source": "folder:a", "task": "classification", "classes": ["cat", "dog"]} | changes
    (PREPARED / "dataset.json").write_text(json.dumps(dataset))
    Path("params.yaml").write_text(json.dumps({"data": {"source": dataset["source"]}}))


def commit() -> str:
    """Have DVC keep the prepared data, and commit dvc.lock; returns the data's hash."""
    succeed("dvc", "commit", "--quiet", "--force", "prepare")
    succeed("git", "add", "--all")
    succeed("git", "commit", "--quiet", "--message", "data")
    return str(yaml.safe_load(Path("dvc.lock").read_text())["stages"]["prepare"]["outs"][0]["md5"])


def commit_lock(lock: str | None) -> None:
    """Commit a dvc.lock as it is, or its removal."""
    Path("dvc.lock").unlink(missing_ok=True)
    if lock is not None:
        Path("dvc.lock").write_text(lock)
    succeed("git", "add", "--all")
    succeed("git", "commit", "--quiet", "--message", "a dvc.lock")


def cached(digest: str) -> Path:
    return Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]


def cached_manifest(digest: str) -> Path:
    entries = json.loads(cached(digest).read_text())
    return cached(next(entry["md5"] for entry in entries if entry["relpath"] == "manifest.parquet"))


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("[{]\nby chance")


def describe(revision: str) -> str:
    return succeed("git", "show", "--no-patch", "--format=%h, %cs", revision).strip()


def found() -> tuple[str, list[int]]:
    previous = find_previous_data(PREPARED, columns=["label"])
    return previous.digest, previous.manifest["label"].to_pylist()


def reason() -> str:
    with pytest.raises(NoPreviousDataError) as raised:
        find_previous_data(PREPARED, columns=["label"])
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without data, with a DVC remote beside it."""
    root = tmp_path_factory.mktemp("template")
    with contextlib.chdir(root):
        succeed("git", "init", "--quiet", "--initial-branch=main")
        succeed("git", "config", "user.name", "test")
        succeed("git", "config", "user.email", "test@example.com")
        succeed("dvc", "init", "--quiet")
        succeed("dvc", "remote", "add", "--quiet", "--default", "store", "../remote")
        (root / ".gitignore").write_text("/data/prepared\n")
        commit_lock(None)  # before there was a pipeline
        (root / "dvc.yaml").write_text(STAGE)
    return root


@pytest.fixture(autouse=True)
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return root


def test_the_version_before_is_the_same_before_and_after_this_one_is_committed() -> None:
    write([0, 1])
    first = commit()
    assert "it is the first one" in reason()

    write([0, 1, 1])
    assert found() == (first, [0, 1])
    second = commit()
    Path("README.md").write_text("of no meaning")
    Path("dvc.lock").write_text(Path("dvc.lock").read_text() + "# nor is this\n")
    succeed("git", "add", "--all")
    succeed("git", "commit", "--quiet", "--message", "dvc.lock, but not the data")
    assert found() == (first, [0, 1])
    assert find_previous_data(PREPARED, columns=["label"]).commit == describe("HEAD~2")

    write([1, 1])
    assert found() == (second, [0, 1, 1])
    assert find_previous_data(PREPARED, columns=["label"]).commit == describe("HEAD"), "the newest that has it"
    commit()
    assert found() == (second, [0, 1, 1])


def test_another_source_or_task_is_not_the_same_data() -> None:
    write([0], classes=["cat", "dog", "fox"])
    first = commit()
    write([0, 0], source="folder:b")
    assert "it is the first one" in reason()
    commit()
    write([-1], task="segmentation")
    assert "it is the first one" in reason()
    commit()

    write([0, 1])

    assert found() == (first, [0])
    assert find_previous_data(PREPARED, columns=["label"]).classes == ["cat", "dog", "fox"]


def test_a_lock_that_does_not_say_the_source_may_be_of_the_same_one() -> None:
    write([0])
    first = commit()
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    del lock["stages"]["prepare"]["params"]
    commit_lock(yaml.safe_dump(lock))
    write([0, 1])

    assert found() == (first, [0])


def test_what_is_not_in_the_cache_comes_with_the_command_that_gets_it(repository: Path) -> None:
    write([7], source="digits")
    other = commit()
    write([0])
    first = commit()
    write([0, 1])
    commit()
    succeed("dvc", "push", "--quiet", "--all-commits")
    shutil.rmtree(repository / ".dvc/cache/files")

    assert f"the version before ({first}) is not in DVC's cache" in reason()
    command = reason().split("`")[1]

    assert command == "dvc fetch --all-commits data/prepared/manifest.parquet data/prepared/dataset.json"
    succeed(*command.split())
    assert found() == (first, [0])
    assert cached(other).is_file()
    listed = {entry["relpath"]: entry["md5"] for entry in json.loads(cached(first).read_text())}
    there = {name for name, digest in listed.items() if cached(digest).is_file()}
    assert there == {"manifest.parquet", "dataset.json"}, "the images are not downloaded"


def test_the_command_gets_the_version_before_where_another_one_was_never_pushed(repository: Path) -> None:
    write([0])
    first = commit()
    succeed("dvc", "push", "--quiet")
    write([0, 0], source="folder:b")
    commit()
    write([0, 1])
    commit()
    shutil.rmtree(repository / ".dvc/cache/files")

    subprocess.run(reason().split("`")[1].split(), capture_output=True, check=False)

    assert found() == (first, [0])


def test_a_version_of_another_source_need_not_be_in_the_cache(repository: Path) -> None:
    write([0], source="digits")
    commit()
    shutil.rmtree(repository / ".dvc/cache/files")

    write([0, 1])

    assert "it is the first one" in reason()


def test_commits_without_a_good_lock_are_passed_over() -> None:
    write([0])
    first = commit()
    good = Path("dvc.lock").read_text()
    for bad in ("<<<<<<< HEAD\nstages: [", "stages: {}", "no mapping", None):
        commit_lock(bad)
        write([0, 1])
        assert found() == (first, [0])
    Path("dvc.lock").write_text(good)
    write([0, 1])

    assert found() == (first, [0])


@pytest.mark.parametrize("find", [cached, cached_manifest])
def test_damaged_data_in_the_cache_is_a_reason_not_a_crash(find: Callable[[str], Path]) -> None:
    write([0])
    damage(find(commit()))
    write([0, 1])

    assert reason().startswith("the previous version of the data cannot be read: ")


def test_a_previous_manifest_with_other_columns_is_a_reason() -> None:
    write([0])
    commit()
    write([0, 1])

    with pytest.raises(NoPreviousDataError, match=r"cannot be read.*mask_counts"):
        find_previous_data(PREPARED, columns=["mask_counts"])


def test_without_git_or_dvc_there_is_a_reason(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([0])
    commit()
    write([0, 1])
    shutil.rmtree(repository / ".dvc")
    assert "DVC has no cache here" in reason()
    shutil.rmtree(repository / ".git")
    assert "git has no history here" in reason()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "cannot be read" in reason()


def test_a_folder_of_a_repository_has_its_own_history(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock above the project is not the project's."""
    write([0])
    commit()
    (repository / "nested").mkdir()
    monkeypatch.chdir("nested")
    write([0, 1])

    assert "it is the first one" in reason()


def test_the_stage_reports_what_changed_since(capsys: pytest.CaptureFixture[str]) -> None:
    write([0])
    write_prepared(PREPARED, make_rows(), source="folder:a", classes=["cat", "dog", "fox"])
    commit()
    shutil.rmtree(PREPARED / "train")
    rows = with_values(["t0", "v2"], make_rows().assign(mean_r=0.5), split="test")
    write_prepared(PREPARED, with_values(["v2"], rows, sha256="new"), source="folder:a")

    assert validate(PREPARED, Path("reports"), limits())

    output = capsys.readouterr().out
    compared = f"Compared with the version before (commit {describe('HEAD')}): 1 image added, 1 removed."
    assert output.splitlines()[1] == compared
    assert f"<p>{compared}</p>" in Path("reports/data_docs/index.html").read_text(encoding="utf-8")
    assert output.count("split_now") == output.count("t0: split_now = test, before train\n") == 1
    assert "fox: change = vanished" in output
    assert "the mean of channel r of the images is distributed as before" in output
    assert "Not checked" not in output


def test_the_stage_of_the_pipeline_is_the_one_that_is_looked_for() -> None:
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][previous_data.STAGE]["outs"]
    assert any(previous_data.OUTPUT in out for out in outs)
