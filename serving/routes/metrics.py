"""For Prometheus."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.metrics import Metrics

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return requests, latencies, batches, the queue, the model and its reloads in Prometheus' text format."""
    state: Metrics = request.app.state.metrics
    return Response(generate_latest(state.registry), media_type=CONTENT_TYPE_LATEST)
