"""Stage register: gate, version, aliases.

A person may move or delete an alias at any time, in the MLflow UI or by `python -m pipelines.promote`; that stands.

- `challenger`: a new version always gets it. A version that was registered before gets it back (parameters were set
  back, say), unless a person has moved or deleted the alias since this stage put it somewhere.
- `champion`: set by this stage for the first version that passes the gate, as long as none ever was champion; after
  that only with `register.promote: auto`, where the champion is beaten: shown to be worse by a metric of
  `min_gain_over_champion`. A version that was champion before and was taken down gets it back from a person alone, and
  so does the model once the alias was deleted.
"""

import json
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

ONNX = Path("models/onnx/encoder.onnx")
WEIGHTS = Path("models/finetune/grpo_rm/model.safetensors")
PREPARED = Path("data/prepared")
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
    from pipelines.verdict import judge  # slow to import: torch

    evaluation = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))
    dataset = json.loads((PREPARED / "dataset.json").read_text(encoding="utf-8"))
    name = registry.model_name(dataset["name"])
    onnx_sha256 = sha256(ONNX)
    int8 = int8_tags()
    registered = registry.find_version(name, onnx_sha256, int8.get(registry.INT8_TAG))
    champion = aliases.see_champion(name)
    other = champion.version if champion.version != registered else None
    verdict = judge(evaluation, dataset, name, other, config)
    result = verdict.as_json()
    version = registered or registry.create_version(
        name,
        ONNX,
        tags=origin_tags(onnx_sha256) | int8,
        model_sha256=sha256(WEIGHTS),
        experiment=config.tracking.experiment,
    )
    tags = registry.tags_of(name, version)
    describe(name, version, result["gate"], evaluation, dataset, tags)
    place_challenger(name, version, is_new=registered is None)
    should_promote, promotion = decide_promotion(
        champion,
        version,
        has_passed=verdict.has_passed,
        was_champion=aliases.PROMOTED in tags,
        is_auto=config.register_.promote == "auto",
        beats_champion=verdict.beats_champion,
    )
    if should_promote:
        aliases.set_champion(name, version, replaced=champion.version, by=BY, reason=promotion)
    return {
        "name": name,
        "version": version,
        "aliases": aliases.aliases_of(name, version),
        "promotion": promotion,
        **result,
        "onnx_sha256": onnx_sha256,
        "int8_sha256": int8.get(registry.INT8_TAG),
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
        return False, "it already is the champion" + ("" if has_passed else ", though it fails this gate")
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
