"""An image in, classes or an embedding out."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from serving.body import read_body
from serving.deployment import LiveModel
from serving.inference import Inference
from serving.model import Prediction
from serving.preprocessing import FORMATS, ImageError

MAX_IMAGE_BYTES = 32 * 1024 * 1024
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One image file: {', '.join(FORMATS)}.",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("application/octet-stream", "image/*")
        },
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is no image that can be used; `detail` says why."},
    413: {"description": "The body is too long."},
    503: {"description": "No model is loaded yet; `detail` says why."},
}

router = APIRouter(prefix="/v1", tags=["v1"], responses=ERRORS)


class Model(BaseModel):
    """The model that answered."""

    name: str
    version: str
    data_hash: str


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Classification(BaseModel):
    """The most probable classes, the first one first."""

    classes: list[ClassProbability]
    model: Model


class Embedding(BaseModel):
    """The embedding of an image."""

    embedding: list[float]
    model: Model


@router.post("/classify", openapi_extra=IMAGE_BODY)
async def classify(
    request: Request, response: Response, top_k: Annotated[int, Query(ge=1, description="How many classes.")] = 5
) -> Classification:
    """Return the most probable classes of an image."""
    live, prediction = await _predict(request, response)
    probabilities = prediction.probabilities()[0]
    best = (-probabilities).argsort(kind="stable")[:top_k]
    classes = [ClassProbability(name=live.onnx.classes[k], probability=float(probabilities[k])) for k in best]
    return Classification(classes=classes, model=_model(live))


@router.post("/embed", openapi_extra=IMAGE_BODY)
async def embed(request: Request, response: Response) -> Embedding:
    """Return the embedding of an image."""
    live, prediction = await _predict(request, response)
    return Embedding(embedding=prediction.embedding[0].tolist(), model=_model(live))


async def _predict(request: Request, response: Response) -> tuple[LiveModel, Prediction]:
    inference: Inference = request.app.state.inference
    live = inference.live()
    try:
        prediction = await inference.predict(live, [await read_body(request, MAX_IMAGE_BYTES)])
    except ImageError as error:
        raise HTTPException(400, str(error), headers=live.headers()) from error
    except HTTPException as error:
        error.headers = {**(error.headers or {}), **live.headers()}
        raise
    response.headers.update(live.headers())
    return live, prediction


def _model(live: LiveModel) -> Model:
    return Model(name=live.name, version=live.version, data_hash=live.data_hash)
