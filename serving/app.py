"""The application: its routes, what they share, what a request passes before them, and how it starts and ends."""

import contextlib
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.access import Access, ApiKeys
from serving.admission import Admission
from serving.deployment import Deployment
from serving.errors import RETRY, error_response
from serving.follower import Follower
from serving.indexes import Indexes
from serving.inference import Inference, NotReadyError, OverloadedError
from serving.metrics import Measured, Metrics
from serving.routes import health, hooks, page, similar, v1, v2
from serving.routes import metrics as metrics_route
from serving.settings import Settings


def create_app(
    deployment: Deployment, follower: Follower | None, indexes: Indexes, settings: Settings, keys: ApiKeys | None
) -> FastAPI:
    """Return the application.

    Args:
        deployment: The model that answers.
        follower: Started and ended with the application; None where the model is a file.
        indexes: In which similar images are looked up.
        settings: What the server was told.
        keys: Who may ask; None lets everybody in.
    """
    metrics = Metrics(deployment, lambda: app.state.inference.pending)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.inference = Inference(
            deployment, settings.batching, limits=settings.limits, on_batch=metrics.count_batch
        )
        if follower:
            follower.start()
        gc.collect()
        gc.freeze()  # the collector never looks at what was imported again
        yield
        if follower:
            follower.stop()
        await app.state.inference.close()

    app = FastAPI(title="grpo-rm", summary="An exported encoder.", lifespan=lifespan, redirect_slashes=False)
    app.state.deployment, app.state.follower, app.state.metrics = deployment, follower, metrics
    app.state.webhook_secret, app.state.limits = settings.webhook_secret, settings.limits
    app.state.indexes = indexes
    for module in (health, v1, similar, v2, hooks, metrics_route, page):
        app.include_router(module.router)
    app.include_router(v2.models)  # not inside of another one: a route is known by its whole path
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(NotReadyError, _unavailable)
    app.add_exception_handler(OverloadedError, _unavailable)
    app.add_exception_handler(Exception, _internal_error)
    # The last one added is the first a request meets.
    app.add_middleware(Admission, limits=settings.limits, max_requests=settings.batching.queue)
    app.add_middleware(Access, keys=keys)
    app.add_middleware(Measured, metrics=metrics)
    return app


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    _forget_frames(error)
    return error_response(request.url.path, error.status_code, error.detail, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Say in one sentence what FastAPI lists."""
    assert isinstance(error, RequestValidationError)
    reasons = [f"{each['loc'][-1]}: {each['msg']}, got {str(each.get('input'))[:50]!r}" for each in error.errors()]
    return error_response(request.url.path, 422, "; ".join(reasons))


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    _forget_frames(error)
    return error_response(request.url.path, 503, str(error), RETRY)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Tell a stranger nothing; the traceback is in the log."""
    return error_response(request.url.path, 500, "internal error")


def _forget_frames(error: BaseException) -> None:
    """Free what the frames of a handled error hold, such as the body: they hold the error in turn, as does its future.

    The garbage collector would come late: a refused body is one object to it, and 32 MB.
    """
    error.__traceback__ = None
    causes = [cause for cause in (error.__cause__, error.__context__) if cause]
    error.__cause__ = error.__context__ = None  # also where it is its own cause
    for cause in causes:
        _forget_frames(cause)
