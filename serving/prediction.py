"""A request with image files to the live model's prediction: what the routes of version 1 have in common."""

import contextlib
from collections.abc import Iterator

from fastapi import HTTPException, Request

from serving.body import read_files
from serving.deployment import LiveModel
from serving.inference import Inference
from serving.model import Prediction
from serving.preprocessing import ImageError
from serving.tensors import TensorError

ROUTES = {"classification": "/v1/classify", "segmentation": "/v1/segment"}


@contextlib.contextmanager
def answered_by(live: LiveModel) -> Iterator[None]:
    """Make what is wrong with a request a 400, and have every refusal name the model that looked at it."""
    try:
        yield
    except (ImageError, TensorError) as error:
        raise HTTPException(400, str(error), headers=live.headers()) from error
    except HTTPException as error:
        error.headers = {**(error.headers or {}), **live.headers()}
        raise


async def predict_body(request: Request, *, task: str | None = None) -> tuple[LiveModel, list[Prediction]]:
    """Return the model that answers, and what it says of the image files of a request: see `Inference.predict`.

    Args:
        request: With one image as its body, or several as a form.
        task: That the model has to be made for; any if None.

    Raises:
        HTTPException: 4xx with the reason, where the body or the model cannot be used.
        NotReadyError: No model is loaded yet.
        OverloadedError: The queue is full.
    """
    inference: Inference = request.app.state.inference
    live = inference.live()
    with answered_by(live):
        if task not in (None, live.onnx.task):
            route = ROUTES.get(live.onnx.task, "/v1/embed")
            raise HTTPException(409, f"the live model is made for {live.onnx.task}: use {route}")
        return live, await inference.predict(live, await read_files(request, request.app.state.limits))
