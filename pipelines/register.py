"""Stage register: gate, version, aliases.

A person may move or delete an alias at any time, in the MLflow UI or by `python -m pipelines.promote`; that stands.

- `challenger`: a new version always gets it. A version that was registered before gets it back (parameters were set
  back, say), unless a person has moved or deleted the alias since this stage put it somewhere.
- `champion`: set by this stage for the first version that passes the gate, as long as none ever was champion; after
  that only with `register.promote: auto`, where the champion is beaten. A version that was champion before and was
  taken down gets it back from a person alone, and so does the model once the alias was deleted.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import load_config
from pipelines import dvc_lock, model_card
from pipelines.lineage import data_hash, dvc_hash, git_tags, sha256
from pipelines.onnx_model import INT8, INT8_SELF_TEST, SELF_TEST
from pipelines.stage import run_stage
from pipelines.tracking import aliases, registry
from pipelines.tracking.runs import check_tracking, upload_pending

if TYPE_CHECKING:
    from grpo_rm.config import Config
    from grpo_rm.evaluation.comparison import Interval

ONNX = Path("models/onnx/encoder.onnx")
WEIGHTS = Path("models/finetune/grpo_rm/model.safetensors")
PREPARED = Path("data/prepared")
PREDICTIONS = Path("reports/predictions/grpo_rm.parquet")
RESULT = Path("reports/registration.json")
BY = "stage register"


def main() -> None:
    """Register models/onnx, or find it registered, and move the aliases."""
    config = load_config()
    check_tracking()
    with registry.contact():
        upload_pending()  # the version belongs to the run of its training
        result = register(config)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    verdict = "passed" if result["gate"]["has_passed"] else "failed"
    print(f"register: {result['name']} version {result['version']}, gate {verdict}; {result['promotion']}")


def register(config: "Config") -> dict[str, Any]:
    """Return the content of registration.json."""
    from grpo_rm.evaluation.gate import is_better

    evaluation = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))
    dataset = json.loads((PREPARED / "dataset.json").read_text(encoding="utf-8"))
    name = registry.model_name(dataset["name"])
    onnx_sha256 = sha256(ONNX)
    int8 = int8_tags()
    registered = registry.find_version(name, onnx_sha256, int8.get(registry.INT8_TAG))
    champion = aliases.see_champion(name)
    other = champion.version if champion.version != registered else None
    against_champion = compare_with_champion(name, other, dataset, config) if other else None
    gate = judge(evaluation, against_champion, has_champion=other is not None, config=config)
    version = registered or registry.create_version(
        name,
        ONNX,
        tags=origin_tags(onnx_sha256) | int8,
        model_sha256=sha256(WEIGHTS),
        experiment=config.tracking.experiment,
    )
    tags = registry.tags_of(name, version)
    describe(name, version, gate, evaluation, dataset, tags)
    place_challenger(name, version, is_new=registered is None)
    should_promote, promotion = decide_promotion(
        champion,
        version,
        has_passed=gate["has_passed"],
        was_champion=aliases.PROMOTED in tags,
        is_auto=config.register_.promote == "auto",
        beats_champion=is_better(against_champion),
    )
    if should_promote:
        aliases.set_champion(name, version, replaced=champion.version, by=BY, reason=promotion)
    return {
        "name": name,
        "version": version,
        "aliases": aliases.aliases_of(name, version),
        "promotion": promotion,
        "gate": gate,
        "onnx_sha256": onnx_sha256,
        "int8_sha256": int8.get(registry.INT8_TAG),
    }


def judge(
    evaluation: dict[str, Any], against_champion: "Interval | None", *, has_champion: bool, config: "Config"
) -> dict[str, Any]:
    """Return the gate's verdict and its clauses, as registration.json has them."""
    from grpo_rm.evaluation.comparison import Interval
    from grpo_rm.evaluation.gate import decide

    against_control = evaluation["comparison"].get("accuracy")
    clauses = decide(
        evaluation["models"]["grpo_rm"],
        Interval(**against_control) if against_control else None,
        against_champion,
        has_champion=has_champion,
        min_accuracy=config.register_.gate.min_accuracy,
        margin=config.register_.gate.margin,
    )
    return {
        "has_passed": all(clause.has_passed for clause in clauses),
        "clauses": [asdict(clause) for clause in clauses],
    }


