"""What came of an expectation."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExpectationResult:
    """The outcome of one expectation on one table.

    Attributes:
        table: See `pipelines.validation.expectations`.
        name: Great Expectations' name of the expectation.
        column: The column it looks at.
        description: What is expected, in words.
        fix: What to do where it fails, in words.
        severity: `critical` (stops the pipeline) or `warning`.
        success: Whether it holds. It may hold with unexpected rows, where a share of them is tolerated.
        element_count: Rows looked at; 0 where the column is looked at as a whole.
        unexpected_count: Those of them that are not as expected.
        observed: Of a column that is looked at as a whole: what was found, and the limit, in words. Else "".
        samples: Up to 100 unexpected rows: the `id` and the observed value of `column`. Of a column that is looked at
            as a whole, what changed most.
    """

    table: str
    name: str
    column: str
    description: str
    fix: str
    severity: str
    success: bool
    element_count: int
    unexpected_count: int
    observed: str
    samples: list[tuple[str, Any]]

    @property
    def unexpected_percent(self) -> float:
        """Unexpected rows in percent of the rows looked at; 0 where there are none to look at."""
        return round(100.0 * self.unexpected_count / self.element_count, 4) if self.element_count else 0.0
