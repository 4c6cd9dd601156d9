"""Stage `validate`: is the prepared data fit to train on?

Reads the manifest of the prepared data and that of its previous version, writes `reports/validation.json` and Great
Expectations' Data Docs. A warning is printed; a critical failure stops the pipeline, unless `--report-only` is given.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo_rm.config import Expectations, load_config
from pipelines.stage import run_stage
from pipelines.validation.manifest import CHANNELS, count_changes, expected_columns
from pipelines.validation.previous_data import NoPreviousDataError, PreviousData, find_previous_data
from pipelines.validation.report import build_report, format_table

PREPARED = Path("data/prepared")
REPORTS = Path("reports")


def validate(prepared: Path, reports: Path, expected: Expectations, *, report_only: bool = False) -> bool:
    """Check the manifest, write `validation.json` and `data_docs/` into the reports, print what failed.

    Args:
        prepared: What the prepare stage wrote.
        reports: Directory of the reports; made where it does not exist.
        expected: `data.expectations` of params.yaml.
        report_only: Let the pipeline go on in any case.

    Returns:
        Whether the pipeline may go on: no critical expectation failed, or `report_only`.

    Raises:
        FileNotFoundError: The prepared data is not there.
    """
    dataset = _read_dataset(prepared)
    manifest = pq.read_table(_existing(prepared / "manifest.parquet"))
    left_out = pq.read_table(_existing(prepared / "left_out.parquet"))
    previous, comparison = _compare(prepared, dataset, manifest, expected)

    from pipelines.validation.expectations.checks import validate_manifest
    from pipelines.validation.thumbnails import read_thumbnails

    docs = reports / "data_docs"
    results = validate_manifest(
        manifest,
        dataset,
        expected,
        left_out=left_out,
        previous=previous,
        docs_directory=docs,
        read_thumbnails=functools.partial(read_thumbnails, prepared),
        comparison=comparison,
    )
    report = build_report(results, num_rows=len(manifest), previous_data=previous.digest if previous else None)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "validation.json").write_text(text + "\n", encoding="utf-8")
    print(format_table(results, dataset, num_rows=len(manifest), comparison=comparison))
    print(f"Details: {(docs / 'index.html').as_posix()}", flush=True)  # before an error on the other stream
    return report_only or bool(report["success"])


def _compare(
    prepared: Path, dataset: dict[str, Any], manifest: pa.Table, expected: Expectations
) -> tuple[PreviousData | None, str]:
    """The version of the data to compare with, and a line on it, or on what wants it where it is not there."""
    want_classes = expected.classes.severity != "ignore" and expected.classes.names is None
    wanted = [
        name
        for name, is_wanted in (
            ("drift", expected.drift.severity != "ignore"),
            ("classes", want_classes),
            ("splits_kept", expected.splits_kept.severity != "ignore"),
        )
        if is_wanted
    ]
    if not wanted:
        return None, ""
    is_segmentation = dataset["task"] == "segmentation"
    needed = ("split", "sha256", "label", "decode_error", "mask_error", "mask_counts", *CHANNELS)
    columns = [name for name in expected_columns(is_segmentation=is_segmentation) if name in needed]
    try:
        previous = find_previous_data(prepared, columns=columns)
        added, removed = count_changes(previous.manifest, manifest)
    except (NoPreviousDataError, KeyError, TypeError, pa.ArrowException) as error:  # also of a manifest without columns
        return None, f"Not compared with earlier data ({', '.join(wanted)}): {error}."
    images = f"{added:,} image{'s' * (added != 1)} added, {removed:,} removed"
    return previous, f"Compared with the version before (commit {previous.commit}): {images}."


def _read_dataset(prepared: Path) -> dict[str, Any]:
    dataset: dict[str, Any] = json.loads(_existing(prepared / "dataset.json").read_text(encoding="utf-8"))
    return dataset


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found, it is written by the prepare stage: run `dvc repro prepare` first")
    return path


def check_source(prepared: Path, source: str) -> None:
    """Refuse data that were prepared from another source.

    Raises:
        ValueError: `source`, the present `data.source`, is another.
    """
    origin = _read_dataset(prepared)["source"]
    if origin != source:
        raise ValueError(
            f"{prepared} was made from {origin}, but data.source is {source}: run `dvc repro prepare` first"
        )


def check_neighbors(prepared: Path, ks: Sequence[int]) -> None:
    """Refuse numbers of neighbors that the evaluation cannot have, before anything is trained.

    Raises:
        ValueError: A k is larger than the number of training images.
    """
    num_train = sum(_read_dataset(prepared)["counts"]["train"].values())
    if max(ks) > num_train:
        raise ValueError(f"evaluate.knn_k is {list(ks)}, expected at most {num_train}, the number of training images")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.validate", description=__doc__)
    parser.add_argument("--report-only", action="store_true", help="report critical failures too without stopping")
    arguments = parser.parse_args()
    config = load_config()
    check_source(PREPARED, config.data.source)
    if not validate(PREPARED, REPORTS, config.data.expectations, report_only=arguments.report_only):
        raise ValueError(
            "the data failed critical expectations, listed above. Fix the data at its source as the table says, then "
            "run `dvc repro` again; `python -m pipelines.validate --report-only` repeats the report without stopping"
        )
    if not arguments.report_only:
        check_neighbors(PREPARED, config.evaluate.knn_k)


if __name__ == "__main__":
    run_stage(main)
