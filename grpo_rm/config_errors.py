"""What pydantic finds wrong, said as a line for each mistake: the key, what was got, what was expected."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

KEY = "[key]"  # what pydantic puts behind the name of an entry where the name is wrong, and not its value


def explain(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """Return a line for each mistake; a key that is missing because it was misspelled is one mistake, not two."""
    details = error.errors()
    explained = [_explain(detail, schema) for detail in details]
    meant = {line.rpartition("did you mean ")[2].rstrip("?") for line in explained if "did you mean" in line}
    is_missing = [detail["type"] == "missing" and detail["loc"][-1] in meant for detail in details]
    return [line for line, skip in zip(explained, is_missing, strict=True) if not skip]


def several(mistakes: Mapping[tuple[str, ...], str]) -> ValidationError:
    """Return an error with several mistakes, for a validator of more than one entry.

    Args:
        mistakes: Names of entries, each with all its parents, to what is wrong with them.
    """
    details = [
        InitErrorDetails(type=PydanticCustomError("name", "{why}", {"why": why}), loc=(*name, KEY), input=None)
        for name, why in mistakes.items()
    ]
    return ValidationError.from_exception_data("entries", details)


def nearest(key: str, known: Sequence[str]) -> str:
    """Return which of the known names may have been meant, or all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def keys_of(block: type[BaseModel], parents: Sequence[int | str] = ()) -> list[str]:
    """Return the keys of a block, or of one within it."""
    for parent in parents:
        field = next(f for n, f in block.model_fields.items() if (f.alias or n) == parent)
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        block = field.annotation
    return [field.alias or name for name, field in block.model_fields.items()]


def _explain(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    is_of_key = detail["loc"][-1:] == (KEY,)
    loc = detail["loc"][:-1] if is_of_key else detail["loc"]
    name = ".".join(str(part) for part in loc)
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown key; {nearest(str(loc[-1]), keys_of(schema, loc[:-1]))}"
    if detail["type"] == "missing":
        return f"{name}: missing; add it (the repository's params.yaml shows every key with a comment)"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not loc:
        return message
    got = "" if is_of_key or isinstance(detail["input"], dict) else f"got {detail['input']!r}, "
    expected = message if "expected" in message or not got else f"expected {message}"
    return f"{name}: {got}{expected}"
