"""An image in, the most similar images of the index out."""

import base64
import functools
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from serving.index import Neighbor, NoIndexError
from serving.indexes import Indexes
from serving.prediction import predict_body
from serving.routes.v1 import ERRORS, IMAGES, Model, describe

RESPONSES = ERRORS | {
    404: {"description": "The server was started without an index; `detail` says how to build one."},
    503: {"description": "There is no model yet, or no index of it, or too many wait; `detail` says why."},
}

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


@router.post("/similar", openapi_extra=IMAGES)
async def similar(
    request: Request,
    response: Response,
    k: Annotated[int, Query(ge=1, le=100, description="How many, for each image.")] = 10,
    thumbnails: Annotated[bool, Query(description="Whether to send them.")] = False,
) -> SimilarImages:
    """Return the images of the index whose embeddings have the largest cosine with that of an image."""
    indexes: Indexes = request.app.state.indexes
    live, prediction = await predict_body(request)
    try:
        index = await anyio.to_thread.run_sync(indexes.find, live, limiter=indexes.limiter)
        search = functools.partial(index.search, prediction.embedding, k=k, has_thumbnails=thumbnails)
        found = await anyio.to_thread.run_sync(search, limiter=indexes.limiter)
    except NoIndexError as error:
        if indexes.directory is None:  # waiting does not help
            raise HTTPException(404, str(error), headers=live.headers()) from error
        raise HTTPException(503, str(error), headers={**live.headers(), "Retry-After": "60"}) from error
    response.headers.update(live.headers())
    neighbors = [[_similar_image(neighbor) for neighbor in row] for row in found]
    return SimilarImages(model=Model(**describe(live)), neighbors=neighbors)


def _similar_image(neighbor: Neighbor) -> SimilarImage:
    jpeg = neighbor.thumbnail
    return SimilarImage(
        id=neighbor.id,
        label=neighbor.label,
        similarity=neighbor.similarity,
        thumbnail=None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
    )
