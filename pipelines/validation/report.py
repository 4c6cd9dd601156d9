"""What is said of a validation: the report, and the table in the terminal."""

from collections.abc import Mapping
from typing import Any

from pipelines.validation.result import ExpectationResult

HEADER = f"{'severity':<8}  {'rows':>15}  {'percent':>8}  expectation"
MAX_NAMED = 10  # rows of an expectation, in the table and in the Data Docs
MAX_SAMPLES = 100  # of an expectation, in the report
MAX_VALUE = 100  # characters of an observed value in the table
INDENT = " " * HEADER.index("expectation")


def build_report(
    results: list[ExpectationResult], *, num_rows: int, previous_data: str | None = None
) -> dict[str, Any]:
    """The content of `reports/validation.json`: the same for the same data, wherever and whenever it is validated.

    Args:
        results: Of all expectations.
        num_rows: Images that were looked at.
        previous_data: Hash of the version of the data that they were compared with, if they were.
    """
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
        "previous_data": previous_data,
        "expectations": [_to_json(result) for result in results],
    }


def make_title(results: list[ExpectationResult], dataset: Mapping[str, Any], *, num_rows: int) -> str:
    """What was validated, and how many expectations failed."""
    name, source = printable(dataset["name"]), printable(dataset["source"])
    of = name if name == source else f"{name} ({source})"
    num_failed = len(_failed(results))
    failed = (
        f"{num_failed} of {len(results)} expectations failed" if num_failed else f"all {len(results)} expectations hold"
    )
    return f"Validated {num_rows:,} images of {of}: {failed}."


def format_table(
    results: list[ExpectationResult], dataset: Mapping[str, Any], *, num_rows: int, comparison: str = ""
) -> str:
    """The failed expectations, critical ones first, each with its rows, up to ten of their ids, and how to fix it."""
    failed = sorted(_failed(results), key=lambda result: result.severity)  # "critical" < "warning"; sorting is stable
    title = [make_title(results, dataset, num_rows=num_rows), *([printable(comparison)] if comparison else [])]
    if not failed:
        return "\n".join(title)
    return "\n".join([*title, "", HEADER, *(_format_failure(result) for result in failed)])


def say_cut(count: int) -> str:
    """How many of these rows are shown, and how many are in the report; "" where all are shown."""
    if count <= MAX_NAMED:
        return ""
    in_report = "all" if count <= MAX_SAMPLES else f"{MAX_SAMPLES:,}"
    return f"{MAX_NAMED} of {count:,}, {in_report} of them in validation.json"


def _format_failure(result: ExpectationResult) -> str:
    rows, percent = _format_rows(result)
    lines = [f"{result.severity:<8}  {rows:>15}  {percent:>8}  {result.description}"]
    lines += [f"{INDENT}  {result.observed}"] if result.observed else []
    what = "" if result.observed else f"{result.column} = "
    named = result.samples[:MAX_NAMED]
    lines += [f"{INDENT}  {printable(row_id)}: {what}{_shorten(value)}" for row_id, value in named]
    cut = say_cut(result.unexpected_count)
    lines += [f"{INDENT}  {cut}"] if cut else []
    return "\n".join([*lines, f"{INDENT}  fix: {result.fix}", ""])


def _format_rows(result: ExpectationResult) -> tuple[str, str]:
    """How many rows failed, of how many and in percent: both say something where the rows are images."""
    if result.observed:
        return "", ""
    if result.table != "images":
        return f"{result.unexpected_count:,}", ""
    return f"{result.unexpected_count:,} of {result.element_count:,}", f"{result.unexpected_percent:.3g} %"


def printable(text: str) -> str:
    """Escape line breaks and what a terminal would obey: file names come from strangers."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def _shorten(value: object) -> str:
    line = printable(_format_number(value) if isinstance(value, float) else str(value))
    return line if len(line) <= MAX_VALUE else line[: MAX_VALUE - 3] + "..."


def _format_number(value: float) -> str:
    """Sides of images come as floats: 10,001 pixels, not 1e+04."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _failed(results: list[ExpectationResult]) -> list[ExpectationResult]:
    return [result for result in results if not result.success]


def _to_json(result: ExpectationResult) -> dict[str, Any]:
    samples = [{"id": sample_id, "value": value} for sample_id, value in result.samples]
    return {**vars(result), "unexpected_percent": result.unexpected_percent, "samples": samples}
