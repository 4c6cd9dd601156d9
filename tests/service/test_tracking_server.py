"""Training against MLflow on PostgreSQL and S3: neither a lost server nor a killed training loses what was recorded."""

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from servers import Server

from grpo_rm.config import Tracking

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.service,
]

TRACKING = Tracking(experiment="grpo-rm", system_metrics_interval=60)
STEPS = 16  # of an epoch


@pytest.fixture
def in_workspace(workspace, team_mlflow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process records like a stage of the workspace: on the team's server."""
    monkeypatch.setattr("pipelines.lineage.ROOT", workspace.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team_mlflow.uri)


def train_until(workspace, server: Server, line: str) -> subprocess.Popen[str]:
    """Start the stage finetune@grpo_rm, and return it when it has printed a line that contains this one."""
    training = subprocess.Popen(
        ["python", "-m", "pipelines.finetune", "grpo_rm"],
        cwd=workspace.root,
        env=workspace.environment | {"MLFLOW_TRACKING_URI": server.uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert training.stdout is not None
    assert any(line in printed for printed in iter(training.stdout.readline, "")), training.communicate()
    return training


def newest_run():
    from pipelines.tracking.store import open_experiment, use_tracking_store

    return use_tracking_store().search_runs([open_experiment("grpo-rm")], max_results=1)[0]


def history(run_id: str) -> Counter[tuple[str, int]]:
    """Return how often the server has each (metric, step)."""
    from pipelines.tracking.store import use_tracking_store

    client = use_tracking_store()
    keys = client.get_run(run_id).data.metrics
    return Counter((key, point.step) for key in keys for point in client.get_metric_history(run_id, key))


@pytest.mark.usefixtures("in_workspace")
def test_a_server_lost_in_mid_training_gets_everything_on_the_next_contact(workspace, team_mlflow, capsys, tmp_path):
    from pipelines.tracking.runs import upload_pending
    from pipelines.tracking.store import use_tracking_store

    workspace.set(finetune__epochs=4)
    training = train_until(workspace, team_mlflow, "epoch 1/4")
    team_mlflow.end(signal.SIGKILL)
    output, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    assert "best epoch" in output
    assert errors.count("warning: tracking failed, the stage goes on") == 1
    assert "the next stage that reaches" in errors
    assert "Traceback" not in errors
    weights = (workspace.root / "models/finetune/grpo_rm/model.safetensors").read_bytes()
    workspace.restore()  # the outputs change before the next contact

    team_mlflow.start()
    run = newest_run()
    assert run.info.status == "RUNNING"
    upload_pending()
    assert "is complete now" in capsys.readouterr().err
    run = use_tracking_store().get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.tags["model.sha256"]) == 64
    points = history(run.info.run_id)
    assert set(points.values()) == {1}
    assert {step for key, step in points if key == "train_loss"} == set(range(1, 4 * STEPS + 1))
    assert {step for key, step in points if key == "val_accuracy"} == {STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS}
    assert any(key.startswith("system/") for key, _ in points)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    recorded = use_tracking_store().download_artifacts(run.info.run_id, "model/model.safetensors", str(tmp_path))
    assert Path(recorded).read_bytes() == weights
    assert not list((workspace.root / "mlruns/pending").iterdir())


@pytest.mark.usefixtures("in_workspace")
def test_a_killed_training_is_completed_and_ended_by_the_next_contact(workspace, team_mlflow):
    from pipelines.tracking.journal import lock_journal, pending_journals
    from pipelines.tracking.runs import upload_pending
    from pipelines.tracking.store import use_tracking_store

    training = train_until(workspace, team_mlflow, "epoch 1/3")
    upload_pending()  # another stage leaves a living training alone
    (path,) = pending_journals()
    assert newest_run().info.status == "RUNNING"
    os.kill(training.pid, signal.SIGKILL)
    training.communicate()
    with lock_journal(path) as journal:
        recorded = {(key, event["step"]) for _, event in journal._events(0) for key in event.get("metrics", {})}
    assert ("train_loss", STEPS) in recorded
    journal_as_left = path.read_bytes()
    for _ in range(2):  # the second time as if the first had been killed when it had sent all and written nothing
        upload_pending()
        run = use_tracking_store().get_run(path.stem)
        assert run.info.status == "KILLED"
        assert run.info.end_time < run.info.start_time + 1000 * 120
        assert history(path.stem) == Counter(recorded)
        assert not pending_journals()
        path.write_bytes(journal_as_left)
    path.unlink()


@pytest.mark.usefixtures("in_workspace")
def test_a_server_that_hangs_holds_up_no_step(workspace, team_mlflow, monkeypatch):
    from pipelines.tracking import recording
    from pipelines.tracking.runs import start_run, upload_pending

    monkeypatch.chdir(workspace.root)
    monkeypatch.setattr(recording, "SEND_SECONDS", 0.01)
    with start_run("pretrain", TRACKING, {}, context="training") as run:
        os.killpg(team_mlflow.process.pid, signal.SIGSTOP)
        start = time.monotonic()
        for step in range(1, 101):
            run.log_metrics(step, {"loss": 1 / step})
            time.sleep(0.001)  # so that some are sent, and hang
        duration = time.monotonic() - start
        os.killpg(team_mlflow.process.pid, signal.SIGCONT)
    assert duration < 9  # a request is given up after 10 s
    upload_pending()  # what a busy server did not take at the end
    points = {point: count for point, count in history(run.run_id).items() if point[0] == "loss"}
    assert points == {("loss", step): 1 for step in range(1, 101)}


@pytest.mark.usefixtures("in_workspace")
def test_parent_runs_lead_to_the_ui(team_mlflow):
    from urllib.request import urlopen

    from pipelines.tracking.runs import end_parent_run, open_parent_run, run_url
    from pipelines.tracking.store import use_tracking_store

    run_id = open_parent_run(
        "pipeline", Tracking(experiment="grpo-rm", system_metrics_interval=2), {"flow.run": "x"}, {"target": "register"}
    )
    url = run_url(run_id)
    assert url is not None and url.startswith(f"{team_mlflow.uri}/#/experiments/")
    with urlopen(url, timeout=10) as page:
        assert b"<title>MLflow" in page.read()
    end_parent_run(run_id, "FINISHED")
    run = use_tracking_store().get_run(run_id)
    assert (run.info.status, run.data.tags["flow.run"], run.data.params["target"]) == ("FINISHED", "x", "register")
