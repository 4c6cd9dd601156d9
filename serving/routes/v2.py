"""The Open Inference Protocol (V2) over HTTP, as KServe and Triton speak it: their clients work here, and ours there.

One model is served. An error is {"error": ...} (serving/errors.py).
"""

import contextlib
from functools import partial

import anyio
import anyio.to_thread
from fastapi import APIRouter, HTTPException, Request, Response

from serving.body import read_body
from serving.compression import decompress
from serving.deployment import LiveModel
from serving.inference import Inference
from serving.model import INPUT, OUTPUTS, Prediction
from serving.open_inference import (
    HEADER_SIZE,
    INFER,
    NOT_READY,
    OTHER_MODEL,
    Live,
    Model,
    ModelReady,
    Ready,
    Server,
    Tensor,
)
from serving.prediction import answered_by
from serving.settings import Limits
from serving.tensors import InferRequest, TensorError, decode_request, encode_response

EXTENSIONS = ["binary_tensor_data", "classification", "image_files"]
PLATFORM = "onnx_onnxv1"  # the protocol's name for onnxruntime
INLINE_BYTES = 16 * 1024  # of JSON; more is read and written off the event loop

_codec = anyio.CapacityLimiter(1)  # Python reads one JSON at a time anyway: so it holds the objects of one only
_decompressed = anyio.CapacityLimiter(8)  # bodies in memory at once; the others wait as short as they came

router = APIRouter(prefix="/v2", tags=["v2"])
models = APIRouter(prefix="/v2/models/{name}", tags=["v2"], responses=OTHER_MODEL | NOT_READY)


@router.get("")
async def server(request: Request) -> Server:
    """Say which server this is, and which extensions of the protocol it has."""
    return Server(name=request.app.title, version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live")
async def health_live() -> Live:
    """Answer while the process lives, also without a model."""
    return Live()


@router.get("/health/ready", responses=NOT_READY)
async def health_ready(request: Request) -> Ready:
    """Answer 200 once a model is loaded."""
    request.app.state.inference.live()
    return Ready()


@models.get("")
async def model(request: Request, response: Response, name: str) -> Model:
    """Describe the model: its input and outputs."""
    return _describe(_served(request, response, name))


@models.get("/versions/{version}")
async def model_version(request: Request, response: Response, name: str, version: str) -> Model:
    """Describe the model, if this version of it is served."""
    return _describe(_served(request, response, name, version))


@models.get("/ready")
async def model_ready(request: Request, response: Response, name: str) -> ModelReady:
    """Answer 200 while this model is served."""
    return ModelReady(name=_served(request, response, name).name)


@models.get("/versions/{version}/ready")
async def model_version_ready(request: Request, response: Response, name: str, version: str) -> ModelReady:
    """Answer 200 while this version of the model is served."""
    return ModelReady(name=_served(request, response, name, version).name)


@models.post("/infer", **INFER)
async def infer(request: Request, response: Response, name: str) -> Response:
    """Run the model on images."""
    return await _infer(request, _served(request, response, name))


@models.post("/versions/{version}/infer", **INFER)
async def infer_version(request: Request, response: Response, name: str, version: str) -> Response:
    """Run the model on images, if this version of it is served."""
    return await _infer(request, _served(request, response, name, version))


def _served(request: Request, response: Response, name: str, version: str | None = None) -> LiveModel:
    inference: Inference = request.app.state.inference
    live = inference.live()
    if name != live.name or version not in (None, live.version):
        raise HTTPException(
            404, f"this model or version is not served here, but {live.name!r} version {live.version!r} is"
        )
    response.headers.update(live.headers())
    return live


def _describe(live: LiveModel) -> Model:
    def tensor(name: str, datatype: str) -> Tensor:
        return Tensor(name=name, datatype=datatype, shape=[-1, *live.onnx.shapes[name]])

    return Model(
        name=live.name,
        versions=[live.version],
        platform=PLATFORM,
        inputs=[tensor(INPUT, "UINT8")],  # not `files`: clients that send every input listed would send both
        outputs=[tensor(name, "FP32") for name in OUTPUTS],
    )


async def _infer(request: Request, live: LiveModel) -> Response:
    limits: Limits = request.app.state.limits
    with answered_by(live):
        body = await read_body(request, limits.body_bytes)
        encoding = request.headers.get("content-encoding", "")
        async with _decompressed if encoding else contextlib.nullcontext():
            if encoding:
                body = await anyio.to_thread.run_sync(decompress, body, encoding, limits.body_bytes, limiter=_codec)
            asked = await _read(body, request.headers.get(HEADER_SIZE), live, max_images=limits.images)
            prediction = await _predict(request.app.state.inference, live, asked)
    return await _answer(live, asked, prediction)


async def _read(body: bytes, header: str | None, live: LiveModel, *, max_images: int) -> InferRequest:
    json_size = _json_size(header, body)
    work = partial(decode_request, body, json_size, shapes=live.onnx.shapes, max_images=max_images)
    return work() if json_size <= INLINE_BYTES else await anyio.to_thread.run_sync(work, limiter=_codec)


def _json_size(header: str | None, body: bytes) -> int:
    if header is None:
        return len(body)
    if header.isascii() and header.isdigit() and len(header) < 10 and int(header) <= len(body):
        return int(header)
    raise TensorError(f"{HEADER_SIZE} is {header[:20]!r}, expected at most {len(body)}, the length of the body")


async def _predict(inference: Inference, live: LiveModel, asked: InferRequest) -> Prediction:
    if isinstance(asked.images, list):
        predictions = await inference.predict(live, asked.images)
        if len(predictions) > 1:
            raise TensorError("the images have several sizes, expected one in a request: send each size by itself")
        return predictions[0]
    return await inference.run(live, asked.images)


async def _answer(live: LiveModel, asked: InferRequest, prediction: Prediction) -> Response:
    head = {"model_name": live.name, "model_version": live.version} | ({"id": asked.id} if asked.id is not None else {})
    work = partial(encode_response, head, asked.outputs, prediction, live.onnx.classes)
    is_short = prediction.embedding.nbytes + prediction.logits.nbytes <= INLINE_BYTES
    body, json_size = work() if is_short else await anyio.to_thread.run_sync(work, limiter=_codec)
    headers = live.headers()
    if json_size < len(body):
        headers[HEADER_SIZE] = str(json_size)
    return Response(body, 200, headers, "application/octet-stream" if json_size < len(body) else "application/json")
