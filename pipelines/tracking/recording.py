"""A run while it goes: to its journal at once, to MLflow every few seconds.

A tracking server that is lost on the way holds up nothing: what was not sent is sent when it answers again, or on the
next contact, by whichever stage.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.tracking.journal import Journal
from pipelines.tracking.store import check_tracking, reason, store_name
from pipelines.tracking.system import SystemMetrics
from pipelines.tracking.upload import send, send_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEND_SECONDS, RETRY_SECONDS = 5.0, 30.0


class Run:
    """One MLflow run. Its methods write to the journal; a thread sends what is new every few seconds.

    Args:
        client: Of the tracking store.
        journal: Of the run, with its header.
        last_steps: The last step that the store has of each metric. Steps up to it are not recorded again: a resumed
            training repeats what it did after its last saved state.
        system_metrics_interval: In seconds.
    """

    def __init__(
        self,
        client: "MlflowClient",
        journal: Journal,
        last_steps: Mapping[str, int] | None = None,
        *,
        system_metrics_interval: float = 2.0,
    ) -> None:
        self.client, self.run_id = client, journal.run_id
        self._journal, self._last_steps = journal, last_steps or {}
        self._artifacts: list[tuple[Path, str | None]] = []
        self._is_lost = False
        self._closing = threading.Event()
        self._sender = threading.Thread(target=self._send_until_closed, name="tracking", daemon=True)
        self._sender.start()
        sampled = [step for key, step in self._last_steps.items() if key.startswith("system/")]
        self._system = SystemMetrics(
            self.log_metrics, self.run_id, interval=system_metrics_interval, first=max(sampled, default=-1) + 1
        )

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step."""
        new = {key: value for key, value in metrics.items() if step > self._last_steps.get(key, -1)}
        if new:
            self._journal.add_metrics(step, new)

    def log_artifacts(self, *paths: Path, folder: str | None = None) -> None:
        """Record files, or all files of directories, when the run ends."""
        self._artifacts += [(path, folder) for path in paths]

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        self._journal.add_tags(tags)

    def close(self, status: str) -> None:
        """Send everything and end the run; where the store is lost, leave that to the next contact."""
        self._system.stop()
        self._closing.set()
        self._sender.join()
        if self._attempt(lambda: self._send_all(status)):
            self._journal.remove()
            return
        try:
            self._journal.keep_artifacts(self._artifacts)
        except OSError as error:  # such as a full disk: the stage's own result matters more
            _say(f"warning: artifacts of run {self.run_id} could not be kept: {error}")
        self._journal.finish(status)
        self._journal.release()
        _say(f"warning: run {self.run_id} is incomplete; the next stage that reaches {store_name()} sends the rest")

    def _send_all(self, status: str) -> None:
        self._send()
        for path, folder in self._artifacts:
            send_artifacts(self.client, self.run_id, path, folder)
        self.client.set_terminated(self.run_id, status)

    def _send_until_closed(self) -> None:
        pause = SEND_SECONDS
        while not self._closing.wait(pause):
            pause = SEND_SECONDS if self._attempt(self._send) else RETRY_SECONDS

    def _send(self) -> None:
        if self._is_lost:
            check_tracking()  # says sooner than MLflow that a server hangs
        send(self.client, self._journal)

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever the store raises, the stage's own result matters more
            if not self._is_lost:
                _say(f"warning: tracking failed, the stage goes on: {reason(error)}")
            self._is_lost = True
            return False
        if self._is_lost:
            _say(f"tracking: {store_name()} answers again, and has everything")
        self._is_lost = False
        return True


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
