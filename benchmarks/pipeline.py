"""What a user waits for: installation, `make pipeline` from nothing, nothing changed (DVC, Prefect), each stage.

Works in a fresh clone of the last commit, in a temporary folder. Writes benchmarks/results/pipeline-<machine>.json
and prints the table of docs/benchmarks.md.
"""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.stage_time import WORK

ROOT = Path(__file__).parents[1]
NO_OP_REPEATS, STAGE_REPEATS = 7, 3


def main() -> None:
    """Measure everything, write the result, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "grpo-rm")
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['machine']['cpu']} {result['machine']['cores']} cores".lower())
    path = ROOT / "benchmarks/results" / f"pipeline-{name.strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_table(result))


def measure(clone: Path) -> dict[str, Any]:
    """Return all measurements, made in `clone`, which is created."""
    run("git", "clone", "--quiet", f"file://{ROOT}", str(clone), cwd=ROOT)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": run("git", "rev-parse", "--short", "HEAD", cwd=clone).strip(),
        "clone_mb": round(sum(path.stat().st_size for path in clone.rglob("*") if path.is_file()) / 1e6, 2),
        "install_s": clock("make", "setup", cwd=clone),
        "pipeline_s": clock("make", "pipeline", cwd=clone),
    }
    dvc = str(clone / ".venv/bin/dvc")
    result["nothing_changed_s"] = spread([clock(dvc, "repro", cwd=clone) for _ in range(NO_OP_REPEATS)])
    result["flow_nothing_changed_s"] = measure_flow(clone)
    result["stages"] = {stage: measure_stage(stage, clone) for stage in WORK}
    evaluation = json.loads((clone / "reports/evaluation.json").read_text(encoding="utf-8"))
    result["test_accuracy"] = {name: metrics["accuracy"] for name, metrics in evaluation["models"].items()}
    return result


def measure_flow(clone: Path) -> dict[str, float]:
    """Return how long the Prefect flow takes when nothing changed, with a server that runs, in seconds."""
    python = str(clone / ".venv/bin/python")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(clone / ".prefect")}
    command = [python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health")
        flow = [python, "-m", "pipelines.flow.pipeline"]
        run(*flow, cwd=clone)  # registers the flow
        return spread([clock(*flow, cwd=clone) for _ in range(NO_OP_REPEATS)])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(url)


def measure_stage(stage: str, clone: Path) -> dict[str, dict[str, float]]:
    """Return the stage's wall time, and what of it is not its own work (imports included), in seconds."""
    walls, overheads = [], []
    for _ in range(STAGE_REPEATS):
        start = time.perf_counter()
        output = run(str(clone / ".venv/bin/python"), "-m", "benchmarks.stage_time", stage, cwd=clone)
        walls.append(time.perf_counter() - start)
        overheads.append(walls[-1] - float(output.split()[-1]))
    return {"wall_s": spread(walls), "overhead_s": spread(overheads)}


def run(*command: str, cwd: Path) -> str:
    """Return what the command printed; it has to succeed."""
    hidden = {"PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    paths = [path for path in environment["PATH"].split(":") if path != str(ROOT / ".venv/bin")]
    environment["PATH"] = ":".join([str(cwd / ".venv/bin"), *paths])
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def clock(*command: str, cwd: Path) -> float:
    """Return how many seconds the command takes."""
    start = time.perf_counter()
    run(*command, cwd=cwd)
    return round(time.perf_counter() - start, 2)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, system and Python."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def format_table(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    machine = result["machine"]
    nothing, flow = result["nothing_changed_s"], result["flow_nothing_changed_s"]
    rows = [
        ("installation, warm package cache", f"{result['install_s']:.0f} s", "60 s"),
        ("`make pipeline` from nothing, installed", f"{result['pipeline_s']:.0f} s", "150 s"),
        ("`dvc repro`, nothing changed", f"{nothing['median']} s ({nothing['min']}-{nothing['max']})", "1.5 s"),
        (
            "the Prefect flow, nothing changed, server running",
            f"{flow['median']} s ({flow['min']}-{flow['max']})",
            "6 s",
        ),
        ("a clone", f"{result['clone_mb']} MB", "5 MB"),
        ("GRPO-RM digits test accuracy", f"{result['test_accuracy']['grpo_rm']:.4f}", "at least 0.97"),
        *(
            (
                f"`{stage}` outside its own work",
                f"{times['overhead_s']['median']} s ({times['overhead_s']['min']}-{times['overhead_s']['max']}), "
                f"of {times['wall_s']['median']} s",
                "8 s",
            )
            for stage, times in result["stages"].items()
        ),
    ]
    head = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"commit {result['commit']}",
        "",
        "| what | measured | goal |",
        "| --- | --- | --- |",
    ]
    return "\n".join(head + [f"| {what} | {measured} | {goal} |" for what, measured, goal in rows])


if __name__ == "__main__":
    main()
