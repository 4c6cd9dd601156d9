"""The Open Inference Protocol over real sockets: Triton's own client, and what other clients get wrong."""

import gzip
import json
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
from server_process import picture, serving
from tiny_onnx import CHANNELS, SIZE, write_onnx
from tritonclient.utils import InferenceServerException

from serving.model import OnnxModel
from serving.settings import Limits

NAME = "tiny.onnx"
LIMITS = Limits()
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, CHANNELS), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving")
    with serving(write_onnx(directory / NAME, bias=(0, 1, 0)), directory) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="module")
def expected(server):
    return OnnxModel(server.log.parent / NAME).run(IMAGES)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def tensor(images=IMAGES, *, is_binary=True):
    return triton.InferInput("images", list(images.shape), "UINT8").set_data_from_numpy(images, binary_data=is_binary)


def files(*contents):
    array = np.array(contents, np.object_)
    return triton.InferInput("files", [len(contents)], "BYTES").set_data_from_numpy(array)


def test_health_and_metadata(client, server):
    version = server.request("/readyz").content["model"]["version"]
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(NAME) and client.is_model_ready(NAME, version)
    assert not client.is_model_ready("other") and not client.is_model_ready(NAME, "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification", "image_files"]
    metadata = client.get_model_metadata(NAME)
    assert metadata == client.get_model_metadata(NAME, version)
    assert metadata == {
        "name": NAME,
        "versions": [version],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, CHANNELS]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("embedding", "logits")],
    }


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("outputs", [None, {"logits": True, "embedding": False}, {"logits": False}])
def test_infer(client, expected, is_binary, count, outputs):
    requested = outputs and [triton.InferRequestedOutput(name, binary_data=value) for name, value in outputs.items()]
    result = client.infer(NAME, [tensor(IMAGES[:count], is_binary=is_binary)], outputs=requested, request_id="7 ö")
    response = result.get_response()
    assert response["id"] == "7 ö" and response["model_name"] == NAME
    assert [output["name"] for output in response["outputs"]] == list(outputs or ("embedding", "logits"))
    for output in response["outputs"]:
        name = output["name"]
        assert ("parameters" in output) == (outputs is None or outputs[name])
        np.testing.assert_allclose(result.as_numpy(name), getattr(expected, name)[:count], atol=1e-6)
        assert result.as_numpy(name).dtype == np.float32


def test_infer_a_version(client, server):
    version = server.request("/readyz").content["model"]["version"]
    result = client.infer(NAME, [tensor()], model_version=version)
    assert result.get_response()["model_version"] == version
    with pytest.raises(InferenceServerException, match=f"is not served here, but 'tiny.onnx' version '{version}' is"):
        client.infer(NAME, [tensor()], model_version="1")
    with pytest.raises(InferenceServerException, match="is not served"):
        client.infer("other", [tensor()])


def test_image_files(client):
    result = client.infer(NAME, [files(picture((255, 0, 51)), picture((0, 255, 0), "BMP", (5, 5)))])
    np.testing.assert_allclose(result.as_numpy("embedding"), [[1, 0, 0.2], [0, 1, 0]], atol=1e-6)
    with pytest.raises(InferenceServerException, match="image 2 of 2: not an image"):
        client.infer(NAME, [files(picture((1, 2, 3)), b"no image")])


