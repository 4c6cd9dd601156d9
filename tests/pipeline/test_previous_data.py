"""The previous version of the data, in repositories of git and DVC."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import ROOT, limits, make_rows, with_values, write_prepared

from pipelines.previous_data import NoPreviousDataError, PreviousData, find_previous_data
from pipelines.validate import validate

pytestmark = [pytest.mark.pipeline, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of libraries of DVC

PREPARED = Path("data/prepared")
STAGE = {"cmd": "true", "outs": [{"data/prepared": {"persist": True}}]}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


def write_version(value: float, **fields: object) -> None:
    write_prepared(PREPARED, with_values(["t0"], mean_r=value), **fields)


def commit_version(value: float, **fields: object) -> None:
    write_version(value, **fields)
    dvc("commit", "--quiet", "--force", "prepare")
    git("add", "--all")
    git("commit", "--quiet", "--message", f"data {value}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions of data: of an old format, 1, 2 of another source, 3."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        git("init", "--quiet", "--initial-branch=main")
        git("config", "user.name", "test")
        git("config", "user.email", "test@example.com")
        dvc("init", "--quiet")
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": STAGE}}))
        Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"other": {"cmd": "true"}}}))
        git("add", "--all")
        git("commit", "--quiet", "--message", "no data")
        commit_version(0.0, source=None)
        commit_version(1.0)
        commit_version(2.0, source="folder:birds", classes=["jay", "owl"])
        commit_version(3.0, classes=["cat", "dog", "fox"])
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def find() -> PreviousData:
    return find_previous_data(PREPARED, columns=["label", "mean_r"])


def value_of(found: PreviousData) -> float:
    assert found.manifest.column_names == ["label", "mean_r"]
    return float(found.manifest["mean_r"][0].as_py())


@pytest.mark.usefixtures("repository")
def test_new_data_are_compared_with_the_last_ones_committed() -> None:
    write_version(4.0)

    found = find()

    assert value_of(found) == 3.0
    assert found.classes == ["cat", "dog", "fox"]
    assert found.digest == yaml.safe_load(Path("dvc.lock").read_text())["stages"]["prepare"]["outs"][0]["md5"]


@pytest.mark.usefixtures("repository")
def test_committed_data_are_compared_with_the_version_before_of_their_source() -> None:
    assert value_of(find()) == 1.0  # not 2, of other images


@pytest.mark.usefixtures("repository")
def test_a_commit_of_the_new_data_changes_nothing() -> None:
    write_version(4.0)
    before = find()
    commit_version(4.0)

    after = find()

    assert (after.digest, value_of(after)) == (before.digest, 3.0)


@pytest.mark.usefixtures("repository")
def test_another_source_or_task_has_no_previous_version() -> None:
    for fields in ({"source": "digits"}, {"task": "segmentation"}):
        write_version(4.0, **fields)
        with pytest.raises(NoPreviousDataError, match="no earlier version of data from this source"):
            find()


def test_a_version_that_is_not_in_the_cache_says_how_to_get_it(repository: Path) -> None:
    write_version(4.0)
    shutil.rmtree(repository / ".dvc/cache")
    commit = git("rev-parse", "HEAD")[:9]
    # where nothing is in the cache, this is the version that was prepared here, so the one before is missing as well
    with pytest.raises(NoPreviousDataError, match=r"not in DVC's cache: `git checkout \w{9} -- dvc.lock && dvc fetch"):
        find()
    Path("dvc.lock").unlink()
    with pytest.raises(NoPreviousDataError, match=f"the version of commit {commit} is not in DVC's cache"):
        find()


@pytest.mark.parametrize("damage", ["listing", "manifest", "lock"])
def test_whatever_is_found_there_is_no_reason_to_stop(damage: str, repository: Path) -> None:
    write_version(4.0)
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    digest = lock["stages"]["prepare"]["outs"][0]["md5"]
    cache = repository / ".dvc/cache/files/md5"
    listing = cache / digest[:2] / digest[2:]
    if damage == "lock":
        Path("dvc.lock").write_text("stages: [")
    else:
        entries = yaml.safe_load(listing.read_text())
        manifest = next(entry["md5"] for entry in entries if entry["relpath"] == "manifest.parquet")
        target = listing if damage == "listing" else cache / manifest[:2] / manifest[2:]
        target.chmod(0o644)
        target.write_text("[{]")

    with pytest.raises(NoPreviousDataError, match="the previous version of the data cannot be read"):
        find()


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write_version(4.0)

    with pytest.raises(NoPreviousDataError, match="git has no history here"):
        find()


@pytest.mark.usefixtures("repository")
def test_the_stage_reports_what_changed_since(capsys: pytest.CaptureFixture[str]) -> None:
    write_prepared(PREPARED, make_rows().assign(mean_r=0.5))

    assert validate(PREPARED, Path("reports"), limits())

    output = capsys.readouterr().out
    assert "fox: change = vanished" in output
    assert "the mean of channel r of the images is distributed as before" in output
    assert "Not checked" not in output


def test_a_folder_of_a_repository_has_its_own_history(template: Path, tmp_path: Path) -> None:
    """A lock above the project is not the project's."""
    nested = tmp_path / "repository/nested"
    shutil.copytree(template, nested.parent, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        nested.mkdir()
        patch.chdir(nested)
        write_version(4.0)
        with pytest.raises(NoPreviousDataError, match="no earlier version"):
            find()


def test_the_stage_of_the_pipeline_is_the_one_that_is_looked_for() -> None:
    from pipelines.previous_data import OUTPUT, STAGE

    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][STAGE]["outs"]
    assert any(OUTPUT in out for out in outs)
