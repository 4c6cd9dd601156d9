"""The tables of docs/experiments.md, from the two Parquet files beside this one: `python -m study.tables`."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grpo_rm.evaluation.comparison import holm
from pipelines.stage import run_stage
from study.arms import ARMS, CONTROL, COST_WEIGHTED
from study.comparisons import read_comparisons
from study.protocol import COST_METRICS, EMBEDDING_CRITERIA, Row
from study.results import read_results
from study.tasks import NAMES

HEADS = ("accuracy", "miou")  # a task has one of them
DECIDING = (*HEADS, *EMBEDDING_CRITERIA)  # by which an arm is judged, and which Holm's correction is over
COLUMNS = (  # title, names of metrics of which a row has one, factor, digits
    ("head", HEADS, 100, 2),
    ("k-NN", EMBEDDING_CRITERIA[:1], 100, 2),
    ("probe", EMBEDDING_CRITERIA[1:], 100, 2),
    ("worst class", ("worst_class_accuracy",), 100, 1),
    ("ECE", ("ece",), 100, 2),
    ("ECE after temperature", ("ece_calibrated",), 100, 2),
    ("NLL", ("nll",), 1, 3),
)
BAR_TASKS, MARGIN = 6, 0.005  # tasks with better embeddings, and how much worse the head may be


def main() -> None:
    """Print all tables."""
    finals = [row for row in read_results() if row["stage"] == "final"]
    comparisons = read_comparisons()
    costs = [row for row in comparisons if row["metric"] in COST_METRICS]
    general = [row for row in comparisons if row["task"] not in {row["task"] for row in costs}]
    summaries = [cost_table(finals, costs), geometry_table(finals), difference_table(general), bar_table(general)]
    print("\n\n".join([*task_tables(finals), *summaries]))


def task_tables(finals: Sequence[Row]) -> list[str]:
    """Return a table per task: mean (standard deviation) over seeds of each arm on test."""
    header = ["arm", "learning rate", "n", *(title for title, *_ in COLUMNS), "steps to the control's best"]
    tables = []
    for task in NAMES:
        of_task = [row for row in finals if row["task"] == task]
        if of_task:
            rows = [arm_line(of_task, arm) for arm in ARMS if any(row["arm"] == arm for row in of_task)]
            tables.append(f"### {task}\n\n{markdown(header, rows)}")
    return tables


def arm_line(of_task: Sequence[Row], arm: str) -> list[str]:
    """Return the cells of an arm."""
    rows = [row for row in of_task if row["arm"] == arm]
    trained = [row for row in rows if "error" not in row]
    count = str(len(trained)) if len(trained) == len(rows) else f"{len(trained)}, {len(rows) - len(trained)} diverged"
    cells = [mean_cell(trained, names, factor, digits) for _, names, factor, digits in COLUMNS]
    return [arm, f"{rows[0]['learning_rate']:g}", count, *cells, steps_cell(of_task, trained)]


def mean_cell(rows: Iterable[Row], names: Sequence[str], factor: int, digits: int) -> str:
    """Return mean (standard deviation) of the metric that rows have."""
    values = [factor * row[f"test/{name}"] for row in rows for name in names if f"test/{name}" in row]
    if not values:
        return ""
    deviation = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def steps_cell(of_task: Sequence[Row], rows: Iterable[Row]) -> str:
    """Return the median over seeds of `steps_to_control` over the control's own; "never" where most never are."""
    controls = {row["seed"]: row for row in of_task if row["arm"] == CONTROL and "error" not in row}
    shares = [
        steps_to_control(row, control) / (steps_to_control(control, control))
        for row in rows
        if (control := controls.get(row["seed"]))
    ]
    if not shares:
        return ""
    median = statistics.median_high(shares)
    return "never" if math.isinf(median) else f"{median:.2f}"


def steps_to_control(row: Row, control: Row) -> float:
    """Return the steps until validation is as good as the best epoch of the control; infinite where it never is."""
    name = next(f"curve/val_{head}" for head in HEADS if f"curve/val_{head}" in control)
    goal = max(control[name])
    reached = [step for step, value in zip(row["curve/step"], row[name], strict=True) if value >= goal]
    return reached[0] if reached else math.inf


GEOMETRY = ("alignment", "uniformity", "effective_rank")


def geometry_table(finals: Sequence[Row]) -> str:
    """Return how the embeddings of test images lie, mean (standard deviation) over seeds; not of places of pixels."""
    rows = []
    for task, arm in itertools.product(NAMES, ARMS):
        of_arm = [row for row in finals if (row["task"], row["arm"]) == (task, arm) and "test/alignment" in row]
        if of_arm:
            rows.append([task, arm, str(len(of_arm)), *(mean_cell(of_arm, [name], 1, 2) for name in GEOMETRY)])
    return f"### Geometry\n\n{markdown(['task', 'arm', 'n', 'alignment', 'uniformity', 'effective rank'], rows)}"


