"""What a person sees of a run's reports in Prefect: tables and a link."""

import json
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from pipelines.lineage import ROOT
from pipelines.summary import NAMES

Rows = list[dict[str, Any]]
MAX_EXAMPLES = 5  # of an expectation that failed


def show_results() -> None:
    """Show metrics, gate and report, as far as there are."""
    evaluation, registration = read_report("evaluation"), read_report("registration")
    if evaluation:
        create_table_artifact(metric_rows(evaluation), key="metrics", description="The models on the test images")
        create_link_artifact((ROOT / "reports/index.html").as_uri(), link_text="reports/index.html", key="report")
    if registration:
        create_table_artifact(gate_rows(registration), key="gate", description=gate_verdict(registration))


def show_failed_validation() -> None:
    """Show the expectations that the data failed, where it did."""
    validation = read_report("validation")
    if validation and not validation["success"]:
        rows = failed_expectation_rows(validation)
        create_table_artifact(rows, key="validation", description=f"The data failed {len(rows)} expectation(s)")


def read_report(name: str) -> dict[str, Any] | None:
    """Return a report of the last run, or None where there is none."""
    path = ROOT / "reports" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def metric_rows(evaluation: dict[str, Any]) -> Rows:
    """Return a row per metric with a column per model."""
    models = evaluation["models"]
    return [
        {"metric": metric} | {NAMES[name]: models[name].get(metric) for name in NAMES} for metric in models["grpo_rm"]
    ]


def gate_verdict(registration: dict[str, Any]) -> str:
    """Return which version it is, whether the gate passed, and what that means for the champion."""
    verdict = "passed" if registration["gate"]["has_passed"] else "failed"
    return f"{registration['name']} version {registration['version']}: gate {verdict}; {registration['promotion']}"


def gate_rows(registration: dict[str, Any]) -> Rows:
    """Return a row per clause of the gate."""
    return [
        {
            "clause": clause["name"],
            "verdict": "passed" if clause["has_passed"] else "failed",
            "reason": clause["reason"],
        }
        for clause in registration["gate"]["clauses"]
    ]


def failed_expectation_rows(validation: dict[str, Any]) -> Rows:
    """Return a row per expectation that the data did not meet, critical ones first."""
    failed = [expectation for expectation in validation["expectations"] if not expectation["success"]]
    return [
        {
            "severity": expectation["severity"],
            "expectation": expectation["description"],
            "observed": expectation["observed"]
            or f"{expectation['unexpected_count']:,} of {expectation['element_count']:,} rows",
            "examples": "; ".join(
                f"{sample['id']}: {sample['value']}" for sample in expectation["samples"][:MAX_EXAMPLES]
            ),
            "fix": expectation["fix"],
        }
        for expectation in sorted(failed, key=lambda expectation: str(expectation["severity"]))
    ]
