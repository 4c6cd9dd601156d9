"""Images in; classes, embeddings or masks out."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from serving.deployment import LiveModel
from serving.formats import JSON, NPY, PNG, RAW, array_response, choose_media_type, encode_mask, json_response
from serving.masks import Mask
from serving.model import Prediction
from serving.prediction import predict_body
from serving.preprocessing import FORMATS
from serving.processors import count_processors

FILE = {"type": "string", "format": "binary"}
FORM = {
    "type": "object",
    "properties": {"image": {"type": "array", "items": FILE, "minItems": 1}},
    "required": ["image"],
}
IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"An image file as the body, or several as a form, under any names: {', '.join(FORMATS)}.",
        "content": {
            "application/octet-stream": {"schema": FILE},
            "image/*": {"schema": FILE},
            "multipart/form-data": {"schema": FORM},
        },
    }
}


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str = Field(examples=["the body is empty: send one image file as the body"])


DESCRIPTIONS = {
    400: "The body holds no image that can be used; `detail` says why, and which one.",
    401: "An API key is required.",
    408: "The body did not arrive in time.",
    409: "The live model has another task.",
    413: "The body is too long, or holds too many images.",
    415: "The body is JSON, or compressed.",
    422: "A parameter is not what it should be.",
    503: "No model is loaded yet, or too many wait; `detail` says which, Retry-After when to come back.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": description} for status, description in DESCRIPTIONS.items()
}
ARRAY = {media_type: {"schema": FILE} for media_type in (NPY, RAW)}

_masks = anyio.CapacityLimiter(count_processors())  # at once: each takes memory

router = APIRouter(prefix="/v1", tags=["v1"], responses=ERRORS)


class Model(BaseModel):
    """The model that answered."""

    name: str = Field(examples=["grpo-rm-digits"])
    version: str = Field(examples=["3"])
    data_hash: str = Field(examples=["0123456789abcdef0123456789abcdef.dir"])


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str = Field(examples=["cat"])
    probability: float = Field(examples=[0.98])


class Classified(BaseModel):
    """The most probable classes of an image, the first one first."""

    classes: list[ClassProbability]
    embedding: list[float] = Field(default=[], description="Only with embedding=true.")


class Classification(BaseModel):
    """An entry for each image, in their order."""

    model: Model
    predictions: list[Classified]


class Embeddings(BaseModel):
    """An embedding for each image, in their order."""

    model: Model
    embeddings: list[list[float]] = Field(examples=[[[0.12, -0.5, 1.25]]])


class Share(BaseModel):
    """A class and its share of the pixels."""

    index: int
    name: str
    share: float


class SegmentedImage(BaseModel):
    """What each pixel of an image shows."""

    png: str = Field(description="Base64 of a PNG of class indices with a palette, as large as the image.")
    classes: list[Share]


class Segmentation(BaseModel):
    """A mask for each image, in their order."""

    model: Model
    masks: list[SegmentedImage]


@router.post("/classify", response_model=Classification, openapi_extra=IMAGES, responses={200: {"content": ARRAY}})
async def classify(
    request: Request,
    top_k: Annotated[int, Query(ge=1, description="How many classes.")] = 5,
    embedding: Annotated[bool, Query(description="Also the embedding of each image.")] = False,
    normalize: Annotated[bool, Query(description="Embeddings of length 1.")] = False,
) -> Response:
    """Return the most probable classes of each image; as an array, the probabilities of all classes, (N, K)."""
    live, (prediction,) = await predict_body(request, task="classification")
    probabilities = prediction.probabilities()
    media_type = choose_media_type(request.headers.get("accept", ""), (JSON, NPY, RAW))
    if media_type != JSON:
        return array_response(probabilities.astype(np.float32), media_type, live.headers())
    predictions: list[dict[str, Any]] = [{"classes": _top(row, live.onnx.classes, top_k)} for row in probabilities]
    if embedding:
        for entry, row in zip(predictions, _embedding([prediction], normalize), strict=True):
            entry["embedding"] = row
    return json_response({"model": describe(live), "predictions": predictions}, live.headers())


@router.post("/embed", response_model=Embeddings, openapi_extra=IMAGES, responses={200: {"content": ARRAY}})
async def embed(
    request: Request, normalize: Annotated[bool, Query(description="Embeddings of length 1.")] = False
) -> Response:
    """Return the embedding of each image, (N, D)."""
    live, predictions = await predict_body(request)
    embeddings = _embedding(predictions, normalize)
    media_type = choose_media_type(request.headers.get("accept", ""), (JSON, NPY, RAW))
    if media_type != JSON:
        return array_response(embeddings, media_type, live.headers())
    return json_response({"model": describe(live), "embeddings": embeddings}, live.headers())


@router.post(
    "/segment",
    response_model=Segmentation,
    openapi_extra=IMAGES,
    responses={200: {"content": {PNG: {"schema": FILE}, NPY: {"schema": FILE}}}},
)
async def segment(request: Request) -> Response:
    """Return the most probable class of each pixel; also as PNG (one image), or as an array (N, H, W) (of one size)."""
    live, predictions = await predict_body(request, task="segmentation")
    accept = request.headers.get("accept", "")
    return await anyio.to_thread.run_sync(_segmentation, live, predictions, accept, limiter=_masks)


def _segmentation(live: LiveModel, predictions: Sequence[Prediction], accept: str) -> Response:
    masks = [mask for prediction in predictions for mask in live.onnx.masks(prediction)]
    offered = (JSON, NPY, PNG) if len(masks) == 1 else (JSON, NPY) if len(predictions) == 1 else (JSON,)
    media_type = choose_media_type(accept, offered)
    if media_type == PNG:
        return Response(encode_mask(masks[0]), media_type=PNG, headers=live.headers())
    if media_type == NPY:
        return array_response(np.stack(masks).astype(np.uint16), NPY, live.headers())
    content = [
        {"png": base64.b64encode(encode_mask(mask)).decode(), "classes": _shares(mask, live.onnx.classes)}
        for mask in masks
    ]
    return json_response({"model": describe(live), "masks": content}, live.headers())


def describe(live: LiveModel) -> dict[str, str]:
    """Return what an answer says of the model."""
    return {"name": live.name, "version": live.version, "data_hash": live.data_hash}


def _top(probabilities: NDArray[np.float64], names: Sequence[str], count: int) -> list[dict[str, Any]]:
    best = (-probabilities).argsort(kind="stable")[:count]
    return [{"name": names[k], "probability": float(probabilities[k])} for k in best]


def _embedding(predictions: Sequence[Prediction], normalize: bool) -> NDArray[np.float32]:
    embedding = np.concatenate([prediction.embedding for prediction in predictions])
    if not normalize:
        return embedding
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    return np.asarray(embedding / np.where(lengths > 0, lengths, 1), np.float32)


def _shares(mask: Mask, names: Sequence[str]) -> list[dict[str, Any]]:
    indices, counts = np.unique(mask, return_counts=True)
    return [
        {"index": int(index), "name": names[index], "share": count / mask.size}
        for index, count in sorted(zip(indices, counts, strict=True), key=lambda pair: -pair[1])
    ]
