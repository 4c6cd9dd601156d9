"""The Data Docs: all outcomes on one page that needs no network.

Great Expectations' own site is empty without one, as scripts and styles of its pages come from other hosts. This page
has its tables, rendered by it, in a frame of ours.
"""

import html
from collections.abc import Iterable

from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.render.renderer.content_block import ValidationResultsTableContentBlockRenderer
from great_expectations.render.view import DefaultJinjaComponentView

from pipelines.validation.report import printable

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data Docs</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.6rem 1rem 0.6rem 0; border-bottom: 1px solid #ddd; }}
td table {{ width: auto; margin-top: 0.5rem; font-size: 0.9em; }}
td table th, td table td {{ padding: 0.25rem 1rem 0.25rem 0; vertical-align: middle; }}
p, td {{ overflow-wrap: anywhere; }}
td table td {{ min-width: 6rem; }}
td:first-child, th:first-child {{ white-space: nowrap; }}
td table td:first-child {{ white-space: normal; }}
.critical {{ color: #b00020; font-weight: bold; }}
.warning {{ color: #8a5a00; font-weight: bold; }}
.held {{ color: #666; }}
.line {{ display: block; }}
@media (max-width: 50rem) {{
  table, tbody, tr, td {{ display: block; width: auto; }}
  th {{ display: none; }}
  td, td table td {{ border: 0; padding: 0.15rem 0; min-width: 0; }}
  tr {{ border-bottom: 1px solid #ddd; padding: 0.6rem 0; }}
}}
</style>
</head>
<body>
<h1>Data Docs</h1>
<p>{title}</p>
<p>{comparison}</p>
{table}
<footer><p class="held">Rendered by Great Expectations.</p></footer>
</body>
</html>
"""


def render_page(outcomes: Iterable[ExpectationValidationResult], *, title: str, comparison: str) -> str:
    """Return the page, with what failed first, and of that what is critical, under these two lines."""
    ordered = sorted(outcomes, key=_urgency)
    block = ValidationResultsTableContentBlockRenderer.render(ordered)
    assert block is not None  # there are expectations
    table = DefaultJinjaComponentView().render({"content_block": block.to_json_dict()})  # type: ignore[no-untyped-call]
    return PAGE.format(title=html.escape(title), comparison=html.escape(printable(comparison)), table=table)


def _urgency(outcome: ExpectationValidationResult) -> tuple[bool, str]:
    assert outcome.expectation_config is not None
    return bool(outcome.success), outcome.expectation_config.severity.value  # "critical" < "warning"
