"""Tensors of the Open Inference Protocol: the body of a request to images, the model's answer to a body.

A tensor is in the JSON, or, by Triton's extension for binary data, after it: little-endian, row by row, in the order of
the JSON. Images come as `images`, the array that the ONNX file takes, or as `files`, still encoded: an extension of
ours, for clients that do not decode as the training did.
"""

import base64
import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.bounded_json import parse_json
from serving.model import INPUT, OUTPUTS, Prediction

FILES = "files"
KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a whole number",
    bool: "true or false",
}
Json = dict[str, Any]
T = TypeVar("T")


class TensorError(ValueError):
    """A request that cannot be answered; the message is for the one who sent it."""


@dataclass(frozen=True)
class Output:
    """An output to return.

    Attributes:
        name: `embedding` or `logits`.
        is_binary: After the JSON instead of in it.
        num_classes: Return so many classes, the highest first, each as "VALUE:INDEX:NAME"; 0 returns the numbers.
    """

    name: str
    is_binary: bool
    num_classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request.

    Attributes:
        id: To be repeated in the response; None where there is none.
        images: (N, H, W, C) uint8, or N image files.
        outputs: What to return, in this order.
    """

    id: str | None
    images: NDArray[np.uint8] | list[bytes]
    outputs: Sequence[Output]


def decode_request(
    body: bytes, json_size: int, *, shapes: Mapping[str, tuple[int, ...]], max_images: int
) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, then binary data, if any.
        json_size: How many bytes of it are JSON.
        shapes: Of the input and the outputs, for one image.
        max_images: N may be.

    Raises:
        TensorError: It is not as the protocol or the model wants it.
    """
    content = _read_json(body if json_size == len(body) else body[:json_size])
    defaults = _parameters(content, ("binary_data_output",), "the request")
    inputs = _objects(content, "inputs")
    if len(inputs) != 1:
        raise TensorError(f"there are {len(inputs)} inputs, expected one: {INPUT}, or {FILES}")
    images = _read_input(inputs[0], memoryview(body)[json_size:], shapes[INPUT], max_images)
    is_binary = _member(defaults, "binary_data_output", bool, "parameters") or False
    requested = _objects(content, "outputs") or [{"name": name} for name in OUTPUTS]
    outputs = [_read_output(entry, shapes, is_binary=is_binary) for entry in requested]
    if len({output.name for output in outputs}) < len(outputs):
        raise TensorError("an output is requested twice")
    return InferRequest(_member(content, "id", str, "the request"), images, outputs)


