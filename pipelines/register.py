"""Stage register: gate, version, aliases.

`challenger` always points to the newest candidate. `champion` is set by this stage only where there is none, or with
`register.promote: auto`; otherwise it is a person's, in the MLflow UI.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import load_config
from pipelines.lineage import data_hash, dvc_hash, git_tags, sha256
from pipelines.stage import run_stage
from pipelines.tracking import registry
from pipelines.tracking.runs import check_tracking, reason, upload_pending

if TYPE_CHECKING:
    from grpo_rm.config import Config
    from grpo_rm.evaluation.comparison import Interval
    from grpo_rm.evaluation.gate import Clause
    from pipelines.tracking.registry import Champion

ONNX = Path("models/onnx/encoder.onnx")
WEIGHTS = Path("models/finetune/grpo_rm/model.safetensors")
PREPARED = Path("data/prepared")
PREDICTIONS = Path("reports/predictions/grpo_rm.parquet")
RESULT = Path("reports/registration.json")


def main() -> None:
    """Register models/onnx, or find it registered, and move the aliases."""
    config = load_config()
    check_tracking()
    try:
        upload_pending()  # the version belongs to the run of its training
        result = register(config)
    except Exception as error:
        if type(error).__module__.startswith(("mlflow", "sqlalchemy", "requests")):
            raise ConnectionError(
                f"the model registry failed: {reason(error)}. Run `dvc repro register` again"
            ) from error
        raise
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    verdict = "passed" if result["gate"]["has_passed"] else "failed"
    print(f"register: {result['name']} version {result['version']}, gate {verdict}; {result['promotion']}")


def register(config: "Config") -> dict[str, Any]:
    """Return the content of registration.json."""
    from grpo_rm.evaluation.gate import decide, is_better

    evaluation = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))
    dataset = json.loads((PREPARED / "dataset.json").read_text(encoding="utf-8"))
    name = f"grpo-rm-{re.sub(r'[^A-Za-z0-9_.-]+', '-', dataset['name'])}"
    onnx_sha256 = sha256(ONNX)
    version = registry.find_version(name, onnx_sha256)
    champion = registry.find_champion(name)
    other = champion if champion and champion.version != version else None
    against_champion = compare_with_champion(other, dataset, config) if other else None
    clauses = decide(
        evaluation["models"]["grpo_rm"],
        interval_of(evaluation["comparison"].get("accuracy")),
        against_champion,
        has_champion=other is not None,
        min_accuracy=config.register_.gate.min_accuracy,
        margin=config.register_.gate.margin,
    )
    has_passed = all(clause.has_passed for clause in clauses)
    version = version or registry.create_version(
        name,
        ONNX,
        tags=origin_tags(onnx_sha256),
        model_sha256=sha256(WEIGHTS),
        experiment=config.tracking.experiment,
    )
    registry.describe_version(name, version, description=describe(clauses), gate_tags=gate_tags(clauses))
    registry.set_alias(name, registry.CHALLENGER, version)
    should_promote, promotion = decide_promotion(
        champion.version if champion else None,
        version,
        has_passed=has_passed,
        is_auto=config.register_.promote == "auto",
        beats_champion=is_better(against_champion),
    )
    if should_promote:
        registry.set_alias(name, registry.CHAMPION, version)
    return {
        "name": name,
        "version": version,
        "aliases": registry.aliases_of(name, version),
        "promotion": promotion,
        "gate": {"has_passed": has_passed, "clauses": [asdict(clause) for clause in clauses]},
        "onnx_sha256": onnx_sha256,
    }


def decide_promotion(
    champion: str | None, version: str, *, has_passed: bool, is_auto: bool, beats_champion: bool
) -> tuple[bool, str]:
    """Return whether `champion` moves to this version, and why in words."""
    if champion == version:
        return False, "it already is the champion"
    if not has_passed:
        stays = f"champion stays version {champion}" if champion else "there is no champion"
        return False, f"{stays}, because the gate failed"
    if champion is None:
        return True, "it is the champion, as the first version that passed the gate"
    if not is_auto:
        return False, f"champion stays version {champion} until a person moves it (register.promote: manual)"
    if beats_champion:
        return True, f"it is the champion, because it beats version {champion} (register.promote: auto)"
    return False, f"champion stays version {champion}, which it does not beat (register.promote: auto)"


def compare_with_champion(champion: "Champion", dataset: dict[str, Any], config: "Config") -> "Interval | None":
    """Run the champion on the test images; return the candidate's accuracy minus its.

    None where that would not be fair: the champion has other classes, or was made with another split, so that it may
    have been trained on these images.
    """
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from grpo_rm.datasets import read_split
    from grpo_rm.evaluation.comparison import paired_bootstrap
    from pipelines.onnx_model import OnnxModel

    model = OnnxModel(champion.onnx)
    if model.classes != dataset["classes"] or model.training.get("split") != dataset["split"]:
        return None
    candidate = pq.read_table(PREDICTIONS, filters=pc.field("split") == "test")
    test = read_split(PREPARED, "test")
    assert candidate["id"].to_pylist() == test.ids
    right = [
        logits.argmax(axis=1) == test.labels
        for logits in (np.stack(candidate["logits"].to_pylist()), model.logits(test.files))
    ]
    return paired_bootstrap(
        *(scores.astype(float) for scores in right),
        num_resamples=config.evaluate.bootstrap_resamples,
        confidence=config.evaluate.confidence,
        seed=config.seed,
    )


def interval_of(values: dict[str, Any] | None) -> "Interval | None":
    """Return an interval of evaluation.json, or None where it is missing."""
    from grpo_rm.evaluation.comparison import Interval

    return Interval(**values) if values else None


def describe(clauses: "list[Clause]") -> str:
    """Return the gate's verdict as Markdown."""
    has_passed = all(clause.has_passed for clause in clauses)
    lines = [f"- {'passed' if c.has_passed else '**failed**'}: {c.reason}" for c in clauses]
    return "\n".join([f"Gate {'passed' if has_passed else 'failed'}.", "", *lines])


def origin_tags(onnx_sha256: str) -> dict[str, str]:
    """Return what leads from a version back to commit, data and weights."""
    hashes = {"dvc.data": data_hash(), "dvc.onnx": dvc_hash("export", str(ONNX.parent))}
    return {
        registry.ONNX_TAG: onnx_sha256,
        "model.sha256": sha256(WEIGHTS),
        **{key: value for key, value in hashes.items() if value},
        **git_tags(),
    }


def gate_tags(clauses: "list[Clause]") -> dict[str, str]:
    """Return the verdict and every clause as tags."""
    verdicts = {f"gate.{clause.name}": clause.has_passed for clause in clauses}
    verdicts["gate"] = all(verdicts.values())
    return {name: "passed" if has_passed else "failed" for name, has_passed in verdicts.items()}


if __name__ == "__main__":
    run_stage(main)
