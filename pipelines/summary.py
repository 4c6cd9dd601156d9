"""The short table at the end of `make pipeline`."""

import json
from pathlib import Path
from typing import Any

from pipelines.stage import run_stage
from pipelines.tracking import aliases, registry
from pipelines.tracking.runs import LOCAL_UI, check_tracking, has_store, store_name

NAMES = {"pretrain": "pretrained", "cross_entropy": "cross-entropy", "grpo_rm": "GRPO-RM"}
# of each task those that it has; the arms are compared by the first
SHARES = ("accuracy", "f1_macro", "miou", "pixel_accuracy", "boundary_f1")
OTHERS = ("nll", "ece", "ece_calibrated", "linear_probe_top1")


def main() -> None:
    """Print the three models side by side, the gate's verdict, the version, and what to open next."""
    validation, evaluation, registration = read("validation"), read("evaluation"), read("registration")
    print(*describe_data(validation), sep="\n")
    print(summarize(evaluation, registration))
    print(look_up(registration), "", *where_to_look(registration["name"]), sep="\n")


def read(name: str) -> dict[str, Any]:
    """Read a report of the last run."""
    path = Path("reports") / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `make pipeline` (or `dvc checkout`) first")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def describe_data(validation: dict[str, Any]) -> list[str]:
    """Return what the data were warned of: where a stage comes out of DVC's cache, it printed nothing."""
    failed = [expectation for expectation in validation["expectations"] if not expectation["success"]]
    if not failed:
        return []
    count = len(validation["expectations"])
    title = f"data: {len(failed)} of {count} expectations failed, see reports/data_docs/index.html"
    return ["", title, *(f"  {expectation['severity']}: not {expectation['description']}" for expectation in failed)]


def summarize(evaluation: dict[str, Any], registration: dict[str, Any]) -> str:
    """Return the table, the comparison of the arms and the gate's verdict as text."""
    models, gate = evaluation["models"], registration["gate"]
    knn = [metric for metric in models["grpo_rm"] if metric.startswith("knn_")][-1:]
    metrics = [metric for metric in (*SHARES, *knn, *OTHERS) if metric in models["grpo_rm"]]
    width = max(len(name) for name in metrics)
    lines = ["", " " * width + "".join(f"{NAMES[name]:>15}" for name in NAMES) + "   (test images)"]
    for metric in metrics:
        lines.append(f"{metric:<{width}}" + "".join(f"{models[name][metric]:>15.4f}" for name in NAMES))
    lines += [
        "",
        compare(evaluation, registration["comparison"]["control"], metrics[0]),
        f"gate: {'passed' if gate['has_passed'] else 'FAILED'}",
        *(f"  {'passed' if c['has_passed'] else 'FAILED'}  {c['reason']}" for c in gate["clauses"]),
    ]
    return "\n".join(lines)


def compare(evaluation: dict[str, Any], declared: dict[str, Any], metric: str) -> str:
    """Return how the arms differ by a metric, which is a share, in the words of the report.

    Args:
        evaluation: The content of evaluation.json.
        declared: What the gate compares, by metric: corrected over these.
        metric: Which one.
    """
    difference = (evaluation["comparison"] | declared)[metric]
    mcnemar = evaluation["comparison"].get("mcnemar")
    spread = evaluation.get("seed_spread", {}).get(metric)
    seeds = f" and {spread['num_seeds']} seeds" if spread else ""
    low, high = 100 * difference["low"], 100 * difference["high"]
    if difference["p_corrected"] > 1 - difference["confidence"]:  # as `comparison.shown`, which would load torch
        low, high = min(low, 0.0), max(high, 0.0)
    right = (
        f"; only GRPO-RM is right on {mcnemar['only_candidate_right']}, only cross-entropy on "
        f"{mcnemar['only_control_right']}"
        if mcnemar
        else ""
    )
    return (
        f"{metric}, GRPO-RM minus cross-entropy: {100 * difference['difference']:+z.2f} points "
        f"({low:+z.2f} to {high:+z.2f}, {difference['confidence']:.0%} interval "
        f"over {difference['num_samples']:,} images{seeds}){right}"
    )


def look_up(registration: dict[str, Any]) -> str:
    """Return what the registry says of the version now: a person may have moved an alias since it was registered."""
    check_tracking()
    name = registration["name"]
    hashes = registration["onnx_sha256"], registration.get("int8_sha256")
    version = registry.find_version(name, *hashes) if has_store() else None
    if version is None:
        return (
            f"registered: {name} is not in {store_name()} with this model; "
            "`dvc repro --force --single-item register` registers it there"
        )
    present = aliases.aliases_of(name, version)
    line = f"registered: {name} version {version} ({', '.join(present) or 'no alias'})"
    return f"{line}; {registration['promotion']}" if present == registration["aliases"] else line


def where_to_look(name: str) -> list[str]:
    """Return the addresses of the report and of the MLflow UI."""
    store = store_name()
    is_server = store.startswith(("http://", "https://"))
    ui, how = (store.rstrip("/"), "") if is_server else (LOCAL_UI, "make ui, then ")
    return [
        f"report:     {(Path('reports') / 'index.html').absolute().as_uri()}",
        f"runs:       {how}{ui}/#/experiments",
        f"model:      {how}{ui}/#/models/{name}",
    ]


if __name__ == "__main__":
    run_stage(main)
