"""Where MLflow tells that an alias has moved."""

import time

from fastapi import APIRouter, HTTPException, Request

from serving.body import read_body
from serving.follower import Follower
from serving.webhook import MAX_BYTES, is_about, is_genuine

router = APIRouter(tags=["hooks"])


@router.post("/hooks/mlflow", status_code=202, include_in_schema=False)
async def mlflow(request: Request) -> dict[str, str]:
    """Accept a delivery of MLflow, and look at the alias in the background where it is about it."""
    secret: str = request.app.state.webhook_secret
    if not secret:
        raise HTTPException(503, "no webhook is accepted: GRPO_RM_WEBHOOK_SECRET is not set")
    body = await read_body(request, MAX_BYTES)
    headers = {
        name: request.headers.get(f"x-mlflow-{name.replace('_', '-')}", "")
        for name in ("signature", "delivery_id", "timestamp")
    }
    if not is_genuine(body, secret=secret, now=time.time(), **headers):
        raise HTTPException(401, "the signature is not MLflow's with our secret, or more than 5 minutes old")
    follower: Follower | None = request.app.state.follower
    try:
        is_ours = follower is not None and is_about(body, follower.alias)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    if follower is None or not is_ours:
        return {"status": "ignored"}
    follower.wake()
    return {"status": "accepted"}