def encode_response(
    head: Json, outputs: Sequence[Output], prediction: Prediction, classes: Sequence[str]
) -> tuple[bytes, int]:
    """Write a response.

    Args:
        head: What it says beside the outputs.
        outputs: What to return.
        prediction: Holds them.
        classes: Names of the logits.

    Returns:
        The body, and how many bytes of it are JSON.
    """
    entries, chunks = [], []
    for output in outputs:
        array: NDArray[Any] = np.asarray(getattr(prediction, output.name), "<f4")
        if output.num_classes:
            array = _classification(array, classes, output.num_classes)
        datatype = "BYTES" if output.num_classes else "FP32"
        entry: Json = {"name": output.name, "datatype": datatype, "shape": array.shape}
        if output.is_binary:
            chunk = b"".join(map(_prefixed, array.flat)) if output.num_classes else array.tobytes()
            chunks.append(chunk)
            entry["parameters"] = {"binary_data_size": len(chunk)}
        else:
            entry["data"] = array.ravel().tolist() if output.num_classes else np.ascontiguousarray(array).ravel()
        entries.append(entry)
    text = orjson.dumps({**head, "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *chunks]), len(text)


def _classification(logits: NDArray[np.float32], classes: Sequence[str], count: int) -> NDArray[np.object_]:
    best = (-logits).argsort(axis=1, kind="stable")[:, :count]
    rows = [[f"{row[k]:f}:{k}:{classes[k]}" for k in indices] for row, indices in zip(logits, best, strict=True)]
    return np.array(rows, np.object_)


def _prefixed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _read_json(text: bytes) -> Json:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise TensorError(str(error)) from error
    if type(content) is not dict:
        raise TensorError(f"the JSON is {reprlib.repr(content)}, expected an object with inputs")
    return content


def _member(parent: Json, key: str, kind: type[T], place: str) -> T | None:
    """Return a member of an object, or None where it is missing or null."""
    value = parent.get(key)
    if value is not None and type(value) is not kind:  # isinstance would take true for a number
        raise TensorError(f"{key} of {place} is {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def _objects(parent: Json, key: str) -> list[Json]:
    entries = _member(parent, key, list, "the request") or []
    for entry in entries:
        if type(entry) is not dict:
            raise TensorError(f"{key} has {reprlib.repr(entry)}, expected an object")
    return entries


def _parameters(parent: Json, known: Sequence[str], place: str) -> Json:
    parameters = _member(parent, "parameters", dict, place) or {}
    for name in parameters:
        if name not in known:  # ignored, it would seem to have worked
            raise TensorError(
                f"the parameter {reprlib.repr(name)} of {place} is not supported, expected {' or '.join(known)}"
            )
    return parameters


def _read_output(entry: Json, shapes: Mapping[str, tuple[int, ...]], *, is_binary: bool) -> Output:
    name = _member(entry, "name", str, "an output")
    if name not in OUTPUTS:
        raise TensorError(f"there is no output {reprlib.repr(name)}, expected {' or '.join(OUTPUTS)}")
    parameters = _parameters(entry, ("binary_data", "classification"), name)
    chosen = _member(parameters, "binary_data", bool, name)
    count = _member(parameters, "classification", int, name)
    if count is not None and (count < 1 or name != "logits" or len(shapes[name]) != 1):
        raise TensorError(
            f"classification of {name} is {reprlib.repr(count)}, expected a number of classes from 1, and of logits: "
            "one for each class and image"
        )
    return Output(name, is_binary if chosen is None else chosen, count or 0)


def _read_input(
    entry: Json, tail: memoryview, shape: tuple[int, ...], max_images: int
) -> NDArray[np.uint8] | list[bytes]:
    name = _member(entry, "name", str, "an input")
    if name not in (INPUT, FILES):
        raise TensorError(f"there is no input {reprlib.repr(name)}, expected {INPUT} or {FILES}")
    parameters = _parameters(entry, ("binary_data_size", *(["content_type"] if name == FILES else [])), name)
    datatype, expected = ("UINT8", shape) if name == INPUT else ("BYTES", ())
    if entry.get("datatype") != datatype:
        raise TensorError(f"the datatype of {name} is {reprlib.repr(entry.get('datatype'))}, expected {datatype}")
    given = _read_shape(entry, name, expected, max_images)
    data, size = _member(entry, "data", list, name), _member(parameters, "binary_data_size", int, name)
    if (data is None) == (size is None):
        raise TensorError(f"{name} has both data and binary_data_size, or neither: expected one of them")
    if (size or 0) != len(tail):
        raise TensorError(
            f"{len(tail):,} bytes follow the JSON, expected the binary_data_size of {name}: "
            "Inference-Header-Content-Length is how many bytes are JSON"
        )
    if name == INPUT:
        return _read_pixels(tail if data is None else _pixels(data, given), given)
    if data is None:
        return _split(tail, given[0])
    return _read_base64(data, given[0], _member(parameters, "content_type", str, name))


def _read_shape(entry: Json, name: str, expected: tuple[int, ...], max_images: int) -> list[int]:
    shape = _member(entry, "shape", list, name) or []
    is_whole = all(type(length) is int for length in shape)
    if not (is_whole and shape and 1 <= shape[0] <= max_images and _is_shape(shape[1:], expected)):
        wanted = ", ".join(["N", *(str(length) if length > 0 else "any" for length in expected)])
        raise TensorError(
            f"the shape of {name} is {reprlib.repr(shape)}, expected [{wanted}] with N from 1 to {max_images}"
        )
    return shape


def _is_shape(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether lengths are as expected, where -1 is any."""
    return len(shape) == len(expected) and all(
        length == other or (other == -1 and length > 0) for length, other in zip(shape, expected, strict=True)
    )


def _read_pixels(data: memoryview | bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    if len(data) != math.prod(shape):
        raise TensorError(f"{INPUT} has {len(data):,} bytes, expected {math.prod(shape):,} as its shape says")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _pixels(data: list[Any], shape: Sequence[int]) -> bytes:
    flat = _flatten(data, shape) if data and type(data[0]) is list else data
    if set(map(type, flat)) - {int}:
        raise TensorError(f"the data of {INPUT} are not all whole numbers, or not nested as the shape says")
    try:
        return bytes(flat)
    except (ValueError, OverflowError) as error:
        raise TensorError(f"the data of {INPUT} are not all from 0 to 255") from error


def _flatten(data: list[Any], shape: Sequence[int]) -> list[Any]:
    level = [data]
    for length in shape:
        if not all(type(entry) is list and len(entry) == length for entry in level):
            raise TensorError(f"the data of {INPUT} are not nested as its shape says, {list(shape)}")
        level = list(chain.from_iterable(level))
    return level


def _split(data: memoryview, count: int) -> list[bytes]:
    files: list[bytes] = []
    position = 0
    while position < len(data) and len(files) < count:
        size = int.from_bytes(data[position : position + 4], "little")
        files.append(bytes(data[position + 4 : position + 4 + size]))
        position += 4 + size
    if position != len(data) or len(files) != count:
        raise TensorError(
            f"the binary data of {FILES} are not {count} elements, expected before each its length in 4 bytes, "
            "little-endian"
        )
    return files


def _read_base64(data: list[Any], count: int, content_type: str | None) -> list[bytes]:
    if content_type != "base64":
        raise TensorError(
            f"the data of {FILES} are strings, which hold no image: send binary data, or base64 with the parameter "
            'content_type: "base64"'
        )
    if len(data) != count or any(type(text) is not str for text in data):
        raise TensorError(f"the data of {FILES} are not {count} strings, as its shape says")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except ValueError as error:
        raise TensorError(f"the data of {FILES} are not base64: {error}") from error
