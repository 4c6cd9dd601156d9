"""The flows on a real Prefect server, run by a real worker in a clone of its own."""

import ast
import contextlib
import datetime
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from prefect_api import PrefectApi

pytestmark = [pytest.mark.pipeline, pytest.mark.service, pytest.mark.timeout(1200)]

MODEL = "models/finetune/grpo_rm/model.safetensors"


@pytest.fixture(scope="module")
def prefect(finished, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectApi]:
    """The server with the deployments of prefect.yaml; every command of the workspace uses it."""
    finished.environment |= {
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("client")),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "GRPO_RM_CLONE": str(finished.root),
        "PYTHONPATH": str(finished.root),
    }
    finished.succeed("python", "-m", "pipelines.services", "deploy")
    with contextlib.closing(PrefectApi(prefect_server)) as api:
        yield api


class Worker:
    """A worker in the workspace, with a session of its own as a service has it."""

    def __init__(self, workspace) -> None:
        self.workspace = workspace
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", "python", "-m", "pipelines.services", "worker"],
            cwd=self.workspace.root,
            env=self.workspace.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def flows(self) -> list[psutil.Process]:
        """Return the runs' processes, of a worker that has been killed as well."""
        return [process for process, command in processes_of(self.workspace.root) if "prefect.engine" in command]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill the worker and what its runs have started."""
        flows = self.flows()
        self.kill()
        for flow in flows:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(flow.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def worker(finished, prefect: PrefectApi) -> Iterator[Worker]:  # noqa: ARG001
    worker = Worker(finished)
    yield worker
    worker.end()


@pytest.fixture
def clean(workspace, prefect: PrefectApi, worker: Worker):
    """The workspace as committed; commits that a run makes are taken back, and what a failed test left running ends."""
    head = workspace.succeed("git", "rev-parse", "HEAD").strip()
    yield workspace
    if left := prefect.unfinished():
        worker.end()
        for run in left:
            prefect.give_up(run)
        worker.start()
    workspace.succeed("git", "reset", "--quiet", "--hard", head)


def processes_of(root: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the processes that run in a clone, and their commands."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.cwd() == str(root):
                yield process, " ".join(process.cmdline())


def stages_in(root: Path) -> list[str]:
    """Return the commands of the stages that run in a clone."""
    commands = [command for _, command in processes_of(root) if "pipelines." in command]
    return [command for command in commands if "pipelines.services" not in command]


def wait_until(condition: Callable[[], list], seconds: float) -> list:
    """Return what the condition returns as soon as that is not empty."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return result


def test_nothing_to_do(clean):
    started = time.monotonic()
    log = clean.run("python", "-m", "pipelines.flow.pipeline").stderr
    assert "nothing changed: 11 stages are as they were" in log
    assert log.count("Finished in state Cached") == 11
    assert time.monotonic() - started < 60  # measured: 3 s alone on 2 cores; docs/benchmarks.md


