"""A reader for the part of the Dockerfile language that ours uses. What it does not know is an error, never a guess."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

KNOWN = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction, e.g. `COPY --from=build a b`: name COPY, flags {"from": ["build"]}, value "a b"."""

    name: str
    flags: dict[str, list[str]]
    value: str
    line: int


@dataclass(frozen=True)
class Stage:
    """The instructions from one FROM to the next; `base` is an image or the name of an earlier stage."""

    name: str
    base: str
    instructions: list[Instruction]


def logical_lines(text: str) -> list[tuple[int, str]]:
    """Joins what a backslash continues, without comments and empty lines; each with the number of its first line."""
    lines: list[tuple[int, str]] = []
    start, pending = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if pending else number
        pending += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            lines.append((start, pending.strip()))
            pending = ""
    if pending:
        raise ValueError(f"line {start}: the file ends within an instruction, expected a line without a last backslash")
    return lines


def parse_instruction(number: int, line: str) -> Instruction:
    """Splits a logical line into name, flags and value.

    Raises:
        ValueError: an instruction, or a heredoc, that this reader does not know.
    """
    name, _, rest = line.partition(" ")
    if name not in KNOWN:
        raise ValueError(f"line {number}: got the instruction {name}, expected one of {', '.join(sorted(KNOWN))}")
    if name in {"RUN", "COPY"} and "<<" in rest:
        raise ValueError(f"line {number}: got a heredoc, expected a plain {name}")
    flags: dict[str, list[str]] = {}
    while (rest := rest.lstrip()).startswith("--"):
        flag, _, rest = rest.partition(" ")
        key, _, value = flag.removeprefix("--").partition("=")
        flags.setdefault(key, []).append(value)
    return Instruction(name, flags, rest, number)


def parse(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in order.

    Raises:
        ValueError: something this reader does not know, e.g. an instruction before the first FROM.
    """
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for instruction in (parse_instruction(*line) for line in logical_lines(text)):
        if instruction.name == "FROM":
            words = instruction.value.split()
            if len(words) != 3 or words[1] != "AS":
                raise ValueError(f"line {instruction.line}: got FROM {instruction.value}, expected FROM image AS name")
            current = stages[words[2]] = Stage(words[2], words[0], [])
        elif current is None:
            raise ValueError(f"line {instruction.line}: got {instruction.name}, expected FROM first")
        else:
            current.instructions.append(instruction)
    return stages


def substitute(value: str, variables: Mapping[str, str]) -> str:
    """Puts the values of ARG and ENV in the place of $NAME and ${NAME}.

    Raises:
        ValueError: a variable that is not set.
    """

    def found(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise ValueError(f"got ${name}, expected one of {', '.join(sorted(variables)) or 'no variable'}")
        return variables[name]

    return VARIABLE.sub(found, value)


def assignments(value: str, variables: Mapping[str, str]) -> dict[str, str]:
    """What `ENV A=1 B="two words"` or `ARG A=1` sets."""
    pairs = (word.partition("=") for word in shlex.split(value))
    return {name: substitute(text, variables) for name, _, text in pairs}


def command(value: str) -> list[str]:
    """The words of a CMD, ENTRYPOINT or HEALTHCHECK in its JSON form.

    Raises:
        ValueError: the shell form, whose signals would end at a shell.
    """
    value = value.removeprefix("CMD ").strip()
    if not value.startswith("["):
        raise ValueError(f'got {value}, expected the JSON form: ["program", "argument"]')
    return [str(word) for word in json.loads(value)]


def built_from(stages: Mapping[str, Stage], target: str) -> list[str]:
    """The stages that a target is built from, itself last, each after what it needs."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in stages and name not in order:
            sources = [source for step in stages[name].instructions for source in step.flags.get("from", [])]
            for needed in (stages[name].base, *sources):
                visit(needed)
            order.append(name)

    visit(target)
    return order
