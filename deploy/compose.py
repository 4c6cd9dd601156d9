"""What compose does with the variables of compose.yaml, for checks without an engine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

EXPRESSION = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-?])([^}]*))?\})")


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Puts variables in: ${A}, ${A:-default}, ${A:?message}; $$ is a dollar.

    Raises:
        ValueError: a variable that is required, or has no default, and is not set.
    """

    def found(match: re.Match[str]) -> str:
        escaped, name, operator, rest = match.groups()
        if escaped:
            return "$"
        if variables.get(name):
            return variables[name]
        if operator == ":-":
            return str(rest)
        raise ValueError(f"${{{name}}} is not set: {rest or 'expected a value or a default'}")

    return EXPRESSION.sub(found, text)


def load(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml as compose sees it, anchors and variables resolved.

    Raises:
        ValueError: a variable that is required and not set.
    """
    document: dict[str, Any] = yaml.safe_load(interpolate(path.read_text(), variables))
    return document


def required_variables(path: Path) -> list[str]:
    """The names that .env.example asks for; those behind a # are optional."""
    return re.findall(r"^(\w+)=", path.read_text(), flags=re.MULTILINE)