def test_cancelled_in_mid_training_then_run_again(clean, prefect: PrefectApi):
    """No process is left, the tree is as before, and the next run goes on where the training was."""
    before = clean.root.joinpath(MODEL).read_bytes()
    params = {"finetune.epochs": 12}
    run = prefect.start("pipeline/on-demand", params=params)
    prefect.wait_for_log(run, "  epoch 2/12")  # of the arm that got the GPU first
    prefect.cancel(run)
    assert prefect.wait(run)["type"] == "CANCELLED"
    assert stages_in(clean.root) == []
    assert clean.succeed("git", "status", "--porcelain") == ""
    assert clean.root.joinpath(MODEL).read_bytes() == before

    run = prefect.start("pipeline/on-demand", params=params)
    state = prefect.wait(run, seconds=600)
    assert state["type"] == "COMPLETED", (state, prefect.log(run))
    assert any("  resumes at epoch" in line for line in prefect.log(run))
    assert prefect.task_states(run) == {
        "open the MLflow run": "Completed",
        "params": "Ran",
        "prepare": "Cached",
        "extra_sets": "Cached",
        "validate": "Cached",
        "pretrain": "Cached",
        "finetune@grpo_rm": "Ran",
        "finetune@cross_entropy": "Ran",
        "evaluate": "Ran",
        "export": "Ran",
        "register": "Ran",
        "report": "Ran",
        "name the commit": "Completed",
    }
    artifacts = prefect.artifacts(run)
    assert {"metrics", "gate", "report", "mlflow-run", "finetune-grpo-rm", "finetune-cross-entropy"} <= set(artifacts)
    assert artifacts["finetune-grpo-rm"]["data"] == 100.0
    assert "accuracy" in artifacts["metrics"]["data"]
    assert "committed" in state["message"]
    assert clean.succeed("git", "status", "--porcelain") == ""
    assert "epochs: 12" in clean.succeed("git", "show", "HEAD:params.yaml")
    assert clean.succeed("git", "log", "-1", "--format=%s") == "Pipeline with finetune.epochs\n"
    assert clean.succeed("dvc", "status").strip() == "Data and pipelines are up to date."
    version = json.loads((clean.root / "reports/registration.json").read_text())
    show = (
        f"from pipelines.tracking import registry; print(registry.tags_of({version['name']!r}, {version['version']!r}))"
    )
    tags = ast.literal_eval(clean.succeed("python", "-c", show))
    assert tags["git.commit"] == clean.succeed("git", "rev-parse", "HEAD").strip()
    assert tags["git.dirty"] == "false"


def test_data_that_fails_validation(clean, prefect: PrefectApi):
    folder = clean.root / "data/raw/broken"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            Image.effect_noise((8, 8), 50).save(folder / name / f"{index}.png")
    (folder / "cat/broken.png").write_bytes(b"not an image")
    run = prefect.start("pipeline/on-demand", params={"data.source": "folder:data/raw/broken"}, target="validate")
    state = prefect.wait(run)
    assert state["type"] == "FAILED"
    assert "validate: the data failed critical expectations" in state["message"]
    assert prefect.task_states(run)["validate"] == "Failed"
    assert not any("Traceback" in line for line in prefect.log(run))
    rows = json.loads(prefect.artifacts(run)["validation"]["data"])
    assert any("cat/broken.png" in row["examples"] and row["fix"] for row in rows)
    assert clean.succeed("git", "status", "--porcelain") == ""
    assert clean.root.joinpath(MODEL).is_file()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"params": {"finetune.epoch": 3}}, "finetune.epoch: unknown key; did you mean epochs?"),
        ({"target": "finetun"}, "dvc.yaml has no stage 'finetun'; did you mean finetune"),
    ],
)
def test_a_mistake_in_the_parameters(clean, prefect: PrefectApi, parameters, message):
    run = prefect.start("pipeline/on-demand", **parameters)
    state = prefect.wait(run)
    assert state["type"] == "FAILED"
    assert message in state["message"]
    assert not any("Traceback" in line for line in prefect.log(run))
    assert clean.succeed("git", "status", "--porcelain") == ""


def test_two_triggers_at_once(clean, prefect: PrefectApi):
    runs = [
        prefect.start("pipeline/on-demand", params={"register.gate.thresholds.accuracy": least}, target="params")
        for least in (0.5, 0.6)
    ]
    states = [prefect.wait(run) for run in runs]
    assert [state["type"] for state in states] == ["COMPLETED"] * 2, states
    assert sum("waiting for flow run" in line for run in runs for line in prefect.log(run)) == 1
    assert len(clean.succeed("git", "log", "--oneline", "-2", "--grep", "Pipeline ran: params").splitlines()) == 2
    assert clean.succeed("git", "status", "--porcelain") == ""
    clean.succeed("dvc", "status", "params")


def runs_of(prefect: PrefectApi, deployment: str, state: str) -> list[dict]:
    """Return the runs that a schedule has created and that are in a state."""
    runs = prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
    return [run for run in runs if run["auto_scheduled"] and run["state"]["type"] == state]


