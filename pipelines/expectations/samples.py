"""Expectations on rows, whose failures name the rows and show the images."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import great_expectations.expectations as gxe
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render import (
    CollapseContent,
    LegacyDiagnosticRendererType,
    RenderedStringTemplateContent,
    RenderedTableContent,
)
from great_expectations.render.renderer.renderer import renderer

from pipelines.validation_report import MAX_NAMED

# Of the images that the pages under construction may show: renderers get the outcome of an expectation, nothing else.
thumbnails: ContextVar[Mapping[str, str] | None] = ContextVar("thumbnails", default=None)
IMAGE_STYLE = {"display": "block", "max-width": "80px", "image-rendering": "pixelated"}
PLACEHOLDER_STYLE = {
    "width": "80px",
    "padding": "1.5em 0",
    "border": "1px dashed #999",
    "color": "#666",
    "font-size": "0.75em",
    "text-align": "center",
}
TABLE_STYLE = {"body": {"classes": ["table", "table-bordered", "table-sm", "mt-3"], "styles": {"width": "auto"}}}


class NamesRows:
    """Shows up to ten rows that are not as expected: the image where there is one, the id, and what was observed."""

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_TABLE)
    def _diagnostic_unexpected_table_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,  # noqa: ARG003
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG003
    ) -> list[RenderedTableContent | CollapseContent] | None:
        if result is None or not (rows := result.result.get("unexpected_rows")):
            return None
        assert result.expectation_config is not None
        column = result.expectation_config.kwargs["column"]
        pictures = thumbnails.get()
        table = [[*_picture(pictures, row["id"]), _text(row["id"]), _text(row[column])] for row in rows[:MAX_NAMED]]
        header = [*([] if pictures is None else ["image"]), "id", column.replace("_", " ")]
        return [RenderedTableContent(content_block_type="table", table=table, header_row=header, styling=TABLE_STYLE)]


class ExpectNamedValuesToBeUnique(NamesRows, gxe.ExpectColumnValuesToBeUnique):
    """No value of a column is there twice."""


class ExpectNamedValuesToBeInSet(NamesRows, gxe.ExpectColumnValuesToBeInSet):
    """The values of a column are among these."""


class ExpectNamedValuesToBeBetween(NamesRows, gxe.ExpectColumnValuesToBeBetween):
    """The numbers of a column are within limits."""


class ExpectNamedValuesToBeNull(NamesRows, gxe.ExpectColumnValuesToBeNull):
    """A column that says what is wrong is empty."""


def _picture(pictures: Mapping[str, str] | None, image_id: str) -> list[RenderedStringTemplateContent]:
    if pictures is None:
        return []
    if image_id in pictures:
        # not as a parameter: these are escaped and made into text; base64 has no character to escape
        tag = {"tag": "img", "styling": {"attributes": {"src": pictures[image_id]}, "styles": IMAGE_STYLE}}
        return [_content({"template": "", **tag})]
    return [_content({"template": "no image", "tag": "div", "styling": {"styles": PLACEHOLDER_STYLE}})]


def _text(value: object) -> RenderedStringTemplateContent:
    """Show any text as it is: ids come from file names, and a name may hold HTML. Parameters alone are escaped."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _content({"template": "$value", "params": {"value": text}})


def _content(template: dict[str, Any]) -> RenderedStringTemplateContent:
    return RenderedStringTemplateContent(content_block_type="string_template", string_template=template)
