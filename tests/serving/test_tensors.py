"""Requests of the Open Inference Protocol as clients send them, and as none should."""

import base64
import json
import struct
import time

import numpy as np
import pytest

from serving.bounded_json import MAX_KEYS, MAX_VALUES
from serving.tensors import Output, TensorError, decode_request

SHAPES = {"images": (2, 2, 1), "embedding": (3,), "logits": (5,)}
PIXELS = {"name": "images", "datatype": "UINT8", "shape": [2, 2, 2, 1], "data": [0, 1, 2, 3, 4, 5, 6, 255]}
NESTED = [[[[0], [1]], [[2], [3]]], [[[4], [5]], [[6], [255]]]]
FILES = {
    "name": "files",
    "datatype": "BYTES",
    "shape": [2],
    "data": ["", base64.b64encode(b"\0image").decode()],
    "parameters": {"content_type": "base64"},
}


def decode(content, tail=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return decode_request(text + tail, len(text), shapes=SHAPES, max_images=4)


def binary(entry, size):
    kept = {key: value for key, value in entry.items() if key not in ("data", "parameters")}
    return {"inputs": [kept | {"parameters": {"binary_data_size": size}}]}


def test_images():
    images = np.array(NESTED, np.uint8)
    for request in (
        decode({"inputs": [PIXELS]}),
        decode({"inputs": [PIXELS | {"data": NESTED}]}),
        decode(binary(PIXELS, 8), images.tobytes()),
    ):
        np.testing.assert_array_equal(request.images, images)
        assert request.images.dtype == np.uint8 and request.id is None
        assert request.outputs == [Output("embedding", False), Output("logits", False)]


def test_files():
    assert decode({"inputs": [FILES]}).images == [b"", b"\0image"]
    elements = struct.pack("<I", 0) + struct.pack("<I", 6) + b"\0image"
    assert decode(binary(FILES, len(elements)), elements).images == [b"", b"\0image"]


def test_outputs():
    request = decode(
        {
            "id": "7",
            "model_name": "ignored, as the protocol's own example has it",
            "parameters": {"binary_data_output": True},
            "inputs": [PIXELS],
            "outputs": [
                {"name": "logits", "parameters": {"classification": 2}},
                {"name": "embedding", "parameters": {"binary_data": False}},
            ],
        }
    )
    assert request.id == "7"
    assert request.outputs == [Output("logits", True, 2), Output("embedding", False)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the JSON cannot be read"),
        (b"1", "the JSON is 1, expected an object"),
        (b'{"inputs": [NaN]}', "the JSON cannot be read"),
        (b'{"id": -Infinity}', "the JSON cannot be read"),
        (b"1" * 5000, "the JSON cannot be read"),
        (b'{"a":' * 900 + b"[" * 5000, "the JSON cannot be read"),
        ({}, "there are 0 inputs, expected one: images, or files"),
        ({"inputs": [PIXELS, FILES]}, "there are 2 inputs"),
        ({"inputs": {}}, "inputs of the request is {}, expected an array"),
        ({"inputs": [1]}, "inputs has 1, expected an object"),
        ({"inputs": [PIXELS], "id": 7}, "id of the request is 7, expected a string"),
        ({"inputs": [PIXELS], "parameters": []}, r"parameters of the request is \[\], expected an object"),
        ({"inputs": [PIXELS], "parameters": {"priority": 1}}, "the parameter 'priority' of the request is not supp"),
        ({"inputs": [PIXELS], "parameters": {"binary_data_output": 1}}, "is 1, expected true or false"),
        ({"inputs": [PIXELS], "outputs": [{}]}, "there is no output None, expected embedding or logits"),
        (
            {"inputs": [PIXELS], "outputs": [{"name": "x" * 999}]},
            r"there is no output 'x{1,20}\.\.\.x{1,20}', expected",
        ),
        ({"inputs": [PIXELS], "outputs": [{"name": "logits"}] * 2}, "an output is requested twice"),
    ],
)
def test_what_is_no_request(content, reason):
    with pytest.raises(TensorError, match=reason):
        decode(content)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"classification": 0}, "classification of logits is 0, expected a number of classes from 1"),
        ({"classification": True}, "classification of logits is True, expected a whole number"),
        ({"binary_data": "true"}, "binary_data of logits is 'true', expected true or false"),
        ({"shared_memory_region": "x"}, "the parameter 'shared_memory_region' of logits is not supported"),
    ],
)
def test_parameters_of_outputs(parameters, reason):
    with pytest.raises(TensorError, match=reason):
        decode({"inputs": [PIXELS], "outputs": [{"name": "logits", "parameters": parameters}]})
    with pytest.raises(TensorError, match=r"classification of embedding is 2, .* and of logits"):
        decode({"inputs": [PIXELS], "outputs": [{"name": "embedding", "parameters": {"classification": 2}}]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "pixels"}, "there is no input 'pixels', expected images or files"),
        ({"name": None}, "there is no input None"),
        ({"name": "files"}, "the datatype of files is 'UINT8', expected BYTES"),
        ({"datatype": "FP32"}, "the datatype of images is 'FP32', expected UINT8"),
        ({"datatype": []}, r"the datatype of images is \[\]"),
        ({"shape": [0, 2, 2, 1]}, r"the shape of images is \[0, 2, 2, 1\], expected \[N, 2, 2, 1\] with N from 1 to 4"),
        ({"shape": [5, 2, 2, 1]}, "with N from 1 to 4"),
        ({"shape": [-2, 2, -2, 1]}, "the shape of images"),
        ({"shape": [1 << 62, 2, 2, 1]}, "the shape of images"),
        ({"shape": [True, 2, 2, 1]}, "the shape of images"),
        ({"shape": [2.0, 2, 2, 1]}, "the shape of images"),
        ({"shape": [2, 1, 2, 2]}, "the shape of images"),
        ({"shape": [2, 4]}, "the shape of images"),
        ({"shape": [8]}, "the shape of images"),
        ({"shape": []}, "the shape of images"),
        ({"shape": "2"}, "shape of images is '2', expected an array"),
        ({"data": None}, "images has both data and binary_data_size, or neither"),
        ({"data": "AAEC"}, "data of images is 'AAEC', expected an array"),
        ({"data": []}, "images has 0 bytes, expected 8 as its shape says"),
        ({"data": [0] * 9}, "images has 9 bytes, expected 8"),
        ({"data": [0] * 7 + [256]}, "the data of images are not all from 0 to 255"),
        ({"data": [0] * 7 + [-1]}, "the data of images are not all from 0 to 255"),
        ({"data": [0] * 7 + [1 << 63]}, "the data of images are not all from 0 to 255"),
        ({"data": [0] * 7 + [True]}, "not all whole numbers"),
        ({"data": [0] * 7 + [1.0]}, "not all whole numbers"),
        ({"data": [0] * 7 + ["1"]}, "not all whole numbers"),
        ({"data": [0] * 7 + [[1]]}, "not all whole numbers"),
        ({"data": [[0, 1, 2, 3], [4, 5, 6, 7]]}, "the data of images are not nested as its shape says"),
        ({"data": NESTED[:1]}, "the data of images are not nested as its shape says"),
        ({"data": [*NESTED[:1], 0]}, "the data of images are not nested as its shape says"),
        ({"parameters": {"content_type": "np"}}, "the parameter 'content_type' of images is not supported"),
        ({"parameters": {"binary_data_size": 8}}, "both data and binary_data_size, or neither"),
    ],
)
def test_what_is_no_image(change, reason):
    with pytest.raises(TensorError, match=reason):
        decode({"inputs": [PIXELS | change]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parameters": {}}, "are strings, which hold no image: send binary data, or base64"),
        ({"parameters": {"content_type": "str"}}, "are strings, which hold no image"),
        ({"shape": [2, 1]}, r"the shape of files is \[2, 1\], expected \[N\] with N from 1 to 4"),
        ({"shape": [1]}, "the data of files are not 1 strings"),
        ({"data": ["", 0]}, "the data of files are not 2 strings"),
        ({"data": ["", "=A=="]}, "the data of files are not base64"),
        ({"data": ["", "ö"]}, "the data of files are not base64"),
        ({"data": ["", "AA\nAA"]}, "the data of files are not base64"),
    ],
)
def test_what_are_no_files(change, reason):
    with pytest.raises(TensorError, match=reason):
        decode({"inputs": [FILES | change]})


