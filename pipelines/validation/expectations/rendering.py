"""What every expectation says in the Data Docs: how severe a failure is, what was observed, and how to fix it."""

from abc import abstractmethod
from typing import Any

from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render import CollapseContent, LegacyDiagnosticRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer

from pipelines.validation.report import printable


class InDataDocs:
    """Has the severity beside the status, the fix below the expectation, and what a kind of expectation adds."""

    @classmethod
    @abstractmethod
    def _observed(cls, result: ExpectationValidationResult) -> str:
        """What was observed, beside the expectation."""

    @classmethod
    @abstractmethod
    def _lines(cls, result: ExpectationValidationResult) -> list[str]:
        """What is said below the fix."""

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.STATUS_ICON)
    def _diagnostic_status_icon_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,  # noqa: ARG003
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG003
    ) -> RenderedStringTemplateContent:
        assert result is not None
        assert result.expectation_config is not None
        severity = result.expectation_config.severity.value
        mark, css_class = ("✔", "held") if result.success else ("✘", severity)
        return render_text(f"{mark} {severity}", css_class=css_class)

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_STATEMENT)
    def _diagnostic_unexpected_statement_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,  # noqa: ARG003
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG003
    ) -> list[RenderedStringTemplateContent | CollapseContent]:
        assert result is not None
        assert result.expectation_config is not None
        when, css_class = ("where it fails", "line held") if result.success else ("fix", "line")
        fix = render_text(f"{when}: {result.expectation_config.notes}", css_class=css_class)
        return [fix, *(render_text(line, css_class="line") for line in cls._lines(result))]

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.OBSERVED_VALUE)
    def _diagnostic_observed_value_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,  # noqa: ARG003
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG003
        **kwargs: Any,  # noqa: ARG003
    ) -> str:
        assert result is not None
        return cls._observed(result)


def render_text(text: str, *, css_class: str = "") -> RenderedStringTemplateContent:
    """Show any text as it is: a name of a file or class may hold HTML, or turn the direction of the text.

    Parameters alone are escaped.
    """
    return render_template(
        {"template": "$value", "params": {"value": printable(text)}, "styling": {"classes": [css_class]}}
    )


def render_template(template: dict[str, Any]) -> RenderedStringTemplateContent:
    return RenderedStringTemplateContent(content_block_type="string_template", string_template=template)
