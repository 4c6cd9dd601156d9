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
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from grpo_rm.config import load_config
from pipelines import dvc_lock, model_card
from pipelines.lineage import data_hash, dvc_hash, git_tags, sha256
from pipelines.onnx_model import INT8, INT8_SELF_TEST, SELF_TEST
from pipelines.stage import run_stage
from pipelines.tracking import aliases, registry
from pipelines.tracking.runs import check_tracking, upload_pending

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grpo_rm.config import Config
    from grpo_rm.evaluation.comparison import Interval
    from grpo_rm.evaluation.gate import Basis, Rival
    from pipelines.onnx_model import OnnxModel

ONNX = Path("models/onnx/encoder.onnx")
WEIGHTS = Path("models/finetune/grpo_rm/model.safetensors")
PREPARED = Path("data/prepared")
PREDICTIONS = Path("reports/predictions/grpo_rm.parquet")
RESULT = Path("reports/registration.json")
BY = "stage register"


@dataclass(frozen=True)
class Answers:
    """What the candidate said of the test images: ids (N), logits (N, K), labels (N,)."""

    ids: list[str]
    logits: "NDArray[Any]"
    labels: "NDArray[Any]"
    basis: "Basis"


class Resampling(TypedDict):
    """How intervals are made."""

    num_resamples: int
    confidence: float
    seed: int


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
    from grpo_rm.evaluation.gate import beats

    evaluation = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))
    dataset = json.loads((PREPARED / "dataset.json").read_text(encoding="utf-8"))
    name = registry.model_name(dataset["name"])
    onnx_sha256 = sha256(ONNX)
    int8 = int8_tags()
    registered = registry.find_version(name, onnx_sha256, int8.get(registry.INT8_TAG))
    champion = aliases.see_champion(name)
    other = champion.version if champion.version != registered else None
    answers = read_answers(dataset)
    rival = meet_champion(name, other, answers, config) if other else None
    gate = judge(evaluation, answers, rival, config)
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
        beats_champion=rival is not None and beats(rival, answers.basis),
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


def judge(evaluation: dict[str, Any], answers: "Answers", champion: "Rival | None", config: "Config") -> dict[str, Any]:
    """Return the gate's verdict and its clauses, as registration.json has them."""
    from grpo_rm.evaluation.comparison import Interval, compare_metrics
    from grpo_rm.evaluation.gate import Rival, decide
    from grpo_rm.evaluation.metric_sums import constant_sums, head_sums

    limits, compared = config.register_.gate, evaluation["comparison"]
    intervals = {name: Interval(**entry) for name, entry in compared.items() if "low" in entry}
    control = Rival("control", answers.basis, limits.min_gain_over_control, intervals)
    own = {"f1_macro": head_sums(answers.logits, answers.labels)["f1_macro"]}
    constant = {"f1_macro": constant_sums(answers.labels, answers.logits.shape[1])}
    clauses = decide(
        evaluation["models"]["grpo_rm"] | onnx_metrics(),
        answers.basis,
        thresholds=limits.thresholds,
        over_constant=compare_metrics([own], [constant], **resampling(config))["f1_macro"],
        rivals=[control, champion] if champion else [control],
    )
    return {
        "has_passed": all(clause.has_passed for clause in clauses),
        "clauses": [asdict(clause) for clause in clauses],
    }


def resampling(config: "Config") -> "Resampling":
    """Return how intervals are made, the same in stage evaluate."""
    return {
        "num_resamples": config.evaluate.bootstrap_resamples,
        "confidence": config.evaluate.confidence,
        "seed": config.seed,
    }


def onnx_metrics() -> dict[str, float]:
    """Return what the gate may ask of the file: its size, and the time of one image on the CPU that exported it."""
    exported = json.loads(Path("reports/export.json").read_text(encoding="utf-8"))
    return {"onnx/size_mb": ONNX.stat().st_size / 1e6, "onnx/latency_ms": exported["latency_ms"]["1"]["onnxruntime"]}


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


def read_answers(dataset: dict[str, Any]) -> "Answers":
    """Read what the candidate said of the test images.

    Args:
        dataset: The content of dataset.json.
    """
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from grpo_rm.evaluation.gate import Basis

    table = pq.read_table(PREDICTIONS, filters=pc.field("split") != "val")
    sizes = {row["values"]: row["counts"] for row in table["split"].value_counts().to_pylist()}  # test and extra sets
    table = table.filter(pc.field("split") == "test")
    basis = Basis(dataset["classes"], dataset["split"], {"": sizes.pop("test"), **sizes})
    return Answers(table["id"].to_pylist(), np.stack(table["logits"].to_pylist()), table["label"].to_numpy(), basis)


def meet_champion(name: str, version: str, answers: "Answers", config: "Config") -> "Rival":
    """Run the champion on the test images, and compare what the gate asks for and a head is measured by.

    That is not fair or not possible where the champion has other classes, or was made with another split, so that it
    may have been trained on these images; or a person made champion what is no file of ours. The gate then says so.
    """
    from grpo_rm.evaluation.gate import Basis, Rival
    from pipelines.onnx_model import OnnxModel

    min_gain = config.register_.gate.min_gain_over_champion
    try:
        with registry.downloaded(name, version) as directory:
            model = OnnxModel(directory / registry.ONNX_FILE)
    except (FileNotFoundError, ValueError) as error:
        print(f"warning: the champion cannot be compared with: {error}", file=sys.stderr)
        return Rival("champion", None, min_gain)
    basis = Basis(model.classes, model.training.get("split"), answers.basis.num_images)
    if basis != answers.basis:
        return Rival("champion", basis, min_gain)
    return Rival("champion", basis, min_gain, compare_heads(answers, model, config))


def compare_heads(answers: "Answers", champion: "OnnxModel", config: "Config") -> "dict[str, Interval]":
    """Return candidate minus champion on the test images, for every metric that follows from logits."""
    from grpo_rm.datasets import read_split
    from grpo_rm.evaluation.comparison import compare_metrics
    from grpo_rm.evaluation.metric_sums import classifier_sums

    test = read_split(PREPARED, "test")
    assert answers.ids == list(test.ids)
    candidate, rival = (
        classifier_sums(logits, answers.labels) for logits in (answers.logits, champion.logits(test.files))
    )
    return compare_metrics([candidate], [rival], **resampling(config))


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
