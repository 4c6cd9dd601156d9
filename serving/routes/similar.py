"""An image in, the most similar images of the index out."""

import base64
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from serving.formats import json_response
from serving.index import Neighbor, NoIndexError
from serving.indexes import Indexes
from serving.prediction import predict_body
from serving.routes.v1 import ERRORS, IMAGES, Model, Refusal, describe

RESPONSES = ERRORS | {
    404: {"model": Refusal, "description": "The server was started without an index; `detail` says how to build one."},
    503: {
        "model": Refusal,
        "description": "There is no model yet, or no index of it, or too many wait; `detail` says why.",
    },
}

MAX_THUMBNAILS = 400  # of an answer: some 2 MB

router = APIRouter(prefix="/v1", tags=["v1"], responses=RESPONSES)


class SimilarImage(BaseModel):
    """An image of the index: `thumbnail` is a data URL, null where the index has none or none was asked for."""

    id: str
    label: str | None
    similarity: float
    thumbnail: str | None


class SimilarImages(BaseModel):
    """For each image of the request the most similar ones, the most similar first."""

    model: Model
    neighbors: list[list[SimilarImage]]


@router.post("/similar", response_model=SimilarImages, openapi_extra=IMAGES)
async def similar(
    request: Request,
    k: Annotated[int, Query(ge=1, le=100, description="How many, for each image.")] = 10,
    thumbnails: Annotated[bool, Query(description="Whether to send them.")] = False,
) -> Response:
    """Return the images of the index whose embeddings have the largest cosine with that of an image."""
    indexes: Indexes = request.app.state.indexes
    if indexes.directory is None:
        raise HTTPException(404, indexes.advice(), headers=request.app.state.inference.live().headers())
    live, predictions = await predict_body(request)
    embedding = np.concatenate([prediction.embedding for prediction in predictions])
    if thumbnails and k * len(embedding) > MAX_THUMBNAILS:
        detail = f"{k} thumbnails for each of {len(embedding)} images, expected {MAX_THUMBNAILS} at most"
        raise HTTPException(400, detail, headers=live.headers())

    def answer() -> Response:
        found = indexes.find(live).search(embedding, k=k, has_thumbnails=thumbnails)
        neighbors = [[_describe(neighbor) for neighbor in row] for row in found]
        return json_response({"model": describe(live), "neighbors": neighbors}, live.headers())

    try:
        return await anyio.to_thread.run_sync(answer, limiter=indexes.limiter)
    except NoIndexError as error:
        raise HTTPException(503, str(error), headers={**live.headers(), "Retry-After": "60"}) from error


def _describe(neighbor: Neighbor) -> dict[str, Any]:
    jpeg = neighbor.thumbnail
    url = None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return {"id": neighbor.id, "label": neighbor.label, "similarity": neighbor.similarity, "thumbnail": url}
