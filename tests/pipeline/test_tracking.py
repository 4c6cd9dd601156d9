"""Runs in a real local store: journals, resume, parents, and a repository that moves."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from grpo_rm.config import Tracking
from pipelines.tracking import recording
from pipelines.tracking.journal import lock_journal, open_journal, pending_journals
from pipelines.tracking.runs import end_parent_run, open_parent_run, run_url, start_run
from pipelines.tracking.store import reason, use_tracking_store
from pipelines.tracking.upload import upload_pending

pytestmark = pytest.mark.pipeline

TRACKING = Tracking(experiment="grpo-rm", system_metrics_interval=60)


@pytest.fixture
def client(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A client of a copy of the workspace's store, which stands elsewhere; the data are the workspace's."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(finished.root / "mlruns/mlflow.db", tmp_path / "mlruns")
    monkeypatch.setattr("pipelines.lineage.ROOT", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(finished.root)
    return use_tracking_store()


@contextmanager
def outage(root: Path) -> Iterator[None]:
    """The store refuses everything about runs meanwhile: their table has another name."""
    with closing(sqlite3.connect(root / "mlruns/mlflow.db", isolation_level=None)) as connection:
        connection.execute("pragma legacy_alter_table = on")  # leave the references of other tables alone
        connection.execute("alter table runs rename to gone")
        yield
        connection.execute("alter table gone rename to runs")


def history(client, run_id: str) -> Counter[tuple[str, int]]:
    """Return how often the store has each (metric, step), without those of the system."""
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
    return Counter((key, point.step) for key in keys for point in client.get_metric_history(run_id, key))


def start(stage: str = "pretrain", resume: str | None = None):
    return start_run(stage, TRACKING, {"pretrain": {"epochs": 3}}, context="training", resume=resume)


def test_an_outage_that_ends_loses_nothing(client, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.1)
    with start() as run:
        run.log_metrics(1, {"loss": 1.0})
        with outage(tmp_path):
            run.log_metrics(2, {"loss": float("nan")})
            run.set_tags({"model.sha256": "abc"})
            wait_until(lambda: "warning: tracking failed" in capsys.readouterr().err)
        wait_until(lambda: "answers again" in capsys.readouterr().err)
    assert history(client, run.run_id) == Counter([("loss", 1), ("loss", 2)])
    assert client.get_run(run.run_id).data.tags["model.sha256"] == "abc"
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not pending_journals()
    assert capsys.readouterr().err == ""


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_was_not_sent_is_sent_by_the_next_contact_once(client, tmp_path, capsys):
    report = tmp_path / "report.txt"
    report.write_text("as it was")
    stack = ExitStack()
    with start() as run:
        run.log_metrics(1, {"loss": 1.0, "accuracy": float("inf")})
        run.log_artifacts(report, folder="reports")
        stack.enter_context(outage(tmp_path))
    stack.close()
    assert "the next stage that reaches mlruns/mlflow.db sends the rest" in capsys.readouterr().err
    report.write_text("changed")
    (path,) = pending_journals()
    shutil.copytree(path.parent, tmp_path / "before")

    for _ in range(2):  # the second time as if the first had been killed when it had sent all and written nothing
        upload_pending()
        assert not list(path.parent.iterdir())
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert history(client, run.run_id) == Counter([("loss", 1), ("accuracy", 1)])
        recorded = client.download_artifacts(run.run_id, "reports/report.txt", str(tmp_path))
        assert Path(recorded).read_text() == "as it was"
        shutil.copytree(tmp_path / "before", path.parent, dirs_exist_ok=True)


DIES = """
import os, signal, sys
from pipelines.tracking.runs import start_run
from pipelines.tracking import recording
from grpo_rm.config import Tracking
recording.SEND_SECONDS = 0.2
tracking = Tracking(experiment="grpo-rm", system_metrics_interval=60)
with start_run("pretrain", tracking, {"pretrain": {"epochs": 3}}, context="training") as run:
    for step in range(1, 6):
        run.log_metrics(step, {"loss": 1 / step})
        if step == 3:
            while not run._journal._sent:
                pass
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("is_completed_first", [False, True])
def test_a_killed_training_goes_on_in_the_same_run(client, tmp_path, is_completed_first, killed):
    run_id, store = killed
    shutil.copytree(store, tmp_path / "mlruns", dirs_exist_ok=True)
    assert client.get_run(run_id).info.status == "RUNNING"
    if is_completed_first:
        upload_pending()
        assert client.get_run(run_id).info.status == "KILLED"
        assert history(client, run_id) == Counter(("loss", step) for step in range(1, 6))
        assert not pending_journals()
    with start(resume=run_id) as run:
        assert run.run_id == run_id
        upload_pending()  # by another stage: the run is alive
        assert client.get_run(run_id).info.status == "RUNNING"
        for step in range(4, 9):  # from the last saved state on
            run.log_metrics(step, {"loss": 1 / step})
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(client, run_id) == Counter(("loss", step) for step in range(1, 9))
    assert client.get_run(run_id).data.params == {"pretrain.epochs": "3"}


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The id of a run whose process was killed when it had sent a part, and the mlruns/ it left."""
    done = finished.run(sys.executable, "-c", DIES)
    assert done.returncode == -signal.SIGKILL, done.stderr
    mlruns = tmp_path_factory.mktemp("killed") / "mlruns"
    shutil.copytree(finished.root / "mlruns", mlruns)
    shutil.rmtree(finished.root / "mlruns/pending")
    return done.stdout.strip(), mlruns


def test_a_run_that_is_gone_is_dropped_with_one_warning(client, capsys):
    for run_id in ("0" * 32, client.create_run("0").info.run_id):
        with open_journal(run_id) as journal:
            journal.begin("mlruns/mlflow.db", "pretrain")
            journal.add_metrics(1, {"loss": 1.0})
    client.delete_run(run_id)
    with start(resume="0" * 32) as run:  # and it can be resumed as a new run only
        assert run.run_id != "0" * 32
    assert capsys.readouterr().err.count("what it had not sent is dropped") == 2
    upload_pending()
    assert capsys.readouterr().err == ""
    assert not pending_journals()


@pytest.mark.usefixtures("client")
def test_a_journal_of_another_store_waits_for_it():
    with open_journal("1" * 32) as journal:
        journal.begin("http://127.0.0.1:1", "pretrain")
    upload_pending()
    assert [path.stem for path in pending_journals()] == ["1" * 32]


@pytest.mark.usefixtures("client")
def test_a_line_cut_off_by_a_crash_loses_no_other():
    with open_journal("2" * 32) as journal:
        journal.begin("http://127.0.0.1:1", "pretrain")
    with journal.path.open("a") as file:
        file.write('{"step":1,"ti')
    with lock_journal(journal.path) as journal:
        journal.add_metrics(2, {"loss": 0.5})
        assert [point[3] for point in journal.unsent(10).points] == [2]
        assert lock_journal(journal.path) is None


class InterruptionError(Exception):
    is_interruption = True


@pytest.mark.parametrize(
    ("error", "status"), [(InterruptionError, "KILLED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_how_a_run_ends(client, error, status):
    with pytest.raises(error), start() as run:
        raise error
    assert client.get_run(run.run_id).info.status == status


def test_stages_are_children_of_the_parent_run(client, monkeypatch, tmp_path, capsys):
    parent = open_parent_run("pipeline", TRACKING, {"flow.run": "x"}, {"target": "register"})
    assert client.get_run(parent).info.status == "RUNNING"
    monkeypatch.setenv("GRPO_RM_PARENT_RUN_ID", parent)
    with start() as run:
        pass
    assert client.get_run(parent).info.status == "RUNNING"
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent
    assert run_url(parent).startswith("http://127.0.0.1:5000/#/experiments/")  # where `make ui` shows it
    with outage(tmp_path):
        end_parent_run(parent, "FAILED")
    assert "is not in MLflow yet" in capsys.readouterr().err
    upload_pending()
    assert client.get_run(parent).info.status == "FAILED"


def test_the_reason_is_one_line():
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("all of it") from ConnectionError("refused\nby whom")
    assert reason(caught.value) == "refused"


AFTER_MOVE = """
import warnings
from pathlib import Path
warnings.simplefilter("ignore")
import mlflow
from pipelines.tracking.registry import downloaded
from pipelines.tracking.runs import find_run, start_run, use_tracking_store
from grpo_rm.config import Tracking
client = use_tracking_store()
mlflow.pyfunc.load_model("models:/grpo-rm-digits@challenger")
(run,) = client.search_runs(["1"], "attributes.run_name = 'evaluate'", max_results=1)
with start_run("again", Tracking(experiment="grpo-rm", system_metrics_interval=60), {}, context="evaluation") as new:
    new.log_artifacts(Path("params.yaml"))
client.download_artifacts(run.info.run_id, "evaluation.json")
client.download_artifacts(new.run_id, "params.yaml")
with downloaded("grpo-rm-digits", "1") as directory:
    print((directory / "model.onnx").is_file())
"""


def test_the_store_survives_that_the_repository_moves(finished, tmp_path):
    root = tmp_path / "moved to"
    for name in ("grpo_rm", "pipelines", "mlruns", "data/prepared"):
        shutil.copytree(finished.root / name, root / name)
    shutil.copy(finished.root / "params.yaml", root)
    away = finished.root / "mlruns.away"
    (finished.root / "mlruns").rename(away)
    try:
        done = run_in(root, "-m", "pipelines.tracking.store")  # what `make ui` calls
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        done = run_in(root, "-c", AFTER_MOVE)
    finally:
        away.rename(finished.root / "mlruns")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        assert not [line for line in connection.iterdump() if str(finished.root / "mlruns") in line]


def run_in(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
