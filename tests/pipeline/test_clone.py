"""A clone that is changed all or nothing, with real git and DVC."""

import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from pipelines import clone, dag
from pipelines.changes import data_version

pytestmark = [pytest.mark.pipeline, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of libraries of DVC

STAGES = {
    "first": {"cmd": "cp params.yaml first.txt", "deps": ["params.yaml"], "outs": ["first.txt"]},
    "second": {
        "cmd": "cp first.txt second.txt",
        "deps": ["first.txt"],
        "outs": ["second.txt"],
        "meta": {"gpu": True, "time_limit": 90},
    },
    "other": {"foreach": ["a", "b"], "do": {"cmd": "echo ${item} > ${item}.txt", "outs": ["${item}.txt"]}},
    "slow": {"cmd": "sleep 60", "deps": ["second.txt"], "meta": {"time_limit": 0.02}},
    "broken": {"cmd": "printf 'error: it is\\n  broken\\n' >&2; exit 3", "deps": ["params.yaml"]},
    "offline": {"cmd": "echo 'error: no answer' >&2; exit 75", "deps": ["params.yaml"]},
}


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two stages that have run, on a branch that follows an upstream, with a DVC remote."""
    root = tmp_path_factory.mktemp("clone")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@example.com")
    dvc(root, "init", "--quiet")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    source = Path(__file__).parents[2] / "params.yaml"
    (root / "params.yaml").write_text(source.read_text())
    dvc(root, "repro", "--quiet", "second")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of it, with an upstream and a DVC remote of its own."""
    copy = tmp_path / "clone"
    subprocess.run(["cp", "-r", template, copy], check=True)
    git(tmp_path, "clone", "--quiet", "--bare", str(copy), "upstream.git")
    git(copy, "remote", "add", "origin", str(tmp_path / "upstream.git"))
    git(copy, "fetch", "--quiet")
    git(copy, "branch", "--quiet", "--set-upstream-to", "origin/main")
    dvc(copy, "remote", "add", "--quiet", "--default", "--local", "store", str(tmp_path / "store"))
    return copy


def reproduce(root: Path, name: str, *, force: bool = False) -> tuple[dag.Result, list[str]]:
    (stage,) = (stage for stage in dag.read_dag(root) if stage.name == name)
    lines: list[str] = []
    return dag.reproduce(stage, root, force=force, environment={}, on_line=lines.append), lines


def override(root: Path, values: dict[str, object]) -> None:
    """Set parameters for good."""
    snapshot = clone.Snapshot(root)
    snapshot.take("a test")
    try:
        snapshot.override(values)
    finally:
        snapshot.drop()


def test_the_graph_is_that_of_dvc_yaml(root):
    stages = {stage.name: stage for stage in dag.read_dag(root)}
    assert stages["second"] == dag.Stage("second", ("first",), needs_gpu=True, time_limit=90 * 60)
    order = list(stages)
    assert order.index("first") < order.index("second") < order.index("slow")
    assert dag.select(list(stages.values()), ["other"]) == {"other@a", "other@b"}
    assert [stage.name for stage in dag.needed_for(list(stages.values()), {"second"})] == ["first", "second"]
    assert dag.with_descendants(list(stages.values()), {"first"}) == {"first", "second", "slow"}
    with pytest.raises(ValueError, match="no stage 'secnd'; did you mean second"):
        dag.select(list(stages.values()), ["secnd"])


def test_a_stage_is_cached_runs_or_is_restored(root):
    assert {"first", "second"}.isdisjoint(dag.stale_stages(root))
    assert reproduce(root, "first")[0].outcome == "cached"
    override(root, {"finetune.epochs": 2})
    assert "first" in dag.stale_stages(root)
    result, lines = reproduce(root, "first")
    assert result.outcome == "ran"
    assert not [line for line in lines if "git add" in line]
    git(root, "checkout", "--quiet", "params.yaml")
    assert reproduce(root, "first")[0].outcome == "restored"


@pytest.mark.parametrize(
    ("name", "outcome", "message"),
    [
        ("broken", "failed", "broken: it is\n  broken"),
        ("offline", "outage", "offline: no answer"),
        ("slow", "timed out", "slow was ended after 0.02 minutes (meta.time_limit)"),
    ],
)
def test_a_stage_that_does_not_end_well(root, name, outcome, message):
    result, _ = reproduce(root, name)
    assert (result.outcome, result.message) == (outcome, message)


def test_a_stage_that_is_ended_from_outside(root, monkeypatch):
    monkeypatch.setattr(dag, "_is_ending", threading.Event())
    started = threading.Event()
    slow, first = dag.Stage("slow", ()), dag.Stage("first", ())
    results = []

    def run() -> None:
        results.append(dag.reproduce(slow, root, force=True, environment={}, on_line=lambda _: started.set()))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    dag.end_running()
    thread.join(10)
    results.append(dag.reproduce(first, root, force=True, environment={}, on_line=print))
    assert [result.outcome for result in results] == ["cancelled", "cancelled"]
    assert "was not started" in results[1].message


def test_a_stage_ends_where_its_output_is_not_wanted(root):
    def refuse(line: str) -> None:
        raise ConnectionError(line)

    start = time.monotonic()
    with pytest.raises(ConnectionError):
        dag.reproduce(dag.Stage("slow", ()), root, force=True, environment={}, on_line=refuse)
    assert time.monotonic() - start < 30  # it sleeps for 60


def test_a_failure_takes_everything_back(root):
    before = (root / "first.txt").read_bytes()
    with suppress(KeyError), clone.all_or_nothing(root, "me", on_failure=lambda: None) as snapshot:
        snapshot.override({"finetune.epochs": 2})
        assert reproduce(root, "first")[0].outcome == "ran"
        raise KeyError
    assert git(root, "status", "--porcelain") == ""
    assert (root / "first.txt").read_bytes() == before
    assert clone.Snapshot(root).left_by() is None


def test_a_killed_run_is_undone_by_the_next(root):
    script = f"""
        import os
        from pathlib import Path
        from pipelines import clone
        root = Path({str(root)!r})
        with clone.hold(root, "the dead", on_wait=print), clone.all_or_nothing(root, "the dead", on_failure=print) as s:
            s.override({{"finetune.epochs": 2}})
            assert not clone.is_free(root)
            os._exit(9)"""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 9
    assert clone.is_free(root)
    assert clone.Snapshot(root).left_by() == "the dead"
    assert "params.yaml" in git(root, "status", "--porcelain")
    clone.Snapshot(root).restore()
    assert git(root, "status", "--porcelain") == ""


def test_one_run_at_a_time(root):
    waited: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with clone.hold(root, "second", on_wait=waited.append):
            entered.set()

    with clone.hold(root, "first", on_wait=waited.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(1.5)
    thread.join(10)
    assert entered.is_set()
    assert waited == ["first"]


def test_parameters_keep_their_comments(root):
    before = (root / "params.yaml").read_text()
    override(root, {"finetune.epochs": 2, "evaluate.knn_k": [5], "data.source": "folder:data/raw/x"})
    after = (root / "params.yaml").read_text()
    assert yaml.safe_load(after)["evaluate"]["knn_k"] == [5]
    assert after.count("#") == before.count("#")
    expected = yaml.safe_load(after)
    expected["finetune"] |= {"epochs": 3, "batch_size": 16}
    expected["evaluate"]["knn_k"] = [1, 3]
    override(root, {"finetune": {"epochs": 3}, "evaluate": {"knn_k": [1, 3]}, "finetune.batch_size": 16})
    assert yaml.safe_load((root / "params.yaml").read_text()) == expected
    after = (root / "params.yaml").read_text()
    assert after.count("#") == before.count("#")
    message = r"^params.yaml with `params` has 1 mistake\(s\):\n  finetune.epoch: unknown key; did you mean epochs\?$"
    with pytest.raises(ValueError, match=message):
        override(root, {"finetune.epoch": 2})
    with pytest.raises(ValueError, match="got 0"):
        override(root, {"finetune.epochs": 0})
    with pytest.raises(ValueError, match=r"seed.x.y: seed is a value, expected a block"):
        override(root, {"seed": {"x": {"y": 0}}})
    assert (root / "params.yaml").read_text() == after


def test_going_back_leaves_what_is_a_persons(root):
    (root / "photos").mkdir()
    (root / "photos/old.png").write_text("old")
    dvc(root, "add", "--quiet", "photos")
    with suppress(KeyError), clone.all_or_nothing(root, "me", on_failure=lambda: None) as snapshot:
        snapshot.override({"finetune.epochs": 2})
        edited = (root / "params.yaml").read_text() + "# a remark\n"
        (root / "params.yaml").write_text(edited)
        (root / "photos/new.png").write_text("in no cache")
        raise KeyError
    assert (root / "photos/new.png").read_text() == "in no cache"
    assert (root / "params.yaml").read_text() == edited


def test_a_commit_that_is_refused_leaves_nothing_staged(root):
    hook = root / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho no >&2; exit 1\n")
    hook.chmod(0o755)
    override(root, {"finetune.epochs": 2})
    with pytest.raises(OSError, match="no"):
        clone.commit(root, "refused")
    assert git(root, "status", "--porcelain") == " M params.yaml\n"


def test_a_commit_holds_nothing_of_the_user(root):
    (root / "mine.txt").write_text("a draft")
    git(root, "add", "mine.txt")
    assert clone.commit(root, "nothing") is None
    override(root, {"finetune.epochs": 2})
    assert clone.uncommitted(root) == ["mine.txt", "params.yaml"]
    commit = clone.commit(root, "two epochs")
    assert git(root, "show", "--name-only", "--format=", commit).split() == ["params.yaml"]
    assert git(root, "status", "--porcelain").split() == ["A", "mine.txt"]


def test_a_commit_where_git_knows_no_name(root, monkeypatch):
    for name in ("user.name", "user.email"):
        git(root, "config", "--unset", name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    override(root, {"finetune.epochs": 2})
    assert clone.commit(root, "two epochs")
    assert git(root, "log", "-1", "--format=%an <%ae>") == "grpo-rm <grpo-rm@localhost>\n"


def test_what_is_pushed_can_be_pulled(root, tmp_path):
    clone.push(root)
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "upstream.git"), str(other))
    dvc(other, "remote", "add", "--quiet", "--default", "--local", "store", str(tmp_path / "store"))
    dvc(other, "pull", "--quiet", "first.txt", "second.txt")
    assert (other / "second.txt").read_bytes() == (root / "second.txt").read_bytes()

    override(root, {"data.source": "folder:data/raw"})
    with pytest.raises(FileNotFoundError, match="data/raw does not exist"):
        data_version(root)
    (other / "data/raw").mkdir(parents=True)
    (other / "data/raw/image.png").write_text("an image")
    commit_data(other)
    seen = data_version(root)  # of the upstream branch
    clone.pull(root)
    assert (root / "data/raw/image.png").read_text() == "an image"
    assert data_version(root) == seen
    (other / "data/raw/image.png").write_text("another image")
    commit_data(other)
    assert data_version(root) != seen


def commit_data(root: Path) -> None:
    dvc(root, "add", "--quiet", "data/raw")
    dvc(root, "push", "--quiet", "data/raw.dvc")
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message", "data")
    git(root, "push", "--quiet")


def test_a_folder_outside_version_control_is_told_by_its_files(root, tmp_path):
    (tmp_path / "images").mkdir()
    override(root, {"data.source": f"folder:{tmp_path / 'images'}"})
    before = data_version(root)
    assert data_version(root) == before
    (tmp_path / "images/new.png").write_bytes(b"x")
    assert data_version(root) != before


def test_an_upstream_that_is_gone(root):
    git(root, "remote", "set-url", "origin", str(root / "nowhere"))
    with pytest.raises(OSError, match="`git pull --quiet --rebase --autostash` failed"):
        clone.pull(root)
    override(root, {"data.source": "folder:data/raw/images"})
    with pytest.raises(OSError, match="`git fetch --quiet` failed"):
        data_version(root)


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_conflict_is_for_a_person_to_solve(root, tmp_path, is_committed):
    """The clone is as it was; what was not committed, too."""
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "upstream.git"), str(other))
    for clone_of_it, epochs in ((other, 3), (root, 4)):
        override(clone_of_it, {"finetune.epochs": epochs})
        if is_committed or clone_of_it == other:
            clone.commit(clone_of_it, f"{epochs} epochs")
    git(other, "push", "--quiet")
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text() + "# a remark\n")
    before = git(root, "rev-parse", "HEAD"), git(root, "diff", "HEAD"), git(root, "status", "--porcelain")
    with pytest.raises(ValueError, match=r"^params.yaml: changed here and upstream; .*`.*git pull --rebase"):
        clone.pull(root)
    assert (git(root, "rev-parse", "HEAD"), git(root, "diff", "HEAD"), git(root, "status", "--porcelain")) == before
    assert git(root, "stash", "list") == ""
