"""The short table at the end of `make pipeline`."""

import json
from pathlib import Path
from typing import Any

from pipelines.stage import run_stage

NAMES = {"pretrain": "pretrained", "cross_entropy": "cross-entropy", "grpo_rm": "GRPO-RM"}
SHOWN = ("accuracy", "f1_macro", "nll", "ece", "ece_calibrated", "linear_probe_top1")


def main() -> None:
    """Print the three models side by side, the gate's verdict, the version, and what to open next."""
    print(summarize(read("evaluation"), read("registration")))


def read(name: str) -> dict[str, Any]:
    """Read a report of the last run."""
    path = Path("reports") / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `make pipeline` (or `dvc checkout`) first")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def summarize(evaluation: dict[str, Any], registration: dict[str, Any]) -> str:
    """Return the table and what follows it as text."""
    models = evaluation["models"]
    knn = [metric for metric in models["grpo_rm"] if metric.startswith("knn_")][-1:]
    metrics = [*SHOWN[:2], *knn, *SHOWN[2:]]
    width = max(len(name) for name in metrics)
    lines = ["", " " * width + "".join(f"{NAMES[name]:>15}" for name in NAMES) + "   (test images)"]
    for metric in metrics:
        lines.append(f"{metric:<{width}}" + "".join(f"{models[name][metric]:>15.4f}" for name in NAMES))
    gate, difference = registration["gate"], evaluation["comparison"]["accuracy"]
    lines += [
        "",
        f"accuracy, GRPO-RM minus cross-entropy: {100 * difference['difference']:+.2f} points "
        f"({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}, "
        f"{difference['confidence']:.0%} interval over {difference['num_samples']:,} images)",
        f"gate: {'passed' if gate['has_passed'] else 'FAILED'}",
        *(f"  {'passed' if c['has_passed'] else 'FAILED'}  {c['reason']}" for c in gate["clauses"]),
        f"registered: {registration['name']} version {registration['version']}"
        f" ({', '.join(registration['aliases']) or 'no alias'}); {registration['promotion']}",
        "",
        f"report:  {(Path('reports') / 'index.html').absolute().as_uri()}",
        "runs:    make ui, then http://127.0.0.1:5000/#/experiments",
        f"model:   make ui, then http://127.0.0.1:5000/#/models/{registration['name']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
