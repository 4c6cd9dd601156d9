"""What Prometheus is told at /metrics."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.deployment import Deployment

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
CLIENT_LEFT = 499  # without an answer; the number that nginx gives it
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one application.

    Attributes:
        registry: What /metrics writes out.
    """

    def __init__(self, deployment: Deployment, pending: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it began
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(deployment, pending))
        self._requests = Counter(
            "grpo_rm_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "grpo_rm_request_seconds",
            "From the headers of a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "grpo_rm_batch_images", "Images the model ran on at once.", buckets=IMAGES, registry=self.registry
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, images: int) -> None:
        """Count a batch."""
        self._batch.observe(images)


class _State(Collector):
    """What is so at the moment."""

    def __init__(self, deployment: Deployment, pending: Callable[[], int]) -> None:
        self._deployment, self._pending = deployment, pending

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("grpo_rm_pending_images", "Accepted and not answered yet.", value=self._pending())
        info = GaugeMetricFamily(
            "grpo_rm_model_info",
            "1 for the model that answers.",
            labels=["name", "version", "data_hash", "model_sha256"],
        )
        if live := self._deployment.model:
            info.add_metric([live.name, live.version, live.data_hash, live.onnx.model_sha256], 1)
        yield info
        yield GaugeMetricFamily(
            "grpo_rm_follow_error",
            "1 while the model is not the one that its alias points to; /readyz says why.",
            value=float(self._deployment.error is not None),
        )
        reloads = CounterMetricFamily(
            "grpo_rm_reloads", "Versions that went live or were rejected.", labels=["outcome"]
        )
        for outcome, count in self._deployment.reloads.items():
            reloads.add_metric([outcome], count)
        yield reloads


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), CLIENT_LEFT

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted_send)
        except Exception:
            status = 500
            raise
        finally:
            # A stranger chooses path and method: only those of our routes become labels.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if route != "other" else "other"
            self.metrics.count_request(method, route, status, time.perf_counter() - start)
