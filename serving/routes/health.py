"""Is the process alive, and can it answer? For container engines, load balancers and people."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from serving.deployment import Deployment
from serving.settings import Limits

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer while the process lives, also without a model."""
    return {"status": "alive"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "No model is loaded yet; `error` says why."}})
async def readyz(request: Request) -> JSONResponse:
    """Say which model is live, and why it is not the one the alias points to, where that is so."""
    deployment: Deployment = request.app.state.deployment
    limits: Limits = request.app.state.limits
    model = deployment.model
    content: dict[str, Any] = {
        "status": "ready" if model else "not ready",
        "error": deployment.error,
        "limits": {"body_bytes": limits.body_bytes, "pixels": limits.pixels},
        "model": None,
    }
    if model:
        content["model"] = {
            "name": model.name,
            "version": model.version,
            "data_hash": model.data_hash,
            "model_sha256": model.onnx.model_sha256,
            "precision": model.onnx.precision,
            "loaded_at": model.loaded_at.isoformat(timespec="seconds"),
            "warnings": [*model.warnings, *request.app.state.indexes.warnings(model)],
            "task": model.onnx.task,
            "provider": model.onnx.provider,
            "num_classes": len(model.onnx.classes),
            "preprocessing": model.onnx.preprocessing,
        }
    return JSONResponse(content, 200 if model else 503, model.headers() if model else {"Retry-After": "5"})