@pytest.mark.parametrize("is_binary", [True, False])
def test_classification(client, is_binary):
    requested = [triton.InferRequestedOutput("logits", binary_data=is_binary, class_count=2)]
    result = client.infer(NAME, [files(picture((255, 0, 51)), picture((0, 0, 0)))], outputs=requested)
    rows = [[b"1.000000:0:cat", b"1.000000:1:dog"], [b"1.000000:1:dog", b"0.000000:0:cat"]]
    if not is_binary:
        rows = [[text.decode() for text in row] for row in rows]
    assert result.as_numpy("logits").tolist() == rows
    requested = [triton.InferRequestedOutput("logits", class_count=99)]
    assert client.infer(NAME, [tensor()], outputs=requested).as_numpy("logits").shape == (3, 3)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client, expected, algorithm):
    result = client.infer(
        NAME, [tensor()], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_allclose(result.as_numpy("logits"), expected.logits, atol=1e-6)


def post(server, body, path=f"/v2/models/{NAME}/infer", **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.request(path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def of(data, shape=(1, SIZE, SIZE, CHANNELS), **more):
    return {"inputs": [{"name": "images", "datatype": "UINT8", "shape": list(shape), "data": data}], **more}


def test_json_is_flat_or_nested(server, expected):
    outputs = {"outputs": [{"name": "logits"}]}
    for data in (IMAGES.tolist(), IMAGES.ravel().tolist()):
        answer = post(server, of(data, IMAGES.shape) | outputs)
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        assert answer.headers["x-data-hash"] == "0123456789abcdef0123456789abcdef.dir"
        assert answer.content["outputs"][0]["data"] == pytest.approx(expected.logits.ravel().tolist(), abs=1e-6)
        assert "id" not in answer.content


def test_the_example_of_openapi_works(server):
    operation = server.request("/openapi.json").content["paths"]["/v2/models/{name}/infer"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["schema"]["example"]
    answer = post(server, example)
    assert answer.status == 200, answer
    assert answer.content["outputs"][0]["data"][0] == "1.501961:1:dog"


def test_errors_are_the_protocol_s(server):
    for path, body in [("/v2/nothing", None), ("/v2/models/other", None), (f"/v2/models/{NAME}/infer", None)]:
        answer = server.request(path, body)
        assert answer.status in (404, 405) and list(answer.content) == ["error"], answer
    assert list(server.request("/nothing").content) == ["detail"]
    assert list(server.request("/v2nothing").content) == ["detail"]


def test_bodies_that_are_too_long(server):
    for body, headers in [
        (b"{}", {"Content_Length": "99000000000"}),  # refused before it is sent
        (gzip.compress(bytes(LIMITS.body_bytes + 1)), {"Content_Encoding": "gzip"}),
        (zlib.compress(bytes(LIMITS.body_bytes + 1)), {"Content_Encoding": "deflate"}),
    ]:
        answer = post(server, body, **headers)
        assert answer.status == 413 and "longer than 33,554,432 bytes" in answer.content["error"]
        assert answer.headers["x-model-name"] == NAME


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"{}", {"Content_Encoding": "br"}, 415, "expected gzip, deflate or none"),
        (b"{}", {"Content_Encoding": "gzip, gzip"}, 415, "expected gzip, deflate or none"),
        (b"{}", {"Content_Encoding": "gzip"}, 400, "the body is not what Content-Encoding says, gzip"),
        (gzip.compress(b"{}", mtime=0)[:-1], {"Content_Encoding": "gzip"}, 400, "not one whole stream of gzip"),
        (gzip.compress(b"{}", mtime=0) * 2, {"Content_Encoding": "gzip"}, 400, "not one whole stream of gzip"),
        (b"{}", {"Inference_Header_Content_Length": "3"}, 400, "is '3', expected at most 2"),
        (b"{}", {"Inference_Header_Content_Length": "-1"}, 400, "is '-1', expected at most 2"),
        (b"{}", {"Inference_Header_Content_Length": "9" * 5000}, 400, "expected at most 2"),
        (b"[" * 100_000, {}, 400, "the JSON cannot be read"),
        (b"\xff", {}, 400, "the JSON cannot be read"),
        (of([0] * 192, id="\ud800"), {}, 400, "the JSON cannot be read"),
    ],
)
def test_bodies_that_cannot_be_read(server, body, headers, status, reason):
    answer = post(server, body, **headers)
    assert answer.status == status
    assert reason in answer.content.get("error", "")


def test_too_many_images(client):
    images = np.zeros((LIMITS.images + 1, SIZE, SIZE, CHANNELS), np.uint8)
    with pytest.raises(InferenceServerException, match=f"with N from 1 to {LIMITS.images}"):
        client.infer(NAME, [tensor(images)])
    assert client.infer(NAME, [tensor(images[1:])]).as_numpy("logits").shape == (LIMITS.images, 3)


def test_without_a_model(tmp_path):
    with serving("models:/name@champion", tmp_path, MLFLOW_TRACKING_URI="") as server:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert client.is_server_live() and not client.is_server_ready() and not client.is_model_ready("name")
            with pytest.raises(InferenceServerException, match="no model is loaded yet"):
                client.infer("name", [tensor()])
        assert server.request("/v2/models/name").headers["retry-after"]


def test_no_traceback_leaves_the_server(tmp_path):
    with serving(write_onnx(tmp_path / NAME, is_fragile=True), tmp_path) as server:
        answer = post(server, of([255] * SIZE * SIZE * CHANNELS))
        assert (answer.status, answer.content) == (500, {"error": "internal error"})
