"""Load of CPU, memory, disk, network and GPU, measured as MLflow does."""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.tracking.store import reason


class SystemMetrics:
    """Samples in a thread until it is stopped, and once more then.

    MLflow's own thread asks the store before each sample and ends for good when that fails; this one only hands over.

    Args:
        log: Receives the number of the sample and the metrics.
        run_id: Of the run.
        interval: Between samples, in seconds.
        first: Number of the first sample.
    """

    def __init__(
        self, log: Callable[[int, Mapping[str, float]], None], run_id: str, *, interval: float, first: int
    ) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._log, self._interval, self._step = log, interval, first
        self._monitor: Any = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after a last sample."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._sample()
        except Exception as error:  # such as a GPU that is gone, or a full disk: nothing depends on these metrics
            print(f"warning: no more system metrics: {reason(error)}", file=sys.stderr, flush=True)

    def _sample(self) -> None:
        is_last = False
        while not is_last:
            self._monitor.collect_metrics()
            is_last = self._stopping.wait(self._interval)
            self._log(self._step, {f"system/{key}": value for key, value in self._monitor.aggregate_metrics().items()})
            for monitor in self._monitor.monitors:
                monitor.clear_metrics()
            self._step += 1
