"""Expectations on rows, whose failures name the rows and show the images."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

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

from pipelines.validation.expectations.rendering import InDataDocs, render_template, render_text
from pipelines.validation.report import MAX_NAMED, say_cut

OTHER_LABEL = ("same_image_with_other_label", "near_duplicate_with_other_label")
OTHER_IMAGE = ("copy_of", "same_image_in_other_split", "near_duplicate_in_other_split", *OTHER_LABEL)  # hold ids


class Shown(NamedTuple):
    """An image on the page: its picture (a data: URI) and the name of its class, "" where there is none."""

    picture: str
    label: str


# The images on the page under construction, by their ids: renderers get an outcome, nothing else.
shown: ContextVar[Mapping[str, Shown]] = ContextVar("shown")
IMAGE_STYLE = {"display": "block", "max-width": "80px", "image-rendering": "pixelated", "border": "1px solid #ccc"}
PLACEHOLDER_STYLE = {
    "width": "80px",
    "padding": "1.5em 0",
    "border": "1px dashed #999",
    "color": "#666",
    "font-size": "0.75em",
    "text-align": "center",
}


class NamesRows(InDataDocs):
    """Shows up to ten rows that are not as expected: the image where there is one, the id, and what was observed."""

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_TABLE)
    def _diagnostic_unexpected_table_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,  # noqa: ARG003
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG003
    ) -> list[RenderedTableContent | CollapseContent] | None:
        assert result is not None
        assert result.expectation_config is not None
        outcome: Any = result.to_json_dict()  # rows are a data frame in the outcome itself
        rows = outcome["result"].get("unexpected_rows", [])[:MAX_NAMED]
        if not rows:
            return None
        column = result.expectation_config.kwargs["column"]
        table = [[*_cells(row["id"], column), *_cells(row[column], column, is_observed=True)] for row in rows]
        images = ["image"] * (len(table[0]) - 2)
        header = [*images[:1], "id", *images[1:], column.replace("_", " ")]
        return [RenderedTableContent(content_block_type="table", table=table, header_row=header)]

    @classmethod
    def _observed(cls, result: ExpectationValidationResult) -> str:
        count, num_rows = result.result["unexpected_count"], result.result["element_count"]
        if count == num_rows:  # 100 % says nothing: where files were left out, each row is one of these
            return f"{count:,}"
        percent = f" ({100 * count / num_rows:.3g} %)" if count else ""
        return f"{count:,} of {num_rows:,}{percent}"

    @classmethod
    def _lines(cls, result: ExpectationValidationResult) -> list[str]:
        cut = say_cut(result.result["unexpected_count"])
        return [cut] if cut else []


class ExpectNamedValuesToBeUnique(NamesRows, gxe.ExpectColumnValuesToBeUnique):
    """No value of a column is there twice."""


class ExpectNamedValuesToBeInSet(NamesRows, gxe.ExpectColumnValuesToBeInSet):
    """The values of a column are among these."""


class ExpectNamedValuesToBeBetween(NamesRows, gxe.ExpectColumnValuesToBeBetween):
    """The numbers of a column are within limits."""


class ExpectNamedValuesToBeNull(NamesRows, gxe.ExpectColumnValuesToBeNull):
    """A column that says what is wrong is empty."""


def _cells(value: Any, column: str, *, is_observed: bool = False) -> list[RenderedStringTemplateContent]:
    """An id, or what was observed, under its picture where it is an image; with its label where two differ."""
    image = shown.get().get(value) if column in OTHER_IMAGE or not is_observed else None
    if image is None:
        return [_text(value)]
    label = f" ({image.label})" if column in OTHER_LABEL else ""
    return [_picture(image.picture), _text(f"{value}{label}")]


def _picture(uri: str) -> RenderedStringTemplateContent:
    if uri:
        # not as a parameter: these are escaped and made into text; base64 has no character to escape
        tag = {"tag": "img", "styling": {"attributes": {"src": uri}, "styles": IMAGE_STYLE}}
        return render_template({"template": "", **tag})
    return render_template({"template": "no image", "tag": "div", "styling": {"styles": PLACEHOLDER_STYLE}})


def _text(value: object) -> RenderedStringTemplateContent:
    return render_text(f"{value:g}" if isinstance(value, float) else str(value))
