"""Expectations on the distance between two versions of a column, which Great Expectations does not have.

The table has the rows of both versions, and a column `is_previous` that says which.
"""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.execution_engine import ExecutionEngine, PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation
from great_expectations.expectations.metrics import ColumnAggregateMetricProvider
from great_expectations.expectations.metrics.metric_provider import metric_value
from numpy.typing import NDArray

from pipelines.validation.drift import count_in_bins, kolmogorov_smirnov, population_stability_index
from pipelines.validation.expectations.rendering import InDataDocs

PSI, KS = "column.population_stability_index", "column.kolmogorov_smirnov"
MAX_CHANGES = 5
Distance = dict[str, Any]  # distance, means (in words), changes


class ColumnPopulationStabilityIndex(ColumnAggregateMetricProvider):
    """Of the numbers of a column, or of how much there is of each category."""

    metric_name = PSI
    value_keys = ("amount_column",)

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],  # noqa: ARG002
        runtime_configuration: dict[str, Any],  # noqa: ARG002
    ) -> Distance:
        rows, column = execution_engine.get_domain_records(metric_domain_kwargs), metric_domain_kwargs["column"]
        if amount := metric_value_kwargs["amount_column"]:
            table = rows.pivot(index=column, columns="is_previous", values=amount)
            table = table.reindex(columns=[True, False]).fillna(0.0)
            counts = table[True].to_numpy(), table[False].to_numpy()
            return {"distance": population_stability_index(*counts), "means": "", "changes": _largest_changes(table)}
        versions = _versions(rows, column)
        distance = population_stability_index(*count_in_bins(*versions))
        return {"distance": distance, "means": _say_means(*versions), "changes": []}


class ColumnKolmogorovSmirnov(ColumnAggregateMetricProvider):
    """The two-sample statistic of the numbers of a column."""

    metric_name = KS
    value_keys = ()

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],  # noqa: ARG002
        metrics: dict[str, Any],  # noqa: ARG002
        runtime_configuration: dict[str, Any],  # noqa: ARG002
    ) -> Distance:
        rows = execution_engine.get_domain_records(metric_domain_kwargs)
        versions = _versions(rows, metric_domain_kwargs["column"])
        return {"distance": kolmogorov_smirnov(*versions), "means": _say_means(*versions), "changes": []}


class ColumnDistance(InDataDocs, ColumnAggregateExpectation):
    """A distance between the two versions of a column is at most `max_value`.

    Attributes:
        max_value: The largest distance that is no failure.
    """

    max_value: float
    symbol: ClassVar[str]
    metric_dependencies: ClassVar[tuple[str, ...]] = ()
    success_keys: ClassVar[tuple[str, ...]] = ("max_value",)
    args_keys = ("column", "max_value")

    @classmethod
    def is_abstract(cls) -> bool:
        return not cls.metric_dependencies

    def _validate(
        self,
        metrics: dict[str, Distance],
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG002
        execution_engine: ExecutionEngine[Any] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        found = metrics[self.metric_dependencies[0]]
        distance = round(found["distance"], 4)
        words = f"{self.symbol} of {self.column} {distance:g}, at most {self.max_value:g}{found['means']}"
        details = {"words": words, "changes": found["changes"]}
        return {"success": distance <= self.max_value, "result": {"observed_value": distance, "details": details}}

    @classmethod
    def _observed(cls, result: ExpectationValidationResult) -> str:
        return str(result.result["details"]["words"])

    @classmethod
    def _lines(cls, result: ExpectationValidationResult) -> list[str]:
        changes = [] if result.success else result.result["details"]["changes"]
        return [f"{name}: {change}" for name, change in changes]


class ExpectColumnPsiToBeLessThan(ColumnDistance):
    """The population stability index is at most `max_value`.

    Attributes:
        amount_column: For categories: the column that says how much there is of each; None: the column has numbers.
    """

    amount_column: str | None = None
    symbol = "PSI"
    metric_dependencies = (PSI,)
    success_keys = ("max_value", "amount_column")


class ExpectColumnKsToBeLessThan(ColumnDistance):
    """The Kolmogorov-Smirnov statistic is at most `max_value`."""

    symbol = "KS"
    metric_dependencies = (KS,)


def _versions(rows: pd.DataFrame, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, is_previous = rows[column].to_numpy(), rows["is_previous"].to_numpy()
    is_known = ~np.isnan(values)
    return values[is_previous & is_known], values[~is_previous & is_known]


def _say_means(previous: NDArray[np.float64], present: NDArray[np.float64]) -> str:
    before, now = (f"{part.mean(dtype=np.float64):.3g}" if len(part) else "unknown" for part in (previous, present))
    return f" (mean {before} before, {now} now)"


def _largest_changes(amounts: pd.DataFrame) -> list[tuple[str, str]]:
    """The categories whose shares changed most, each with both."""
    shares = 100 * amounts / amounts.sum().clip(lower=1)
    order = (shares[True] - shares[False]).abs().sort_values(ascending=False, kind="stable").index[:MAX_CHANGES]
    return [(str(name), f"{shares[True][name]:.3g} % before, {shares[False][name]:.3g} % now") for name in order]