def cost_table(finals: Sequence[Row], comparisons: Sequence[Row]) -> str:
    """Return what decisions for the likeliest class cost, and those for the class of least expected cost, of each arm.

    Beside it the differences to the baselines, with intervals over seeds and images, and p after Holm over the table.
    """
    family = [row for row in comparisons if (row["baseline"], row["baseline_metric"]) in BASELINES]
    corrected = holm([row["p_value"] for row in family])
    differences = {
        (row["arm"], row["metric"], row["baseline"], row["baseline_metric"]): (row, p_value)
        for row, p_value in zip(family, corrected, strict=True)
    }
    rows = []
    for arm, metric in itertools.product(ARMS, COST_METRICS):
        values = [row[f"test/{metric}"] for row in finals if row["arm"] == arm and f"test/{metric}" in row]
        if values:
            spread = f" ({statistics.stdev(values):.4f})" if len(values) > 1 else ""
            cells = [cost_cell(differences.get((arm, metric, *baseline))) for baseline in BASELINES]
            rows.append([arm, RULES[metric], str(len(values)), f"{statistics.mean(values):.4f}{spread}", *cells])
    header = ["arm", "decision", "n", "expected cost", *(f"- {name}, {RULES[metric]}" for name, metric in BASELINES)]
    return f"### What decisions cost\n\n{markdown(header, rows)}"


BASELINES = ((CONTROL, COST_METRICS[0]), (CONTROL, COST_METRICS[1]), (COST_WEIGHTED, COST_METRICS[0]))
RULES = dict(zip(COST_METRICS, ("likeliest", "least cost"), strict=True))


def cost_cell(known: tuple[Row, float] | None) -> str:
    """Return a difference, its interval and its p; nothing where it is not known."""
    if known is None:
        return ""
    row, p_value = known
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}, p {p_value:.3f})"


def difference_table(comparisons: Sequence[Row]) -> str:
    """Return the differences to the control in points, with intervals over seeds and images, and p after Holm."""
    rows = []
    for arm in ARMS:
        corrected = correct_arm(comparisons, arm)
        for task in NAMES:
            known = {row["metric"]: row for row in comparisons if (row["task"], row["arm"]) == (task, arm)}
            if known:
                cells = [difference_cell(known, names, corrected) for names in DIFFERENCES]
                rows.append([task, arm, str(next(iter(known.values()))["seeds"]), *cells])
    header = ["task", "arm", "n", "head", "k-NN", "probe", "ECE"]
    return f"### Differences to {CONTROL}\n\n{markdown(header, rows)}"


DIFFERENCES = (HEADS, EMBEDDING_CRITERIA[:1], EMBEDDING_CRITERIA[1:], ("ece",))


def difference_cell(known: dict[str, Row], names: Sequence[str], corrected: dict[tuple[str, str], float]) -> str:
    """Return the difference of the metric that is known, its interval, and its p."""
    row = next((known[name] for name in names if name in known), None)
    if row is None:
        return ""
    p_value = corrected.get((row["task"], row["metric"]))
    said = "" if p_value is None else f", p {p_value:.3f}"
    return f"{100 * row['difference']:+.2f} ({100 * row['low']:+.2f} to {100 * row['high']:+.2f}{said})"


def correct_arm(comparisons: Sequence[Row], arm: str) -> dict[tuple[str, str], float]:
    """Return p after Holm over all tasks and deciding metrics of an arm, by task and metric."""
    family = [row for row in comparisons if row["arm"] == arm and row["metric"] in DECIDING]
    p_values = [1.0 if math.isnan(row.get("p_value", 1.0)) else row.get("p_value", 1.0) for row in family]
    return {(row["task"], row["metric"]): p_value for row, p_value in zip(family, holm(p_values), strict=True)}


@dataclass(frozen=True)
class Bar:
    """How an arm does on all tasks.

    Attributes:
        tasks: On how many it was compared.
        knn: On how many of them k-NN is above the control's, by an interval above 0.
        probe: The same of the probe.
        both: On how many both are.
        worst_head: The lowest difference of the head.
        ece_worse: On how many tasks ECE is higher, by an interval above 0.
    """

    tasks: int
    knn: int
    probe: int
    both: int
    worst_head: float
    ece_worse: int

    @property
    def is_met(self) -> bool:
        """Whether both embedding metrics are above on enough tasks, and head and ECE are worse on none."""
        return self.both >= BAR_TASKS and self.worst_head >= -MARGIN and self.ece_worse == 0


def count_bar(comparisons: Sequence[Row], arm: str) -> Bar:
    """Return how an arm does; it was compared on a task or more."""
    by_name = {(row["task"], row["metric"]): row for row in comparisons if row["arm"] == arm}

    def above(metric: str) -> set[str]:
        return {task for (task, name), row in by_name.items() if name == metric and row["low"] > 0}

    knn, probe = (above(metric) for metric in EMBEDDING_CRITERIA)
    return Bar(
        tasks=len({task for task, _ in by_name}),
        knn=len(knn),
        probe=len(probe),
        both=len(knn & probe),
        worst_head=min(row["difference"] for (_, name), row in by_name.items() if name in HEADS),
        ece_worse=len(above("ece")),
    )


def bar_table(comparisons: Sequence[Row]) -> str:
    """Return a line per arm: on how many tasks it is above the control."""
    rows = []
    for arm in ARMS:
        if any(row["arm"] == arm for row in comparisons):
            bar = count_bar(comparisons, arm)
            counts = [str(count) for count in (bar.tasks, bar.knn, bar.probe, bar.both)]
            head = f"{100 * bar.worst_head:+.2f}"
            rows.append([arm, *counts, head, str(bar.ece_worse), "yes" if bar.is_met else "no"])
    header = ["arm", "tasks", "k-NN above", "probe above", "both above", "worst head", "ECE worse", "bar met"]
    return f"### The bar\n\n{markdown(header, rows)}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    run_stage(main, description=__doc__)
