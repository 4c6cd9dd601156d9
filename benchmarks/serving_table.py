"""The tables of docs/benchmarks.md on the server."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def result_path(result: Mapping[str, Any]) -> Path:
    """Return where the raw numbers of a machine are kept."""
    machine = result["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cores']} cores".lower()).strip("-")
    return RESULTS / f"serving-{name}.json"


def format_tables(result: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, {packages}, "
        f"commit {result['commit']}, {result['rounds']} rounds",
    ]
    for encoder, subject in result["subjects"].items():
        images = subject["images"]
        lines += [
            "",
            f"`{encoder}`, {images['kind']} of {images['kb']:.0f} KB",
            "",
            "| what | measured | goal |",
            "| --- | --- | --- |",
            *(f"| {what} | {measured} | {goal} |" for what, measured, goal in _rows(subject)),
        ]
    return "\n".join(lines)


def _rows(subject: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    start = ("start, until /readyz says yes", f"{_spread(subject['start_s'])} s", "3 s")
    shared, rivals, half = subject["shared"], subject["rivals"], subject["shared"]["half_load"]
    rows = [start, _bare_row("client on the same cores", shared)]
    if "pinned" in subject:
        rows.append(_bare_row("client on a core of its own", subject["pinned"]))
    rows += [
        (
            "one client, beyond decoding and inference",
            f"{_spread(shared['added_ms'])} ms, of {shared['one_ms']['median']:.1f} ms ({shared['lone']})",
            "2 ms",
        ),
        (
            "p99 over p50 at half load",
            f"{half['ratio']:.2f} ({half['p50']:.1f} and {half['p99']:.1f} ms, n = {half['n']}; "
            f"{shared['half_load_ratio']['min']:.2f}-{shared['half_load_ratio']['max']:.2f} in a round)",
            "at most 3",
        ),
        ("over LitServe, as its documentation does", _over("litserve_documented", rivals), "at least 1.2"),
        ("over LitServe, tuned", _over("litserve", rivals), "at least 1.2"),
        (f"over `mlflow models serve` ({rivals['mlflow_setting']})", _over("mlflow", rivals), "at least 2"),
    ]
    return rows


def _bare_row(where: str, measured: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"throughput at 32 clients over bare onnxruntime, {where}",
        f"{_spread(measured['ratio'])}: {measured['server']['median']:.0f} of {measured['bare']['median']:.0f} images/s"
        f" ({measured['way']}; the client takes {measured['client_cpu_ms']['median']:.2f} ms CPU a request)",
        "at least 0.8",
    )


def _over(name: str, rivals: Mapping[str, Any]) -> str:
    rates = f"{rivals['server']['median']:.0f} and {rivals[name]['median']:.0f} requests/s"
    return f"{_spread(rivals[f'over_{name}'])}: {rates}"


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"
