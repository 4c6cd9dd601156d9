"""JSON of strangers. A parser makes an object of each value and lets no other thread run meanwhile: so few are allowed.

A million numbers or arrays take some 25 ms, keys 400 ms.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Any

import orjson

MAX_VALUES, MAX_KEYS = 1_250_000, 1_000  # the first is above one nested image of 518 x 518 x 3

_collector = threading.Lock()


def parse_json(text: bytes) -> Any:
    """Return what a text says.

    Raises:
        ValueError: It is no JSON, or has too many values, which is noticed before any is made.
    """
    values = sum(map(text.count, (b",", b"[", b"{")))  # no fewer than there are
    if values > MAX_VALUES or text.count(b":") > MAX_KEYS:
        raise ValueError(
            f"the JSON has more than {MAX_VALUES:,} values or {MAX_KEYS:,} keys: send binary data, or fewer images"
        )
    try:
        with _garbage_uncollected():
            return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the JSON cannot be read: {error}") from error


@contextlib.contextmanager
def _garbage_uncollected() -> Iterator[None]:
    """Searching a million new arrays for garbage takes five times as long as making them."""
    with _collector:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()
