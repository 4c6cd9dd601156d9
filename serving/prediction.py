"""A request with image files to the live model's prediction: what the routes of version 1 have in common."""

from fastapi import HTTPException, Request

from serving.body import read_files
from serving.deployment import LiveModel
from serving.inference import Inference
from serving.model import Prediction
from serving.preprocessing import ImageError


async def predict_body(request: Request) -> tuple[LiveModel, Prediction]:
    """Return the model that answers, and what it says of the image files of a request.

    Raises:
        HTTPException: 4xx with the reason, where the body cannot be used.
        NotReadyError: No model is loaded yet.
        OverloadedError: The queue is full.
    """
    inference: Inference = request.app.state.inference
    live = inference.live()
    try:
        files = await read_files(request, request.app.state.limits)
        return live, await inference.predict(live, files)
    except ImageError as error:
        raise HTTPException(400, str(error), headers=live.headers()) from error
    except HTTPException as error:
        error.headers = {**(error.headers or {}), **live.headers()}
        raise
