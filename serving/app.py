"""The application: its routes, what they share, and how it starts and ends."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from serving.deployment import Deployment
from serving.follower import Follower
from serving.indexes import Indexes
from serving.inference import Inference, NotReadyError
from serving.routes import health, hooks, similar, v1


def create_app(deployment: Deployment, follower: Follower | None, *, webhook_secret: str, indexes: Indexes) -> FastAPI:
    """Return the application.

    Args:
        deployment: The model that answers.
        follower: Started and ended with the application; None where the model is a file.
        webhook_secret: Shared with MLflow; "" accepts no webhook.
        indexes: In which similar images are looked up.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.inference = Inference(deployment)
        if follower:
            follower.start()
        yield
        if follower:
            follower.stop()

    app = FastAPI(title="grpo-rm", lifespan=lifespan)
    app.state.deployment, app.state.follower = deployment, follower
    app.state.webhook_secret, app.state.indexes = webhook_secret, indexes
    for module in (health, v1, similar, hooks):
        app.include_router(module.router)
    app.add_exception_handler(NotReadyError, _not_ready)
    app.add_exception_handler(Exception, _internal_error)
    return app


async def _not_ready(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})


async def _internal_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Tell a stranger nothing; the traceback is in the log."""
    return JSONResponse({"detail": "internal error"}, 500)