@pytest.mark.parametrize(
    ("entry", "size", "tail", "reason"),
    [
        (PIXELS, 8, b"", "0 bytes follow the JSON, expected the binary_data_size of images"),
        (PIXELS, 8, bytes(9), "9 bytes follow the JSON"),
        (PIXELS, -8, bytes(8), "8 bytes follow the JSON"),
        (PIXELS, 9, bytes(9), "images has 9 bytes, expected 8 as its shape says"),
        (PIXELS, True, bytes(1), "binary_data_size of images is True, expected a whole number"),
        (FILES, 0, b"", "are not 2 elements"),
        (FILES, 4, bytes(4), "are not 2 elements"),
        (FILES, 12, bytes(12), "are not 2 elements"),
        (FILES, 7, bytes(7), "are not 2 elements"),
        (FILES, 9, bytes(4) + b"\xff\xff\xff\xff\0", "are not 2 elements"),
        (FILES, 9, bytes(8) + b"\0", "are not 2 elements"),
    ],
)
def test_what_is_no_binary_tensor(entry, size, tail, reason):
    with pytest.raises(TensorError, match=reason):
        decode(binary(entry, size), tail)


def test_bytes_after_json_that_announces_none():
    with pytest.raises(TensorError, match="1 bytes follow the JSON"):
        decode({"inputs": [PIXELS]}, b"\0")


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * MAX_VALUES + b"0]",
        b"[" + b"0," * MAX_VALUES + b"0]",
        b"{" + b",".join(b'"%x":0' % number for number in range(MAX_KEYS + 1)) + b"}",
    ],
)
def test_hostile_json_is_refused_unread(text):
    start = time.process_time()
    with pytest.raises(TensorError, match="send binary data, or fewer images"):
        decode(text)
    assert time.process_time() - start < 0.1


def test_one_large_image_as_json_is_not_hostile():
    shape = (518, 518, 3)
    images = np.zeros((1, *shape), np.uint8)
    entry = {"name": "images", "datatype": "UINT8", "shape": [1, *shape], "data": images.tolist()}
    text = json.dumps({"inputs": [entry]}).encode()
    request = decode_request(text, len(text), shapes=SHAPES | {"images": shape}, max_images=4)
    np.testing.assert_array_equal(request.images, images)
