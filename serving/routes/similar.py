"""Images in, the most similar images of the index out."""

import base64
import functools
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from serving.deployment import LiveModel
from serving.formats import json_response
from serving.index import Neighbor, NoIndexError
from serving.indexes import Indexes
from serving.model import Prediction
from serving.prediction import predict_body
from serving.routes.v1 import ERRORS, IMAGES, Model, describe

RESPONSES = ERRORS | {
    503: {
        "description": "No model is loaded yet, there is no index of it, or too many wait; `detail` says which, "
        "Retry-After when to come back."
    }
}
RETRY_SECONDS = 60  # somebody has to build an index

router = APIRouter(prefix="/v1", tags=["v1"], responses=RESPONSES)


class SimilarImage(BaseModel):
    """An image of the index."""

    id: str = Field(examples=["cat/0001.jpg"])
    label: str | None = Field(examples=["cat"])
    similarity: float = Field(description="The cosine of the two embeddings.", examples=[0.98])
    thumbnail: str | None = Field(description="A data URL; null where the index has none, or none was asked for.")


class SimilarImages(BaseModel):
    """For each image of the request, in their order, the most similar ones, the most similar first."""

    model: Model
    neighbors: list[list[SimilarImage]]


@router.post("/similar", response_model=SimilarImages, openapi_extra=IMAGES)
async def similar(
    request: Request,
    k: Annotated[int, Query(ge=1, le=100, description="How many, for each image.")] = 10,
    thumbnails: Annotated[bool, Query(description="Also a small JPEG of each.")] = False,
) -> Response:
    """Return the images of the index whose embeddings have the largest cosine with that of each image."""
    live, prediction = await predict_body(request)
    try:
        neighbors = await _search(request.app.state.indexes, live, prediction, k=k, has_thumbnails=thumbnails)
    except NoIndexError as error:
        raise HTTPException(503, str(error), headers={**live.headers(), "Retry-After": str(RETRY_SECONDS)}) from error
    return json_response({"model": describe(live), "neighbors": neighbors}, live.headers())


async def _search(
    indexes: Indexes, live: LiveModel, prediction: Prediction, *, k: int, has_thumbnails: bool
) -> list[list[dict[str, Any]]]:
    index = await anyio.to_thread.run_sync(indexes.find, live, limiter=indexes.limiter)
    search = functools.partial(index.search, prediction.embedding, k=k, has_thumbnails=has_thumbnails)
    found = await anyio.to_thread.run_sync(search, limiter=indexes.limiter)
    return [[_describe(neighbor) for neighbor in neighbors] for neighbors in found]


def _describe(neighbor: Neighbor) -> dict[str, Any]:
    jpeg = neighbor.thumbnail
    return {
        "id": neighbor.id,
        "label": neighbor.label,
        "similarity": neighbor.similarity,
        "thumbnail": None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
    }
