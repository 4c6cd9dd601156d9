"""The servers and the worker on one machine: `python -m pipelines.services ui|schedule|deploy|worker`.

A server that MLFLOW_TRACKING_URI or PREFECT_API_URL names is used, and none is started in its place.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pipelines.lineage import ROOT
from pipelines.processes import bound_to_us
from pipelines.stage import run_stage
from pipelines.tracking.store import mlruns, relocate_local_store

HOST = "127.0.0.1"
POOL = "grpo-rm"
HOME = ROOT / ".prefect"  # logs, and Prefect's database
# kept in memory, the default, the slot of a run would never be free again after the server has been restarted
LEASES_ON_DISK = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
WORKER_LOCK = ".dvc/tmp/worker.lock"  # beside that of a run
START_SECONDS = 120.0  # a first start creates its database
STOP_SECONDS = 90.0  # a worker lets a training write its checkpoint


@dataclass(frozen=True)
class Service:
    """A process to keep running.

    Attributes:
        name: For a person.
        command: What to run.
        url: What to open; None for a process without a page.
        health: Answers 200 when it is ready; None where nothing says so.
        environment: Added to ours.
    """

    name: str
    command: Sequence[str]
    url: str | None = None
    health: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def mlflow_server(port: int) -> Service:
    """MLflow on the store of this repository."""
    store = mlruns()
    relocate_local_store()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}"]
    command += ["--default-artifact-root", (store / "artifacts").as_uri()]
    url = f"http://{HOST}:{port}"
    # without jobs it starts in half the time and needs 2 GB less
    return Service("MLflow", command, url, f"{url}/health", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})


def prefect_server(port: int) -> Service:
    """Prefect with its database in PREFECT_HOME."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    url = f"http://{HOST}:{port}"
    return Service("Prefect", command, url, f"{url}/api/health", LEASES_ON_DISK)


def worker() -> Service:
    """A worker that runs flows in this clone."""
    return Service("worker", [sys.executable, "-m", "pipelines.services", "worker"])


def set_prefect_defaults(port: int) -> None:
    """Name the server and the home of Prefect where the environment does not."""
    os.environ.setdefault("PREFECT_API_URL", f"http://{HOST}:{port}/api")
    os.environ.setdefault("PREFECT_HOME", str(HOME))
    os.environ.setdefault("GRPO_RM_CLONE", str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def deploy() -> None:
    """Create the work pool, the concurrency limit `gpu` and the deployments of prefect.yaml, or update them.

    Raises:
        ConnectionError: Prefect refuses.
    """
    for command in (("work-pool", "create", POOL, "--type", "process"), ("gcl", "create", "gpu", "--limit", "1")):
        try:
            _prefect(*command)
        except ConnectionError as error:
            if "already exists" not in " ".join(str(error).split()):  # it is wrapped
                raise
    _prefect("deploy", "--all")


def _prefect(*arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConnectionError(f"`prefect {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def running(services: Sequence[Service]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start services one after the other, each ready before the next; end them in the opposite order.

    Raises:
        OSError: One does not start.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for service in services:
            if service.health and _answers(service.health):
                _check_ours(service)
                print(f"{service.name}: {service.url} (runs already)", flush=True)
                continue
            processes.append(_start(service))
            print(f"{service.name}: {service.url or 'started'}", flush=True)
        yield processes
    finally:
        for process in reversed(processes):
            _stop(process)


def _check_ours(service: Service) -> None:
    """Refuse a server that answers at our port but was not started here: it may belong to another clone.

    Raises:
        ValueError: It was not started here.
    """
    note = _note(service)
    pid = note.read_text(encoding="utf-8") if note.is_file() else ""
    if not pid or not Path(f"/proc/{pid}").exists():
        variable = f"{service.name.upper()}_PORT"
        raise ValueError(
            f"{service.url} answers already, but was not started in {ROOT}: choose another port ({variable}=...), or "
            "name the server to use in PREFECT_API_URL or MLFLOW_TRACKING_URI"
        )


def _note(service: Service) -> Path:
    """Return the file that holds the process id of a service that was started here."""
    return HOME / f"{service.name.lower()}.pid"


def _start(service: Service) -> subprocess.Popen[bytes]:
    log = HOME / f"{service.name.lower()}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        output = None if service.name == "worker" else file  # the worker's log is what a person wants to see
        process = subprocess.Popen(
            bound_to_us(service.command),
            cwd=ROOT,
            env=os.environ | service.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches us alone: we end them in order
        )
    _note(service).write_text(str(process.pid), encoding="utf-8")
    deadline = time.monotonic() + START_SECONDS
    while service.health and not _answers(service.health):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise OSError(f"{service.name} does not start at {service.url}: {' / '.join(last)}. The whole log: {log}")
        time.sleep(0.2)
    return process


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until_stopped(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for Ctrl-C, SIGTERM, or the end of a process.

    Raises:
        OSError: One has ended by itself.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it otherwise
    with contextlib.suppress(KeyboardInterrupt):
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        ended = next(process for process in processes if process.poll() is not None)
        raise OSError(
            f"`{subprocess.list2cmdline(cast(list[str], ended.args))}` ended with exit code {ended.returncode}"
        )


def main() -> None:
    """Start what the command line names, until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.services", description=__doc__)
    parser.add_argument("what", choices=["ui", "schedule", "deploy", "worker"])
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    arguments, others = parser.parse_known_args()
    if others and arguments.what != "worker":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    has_prefect = "PREFECT_API_URL" in os.environ
    set_prefect_defaults(arguments.prefect_port)
    prefect = [] if has_prefect else [prefect_server(arguments.prefect_port)]
    if arguments.what == "worker":
        start_worker(others)
    elif arguments.what == "deploy":
        deploy()
    elif arguments.what == "ui":
        mlflow = [] if "MLFLOW_TRACKING_URI" in os.environ else [mlflow_server(arguments.mlflow_port)]
        with running([*mlflow, *prefect]) as processes:
            until_stopped(processes)
    else:
        with running(prefect) as servers:
            deploy()
            with running([worker()]) as workers:
                until_stopped([*servers, *workers])
            put_back()


def start_worker(options: Sequence[str]) -> None:
    """Start a dead run of this clone again, and become Prefect's worker, with more options of it.

    Raises:
        ValueError: The clone has a worker.
    """
    from pipelines.flow.recovery import restart_dead_run

    claim(ROOT / WORKER_LOCK)
    restart_dead_run()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", *options]
    os.execv(sys.executable, command)


def put_back() -> None:
    """Put the clone back where the end of the worker has cut a run off; the next worker starts that run again."""
    from pipelines.clone import Snapshot

    if Snapshot(ROOT).left_by():
        from pipelines.flow.recovery import restart_dead_run

        restart_dead_run()


def claim(path: Path) -> None:
    """Lock a file for this process and what it becomes, but not for those it starts, until it ends, killed or not.

    Raises:
        ValueError: A worker has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = path.read_text(encoding="utf-8") or "unknown"
        raise ValueError(f"{ROOT} has a worker already, process {pid}: let it work, or end it first") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    os.set_inheritable(descriptor, True)  # the worker keeps it; Python closes it in the processes of flow runs


if __name__ == "__main__":
    run_stage(main)
