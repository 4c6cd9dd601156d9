"""Stage `validate`: is the prepared data fit to train on?

Reads `data/prepared/manifest.parquet` and `dataset.json`, writes `reports/validation.json` and Great Expectations' Data
Docs. A warning is printed; a critical failure stops the pipeline, unless `--report-only` is given.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import load_config
from pipelines.stage import run_stage

if TYPE_CHECKING:  # imported where it is used: Great Expectations takes seconds to load
    from pipelines.expectations import ExpectationResult

PREPARED = Path("data/prepared")
REPORTS = Path("reports")
HEADER = f"{'severity':<8}  {'rows':>15}  {'percent':>8}  expectation"
MAX_VALUE = 80  # characters of an observed value in the table
INDENT = " " * HEADER.index("expectation")


def validate(prepared: Path, reports: Path, *, report_only: bool = False, min_decodable: float = 1.0) -> bool:
    """Check the manifest, write `validation.json` and `data_docs/` into the reports, print what failed.

    Args:
        prepared: What the prepare stage wrote: `manifest.parquet` and `dataset.json`.
        reports: Directory of the reports; made where it does not exist.
        report_only: Let the pipeline go on in any case.
        min_decodable: Share of the images, in [0, 1], that must be decodable.

    Returns:
        Whether the pipeline may go on: no critical expectation failed, or `report_only`.

    Raises:
        FileNotFoundError: The prepared data is not there.
    """
    manifest_path = _existing(prepared / "manifest.parquet")
    dataset = json.loads(_existing(prepared / "dataset.json").read_text(encoding="utf-8"))
    import pandas as pd

    from pipelines.expectations import validate_manifest

    manifest = pd.read_parquet(manifest_path)
    docs = reports / "data_docs"
    results = validate_manifest(manifest, dataset["classes"], docs_directory=docs, min_decodable=min_decodable)
    report = build_report(results, num_rows=len(manifest))
    text = json.dumps(report, indent=2, ensure_ascii=False)
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "validation.json").write_text(text + "\n", encoding="utf-8")
    print(format_table(results, num_rows=len(manifest)))
    print(f"Details: {(docs / 'index.html').as_posix()}", flush=True)  # before the error message on the other stream
    return report_only or bool(report["success"])


def build_report(results: "list[ExpectationResult]", *, num_rows: int) -> dict[str, Any]:
    """The content of `reports/validation.json`: the same for the same data, wherever and whenever it is validated."""
    failed = _failed(results)
    num_critical = sum(result.severity == "critical" for result in failed)
    return {
        "success": num_critical == 0,
        "statistics": {
            "rows": num_rows,
            "evaluated": len(results),
            "failed_critical": num_critical,
            "failed_warning": len(failed) - num_critical,
        },
        "expectations": [_to_json(result) for result in results],
    }


def format_table(results: "list[ExpectationResult]", *, num_rows: int) -> str:
    """The failed expectations, critical ones first, each with its rows, up to five of their ids, and how to fix it."""
    failed = sorted(_failed(results), key=lambda result: result.severity)  # "critical" < "warning"; sorting is stable
    if not failed:
        return f"Validated {num_rows:,} images: all {len(results)} expectations hold."
    title = f"Validated {num_rows:,} images: {len(failed)} of {len(results)} expectations failed."
    return "\n".join([title, "", HEADER, *(_format_failure(result) for result in failed)])


def _format_failure(result: "ExpectationResult") -> str:
    rows = f"{result.unexpected_count:,} of {result.element_count:,}"
    lines = [f"{result.severity:<8}  {rows:>15}  {result.unexpected_percent:>6.3g} %  {result.description}"]
    lines += [f"{INDENT}  {sample_id}: {result.column} = {_shorten(str(value))}" for sample_id, value in result.samples]
    num_more = result.unexpected_count - len(result.samples)
    if num_more and len(result.samples) > 1:  # an expectation on a column as a whole has one sample for all rows
        lines.append(f"{INDENT}  and {num_more:,} more")
    return "\n".join([*lines, f"{INDENT}  fix: {result.fix}", ""])


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_VALUE else line[: MAX_VALUE - 3] + "..."


def _failed(results: "list[ExpectationResult]") -> "list[ExpectationResult]":
    return [result for result in results if not result.success]


def _to_json(result: "ExpectationResult") -> dict[str, Any]:
    samples = [{"id": sample_id, "value": value} for sample_id, value in result.samples]
    return {**vars(result), "unexpected_percent": result.unexpected_percent, "samples": samples}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found, it is written by the prepare stage: run `dvc repro prepare` first")
    return path


def check_neighbors(prepared: Path, ks: Sequence[int]) -> None:
    """Refuse numbers of neighbors that the evaluation cannot have, before anything is trained.

    Raises:
        ValueError: A k is larger than the number of training images.
    """
    counts = json.loads(_existing(prepared / "dataset.json").read_text(encoding="utf-8"))["counts"]
    num_train = sum(counts["train"].values())
    if max(ks) > num_train:
        raise ValueError(f"evaluate.knn_k is {list(ks)}, expected at most {num_train}, the number of training images")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.validate", description=__doc__)
    parser.add_argument("--report-only", action="store_true", help="report critical failures too without stopping")
    arguments = parser.parse_args()
    config = load_config()
    if not validate(PREPARED, REPORTS, report_only=arguments.report_only, min_decodable=config.data.min_decodable):
        raise ValueError(
            "the data failed critical expectations, listed above. Fix the data at its source as the table says, then "
            "run `dvc repro` again; `python -m pipelines.validate --report-only` repeats the report without stopping"
        )
    if not arguments.report_only:
        check_neighbors(PREPARED, config.evaluate.knn_k)


if __name__ == "__main__":
    run_stage(main)