def test_a_schedule_runs(clean, prefect: PrefectApi):  # noqa: ARG001
    nightly = prefect.deployment("pipeline/nightly")["id"]
    scheduled = wait_until(lambda: runs_of(prefect, nightly, "SCHEDULED"), 120)
    assert {datetime.datetime.fromisoformat(run["expected_start_time"]).hour for run in scheduled} == {2}

    # every 15 seconds, so as not to wait for a minute
    schedule = {"cron": "* * * * * */15", "timezone": "UTC"}
    watched = prefect.deployment("pipeline/on-demand")["id"]
    content = {"schedule": schedule, "active": True, "parameters": {"target": "params"}}
    created = prefect.post(f"/deployments/{watched}/schedules", [content])
    started = wait_until(lambda: [*runs_of(prefect, watched, "PENDING"), *runs_of(prefect, watched, "RUNNING")], 120)
    prefect.delete(f"/deployments/{watched}/schedules/{created[0]['id']}")
    runs = [prefect.wait(run["id"]) for run in started]
    assert runs[0]["message"].startswith("nothing changed")


def test_worker_and_run_killed(clean, prefect: PrefectApi, worker: Worker):
    """What a machine does that loses power: the run starts again with the worker, and completes."""
    # twelve, because a line of the log is here seconds later: with four, the training had ended once
    run = prefect.start("pipeline/on-demand", params={"pretrain.epochs": 12}, target="pretrain")
    prefect.wait_for_log(run, "pretrain  epoch 2/12")
    flows = worker.flows()
    worker.kill()
    for flow in flows:
        flow.kill()
    prefect.delete("/v2/concurrency_limits/gpu")  # its lease would hold the next run up for a minute
    assert "+  epochs: 12" in clean.succeed("git", "diff", "params.yaml")  # it had no time to go back
    worker.start()
    state = prefect.wait(run)
    assert state["type"] == "COMPLETED"
    assert any("resumes at epoch" in line for line in prefect.log(run))


def test_only_the_worker_killed(clean, prefect: PrefectApi, worker: Worker):
    run = prefect.start("pipeline/on-demand", force=["validate"], target="validate")
    prefect.wait_for_log(run, "Running stage 'validate'")
    worker.kill()
    assert prefect.wait(run)["type"] == "COMPLETED"
    worker.start()
    run = prefect.start("pipeline/on-demand", target="params")
    assert prefect.wait(run)["message"].startswith("nothing changed")
    assert clean.succeed("git", "status", "--porcelain") == ""


def test_new_data_starts_a_run(clean, prefect: PrefectApi):
    for name in ("cat", "dog"):
        (clean.root / "data/raw/pets" / name).mkdir(parents=True)
        Image.effect_noise((8, 8), 50).save(clean.root / "data/raw/pets" / name / "1.png")
    clean.set(data__source="folder:data/raw/pets")
    assert "Finished in state Completed('nothing changed')" in clean.run("python", "-m", "pipelines.flow.watch").stderr
    Image.effect_noise((8, 8), 50).save(clean.root / "data/raw/pets/cat/2.png")
    seen = prefect.wait(prefect.start("watch/watch"))["message"]
    assert seen == "grpo-rm.data.changed grpo-rm.data.folder-data-raw-pets"
    deployment = prefect.deployment("pipeline/on-data-change")["id"]
    (run,) = wait_until(
        lambda: prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}}), seconds=120
    )
    assert run["parameters"] == {"force": ["prepare"], "pull": True, "push": True}
    message = prefect.wait(run["id"])["message"]
    assert "'cat' has 2, 'dog' has 1; expected at least 3" in message  # too few to train on, which is another matter


def test_promotion_by_a_flow(clean, prefect: PrefectApi):
    runs = [prefect.start("promote/promote", **parameters) for parameters in ({}, {"version": "1"}, {"version": 99})]
    already, first, unknown = (prefect.wait(run) for run in runs)
    assert (already["type"], first["type"], unknown["type"]) == ("COMPLETED", "COMPLETED", "FAILED")
    assert "already is the champion" in already["message"]
    assert "has no version 99" in unknown["message"]
    assert clean.succeed("git", "status", "--porcelain") == ""
