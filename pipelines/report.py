"""Stage report: reports/index.html, one page of what the other stages found. It needs neither GPU nor network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_rm.config import Config, load_config
from pipelines import dvc_lock
from pipelines.lineage import data_hash, git_tags, sha256
from pipelines.models import CANDIDATE, CONTROL, DIRECTORIES, REFERENCE, predictions_of, weights_of
from pipelines.stage import run_stage
from pipelines.tables import read_csv
from pipelines.tracking.runs import check_tracking, find_run, run_url, start_run, version_url

REPORTS = Path("reports")
PAGE = REPORTS / "index.html"
STAGES = {REFERENCE: "pretrain", CANDIDATE: "finetune@grpo_rm", CONTROL: "finetune@cross_entropy"}


def main() -> None:
    """Write the page, and keep it in a run of its own, where MLflow's UI shows it."""
    from pipelines.reporting.page import write_page

    config = load_config()
    check_tracking()
    with start_run("report", config.tracking, {"seed": config.seed}, context="evaluation") as run:
        content = read_content(config)
        write_page(PAGE, **content)
        registration = content["registration"]
        gate = "passed" if registration["gate"]["has_passed"] else "failed"
        run.set_tags({"registered": f"{registration['name']} version {registration['version']}", "gate": gate})
        run.log_artifacts(PAGE)
    print(f"report: {PAGE}, {PAGE.stat().st_size / 1e6:.1f} MB")


def read_content(config: Config) -> dict[str, Any]:
    """Return the arguments of `render_page`."""
    from grpo_rm.datasets import read_dataset
    from pipelines.batches import PREPARED

    dataset, evaluation, registration = read_dataset(PREPARED), read_json("evaluation"), read_json("registration")
    version = registration["version"]
    read_task = read_segmentation if dataset["task"] == "segmentation" else read_classification
    return {
        "evaluation": evaluation,
        "registration": registration,
        "dataset": dataset,
        "histories": {name: read_csv(REPORTS / "training" / f"{name}.csv") for name in evaluation["models"]},
        "reliability": read_plots("reliability", texts=("kind",)),
        "validation": read_json("validation"),
        "lineage": lineage(config),
        "links": find_runs(config) | {f"version {version}": version_url(registration["name"], version)},
        **read_task(dataset["classes"], seed=config.seed),
    }


def read_classification(classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return the arguments of `render_page` that are about single images and their classes."""
    from grpo_rm.evaluation.classification import confusion_counts
    from pipelines.predictions import read_predictions
    from pipelines.reporting.page import largest_confusions
    from pipelines.reporting.pictures import report_pictures

    outputs = {name: read_predictions(predictions_of(name))[1] for name in (REFERENCE, CANDIDATE)}
    test = outputs[CANDIDATE]["test"]
    confusion = confusion_counts(test.logits.argmax(axis=1), test.labels, len(classes))
    cells = [(row["actual"], row["predicted"]) for row in largest_confusions(confusion, classes)]
    pictures = report_pictures(outputs, classes, cells, seed=seed)
    return {"robustness": read_plots("robustness"), "confusion": confusion, **pictures}


def read_segmentation(classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return the arguments of `render_page` that are about masks and pixels."""
    from grpo_rm.dense_datasets import read_dense_split
    from pipelines.batches import PREPARED
    from pipelines.dense_predictions import read_dense_predictions
    from pipelines.reporting.segmentations import DenseContent, show_segmentations

    splits = {name: read_dense_split(PREPARED, name) for name in ("train", "val", "test")}
    outputs = {name: read_dense_predictions(predictions_of(name))[1]["test"] for name in (CONTROL, CANDIDATE)}
    dense = DenseContent(
        segmentations=show_segmentations(outputs, splits["test"], classes, seed=seed),
        class_rows=read_plots("classes", texts=("class",)),
        num_images={name: len(split.ids) for name, split in splits.items()},
    )
    return {"confusion": outputs[CANDIDATE].sums.confusion.sum(axis=0), "dense": dense}


def read_json(name: str) -> dict[str, Any]:
    """Read what a stage reported."""
    path = REPORTS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `dvc repro report`, which runs what comes before it")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_plots(folder: str, *, texts: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of a folder of plots, by model."""
    return {path.stem: read_csv(path, texts=texts) for path in sorted((REPORTS / "plots" / folder).glob("*.csv"))}


def lineage(config: Config) -> dict[str, str]:
    """Return what the results were made from, in the order of the page."""
    from pipelines.predictions import read_origin

    tags = git_tags()
    changed = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    origin = read_origin(predictions_of(CANDIDATE))
    return {
        "commit": f"{tags['git.commit']}{changed}" if tags else "not in a git repository",
        "dvc.lock": dvc_lock.present_hash() or "not there",
        "data": data_hash() or "not recorded by DVC",
        "weights": origin.pop("weights", "not recorded"),
        "ONNX file": read_json("registration")["onnx_sha256"],
        "encoder": config.encoder.name,
        "seed": ", ".join(str(seed) for seed in (config.seed, *config.finetune.seeds)),
        "evaluated on": origin.pop("hardware", "not recorded"),
        **origin,
    }


def find_runs(config: Config) -> dict[str, str]:
    """Return the addresses of the MLflow runs behind the page, by stage; a run that is not in the store is left out."""
    experiment = config.tracking.experiment
    tagged = {STAGES[name]: ("model.sha256", weights_of(path)) for name, path in DIRECTORIES.items()}
    tagged["evaluate"] = ("evaluation.sha256", REPORTS / "evaluation.json")
    found = {stage: find_run(tag, sha256(path), experiment) for stage, (tag, path) in tagged.items()}
    return {stage: run_url(run_id) for stage, run_id in found.items() if run_id}


if __name__ == "__main__":
    run_stage(main, description=__doc__)
