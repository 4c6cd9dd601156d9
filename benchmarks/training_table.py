"""The table of docs/benchmarks.md on training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.objective import table_rows

Row = tuple[str, str, str]

LOOP_GOALS = {"cpu": "at least 0.95", "gpu": "at least 0.97"}


def machine_name(machine: Mapping[str, Any]) -> str:
    """Return the machine's name in the names of files."""
    text = f"{machine['cpu']} {machine['cores']} cores {machine.get('gpu') or ''}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def with_table(text: str, machine: str, table: str) -> str:
    """Return the document with the machine's table: in the place of its former one, else after those of others."""
    first, last, end = f"<!-- training {machine} -->", f"<!-- end {machine} -->", "<!-- end of training -->"
    block = f"{first}\n{table}\n{last}"
    if first in text:
        head, _, rest = text.partition(first)
        return head + block + rest.partition(last)[2]
    if end not in text:
        raise ValueError(f"docs/benchmarks.md has no line {end}: put it where the tables of training belong")
    return text.replace(end, f"{block}\n\n{end}")


def format_table(result: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    rows: list[Row] = []
    for name, rows_of in {"loop": _loop, "objective": table_rows, "peers": _peers, "gpu": _gpu}.items():
        part = result.get(name)
        if part is not None:
            is_skipped = isinstance(part, Mapping) and set(part) == {"skipped"}
            rows += [(name, f"not measured: {part['skipped']}", "")] if is_skipped else rows_of(part)
    return "\n".join(
        [
            f"{hardware}, {machine['system']}, Python {machine['python']}, {packages}, commit {result['commit']}",
            "",
            "| what | measured | goal |",
            "| --- | --- | --- |",
            *(f"| {what} | {measured} | {goal} |" for what, measured, goal in rows),
        ]
    )


def _loop(subjects: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    for subject in subjects:
        name, n, trainer, step = subject["subject"], subject["rounds"], subject["loop"], subject["step"]
        ms = [f"{1000 * subject['batch_size'] / step[loss]['median']:.1f}" for loss in ("grpo_rm", "cross_entropy")]
        rows += [
            (
                f"trainer over a bare loop, images/s, {name}",
                f"{_spread(trainer['ratio'])}: {trainer['trainer']['median']:.0f} of {trainer['bare']['median']:.0f} "
                f"images/s, n = {n}",
                LOOP_GOALS[subject["device"]],
            ),
            (
                f"step of GRPO-RM over one of cross-entropy, {name}",
                f"{_spread(step['ratio'])}: {ms[0]} and {ms[1]} ms, n = {n}",
                "at most 1.03",
            ),
        ]
    return rows


def _peers(part: Mapping[str, Any]) -> list[Row]:
    rounds, settings = part["rounds"], part["settings"]
    what = f"{settings['model']}, {settings['train_images']:,} images of Fashion-MNIST, batch {settings['batch_size']}"
    rows = [
        (
            f"epoch over that of the fastest peer, {style}, {what}",
            f"{_spread(over)}: {over['fastest'].rpartition(' ')[0]}, n = {len(rounds)}",
            "at most 0.9",
        )
        for style, over in part["over"].items()
    ]
    for name in rounds[0]:
        peer, versions = name.partition(" ")[0], part["versions"][name.partition(" ")[0]]
        seconds = sorted(one[name]["seconds"] for one in rounds)
        accuracy = sum(one[name]["accuracy"] for one in rounds) / len(rounds)
        version = f" {versions[peer]}" if peer in versions else ""
        rows.append(
            (
                f"epoch, {name}{version}, {part['workers'][peer]} workers",
                f"{seconds[len(seconds) // 2]:.2f} ({seconds[0]:.2f}-{seconds[-1]:.2f}) s, accuracy {accuracy:.3f}",
                "",
            )
        )
    return rows + [(f"epoch, {name}", f"not measured: {reason}", "") for name, reason in part["missing"].items()]


def _gpu(part: Mapping[str, Any]) -> list[Row]:
    rows = [(f"bf16 matrix product, {part['device']}", f"{part['matrix_flops'] / 1e12:.0f} TFLOP/s", "")]
    for name, row in part["subjects"].items():
        memory, parquet = row["images_per_second"], row["parquet_images_per_second"]
        rows += [
            (f"GRPO-RM in memory, {name}", f"{_spread(memory, 0)} images/s", ""),
            (
                "of the matrix product's rate",
                f"{_spread(row['utilization'])}, {row['gflop_per_image']:.1f} GFLOP an image",
                "",
            ),
            ("peak memory", f"{row['peak_memory_gib']:.1f} GiB", ""),
            ("end to end from Parquet", f"{_spread(parquet, 0)} images/s", ""),
        ]
    return rows


def _spread(values: Mapping[str, float], digits: int = 3) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"