def describe(
    name: str,
    version: str,
    gate: dict[str, Any],
    evaluation: dict[str, Any],
    dataset: dict[str, Any],
    tags: dict[str, str],
) -> None:
    """Write what the registry's pages show: descriptions, the gate's tags, the numbers on the test images."""
    models = evaluation["models"]
    registry.describe_model(name, model_card.describe_model(name, dataset))
    registry.describe_version(
        name,
        version,
        description=model_card.describe_version(gate, models, tags),
        gate_tags=gate_tags(gate),
    )
    numbers = {f"test_{metric}": value for metric, value in models["grpo_rm"].items()}
    registry.record_metrics(name, version, numbers, dataset=dataset["name"])


def place_challenger(name: str, version: str, *, is_new: bool) -> None:
    """Move `challenger` to the candidate, unless it is an old one and a person has moved the alias."""
    challenger = aliases.find_alias(name, aliases.CHALLENGER)
    if challenger.version != version and (is_new or not challenger.was_moved):
        aliases.set_challenger(name, version)


def decide_promotion(
    champion: "aliases.Alias",
    version: str,
    *,
    has_passed: bool,
    was_champion: bool,
    is_auto: bool,
    beats_champion: bool,
) -> tuple[bool, str]:
    """Return whether `champion` moves to this version, and why in words."""
    if champion.version == version:
        return False, "it already is the champion"
    stays = f"champion stays version {champion.version}" if champion.version else "there is no champion"
    by_hand = f"`python -m pipelines.promote {version}` makes it the champion"
    if not has_passed:
        return False, f"{stays}, because the gate failed"
    if was_champion:
        return False, f"{stays}: this version was champion before and was taken down; {by_hand}"
    if champion.version is None and champion.last is not None:
        return False, f"{stays}: a person took the alias from version {champion.last}; {by_hand}"
    if champion.version is None:
        return True, "it is the champion, as the first version that passed the gate"
    if not is_auto:
        return False, f"{stays} until a person moves it (register.promote: manual); {by_hand}"
    if beats_champion:
        return True, f"it is the champion, because it beats version {champion.version} (register.promote: auto)"
    return False, f"{stays}, which it does not beat (register.promote: auto)"


def compare_with_champion(name: str, version: str, dataset: dict[str, Any], config: "Config") -> "Interval | None":
    """Run the champion on the test images; return the candidate's accuracy minus its.

    None where that would not be fair or not possible: the champion has other classes, or was made with another split,
    so that it may have been trained on these images; or a person made champion what is no file of ours.
    """
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from grpo_rm.datasets import read_split
    from grpo_rm.evaluation.comparison import paired_bootstrap
    from pipelines.onnx_model import OnnxModel

    try:
        with registry.downloaded(name, version) as directory:
            model = OnnxModel(directory / registry.ONNX_FILE)
    except (FileNotFoundError, ValueError) as error:
        print(f"warning: the champion cannot be compared with: {error}", file=sys.stderr)
        return None
    if model.classes != dataset["classes"] or model.training.get("split") != dataset["split"]:
        return None
    candidate = pq.read_table(PREDICTIONS, filters=pc.field("split") == "test")
    test = read_split(PREPARED, "test")
    assert candidate["id"].to_pylist() == list(test.ids)
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


def origin_tags(onnx_sha256: str) -> dict[str, str]:
    """Return what leads from a version back to commit, data and weights."""
    hashes = {
        dvc_lock.TAG: dvc_lock.present_hash(),
        "dvc.data": data_hash(),
        "dvc.onnx": dvc_hash("export", str(ONNX.parent)),
    }
    return {
        registry.ONNX_TAG: onnx_sha256,
        registry.SELF_TEST_TAG: sha256(ONNX.with_name(SELF_TEST)),
        "model.sha256": sha256(WEIGHTS),
        **{key: value for key, value in hashes.items() if value},
        **git_tags(),
    }


def int8_tags() -> dict[str, str]:
    """Return the hashes of the int8 file and its self-test; none where it was not exported."""
    files = {registry.INT8_TAG: INT8, registry.INT8_SELF_TEST_TAG: INT8_SELF_TEST}
    return {tag: sha256(ONNX.with_name(file)) for tag, file in files.items() if ONNX.with_name(file).is_file()}


def gate_tags(gate: dict[str, Any]) -> dict[str, str]:
    """Return the verdict and every clause as tags."""
    verdicts = {"gate": gate["has_passed"]} | {f"gate.{c['name']}": c["has_passed"] for c in gate["clauses"]}
    return {name: "passed" if has_passed else "failed" for name, has_passed in verdicts.items()}


if __name__ == "__main__":
    run_stage(main, description=__doc__)
