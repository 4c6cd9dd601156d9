"""What a person reads of a run that failed: its message. A traceback is for what nobody expected."""

import logging
import sys
from typing import Any, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun

from pipelines.stage import is_for_user

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")  # of Prefect's engine


def fail_in_words() -> None:
    """Leave out the tracebacks that Prefect logs in this process for failures that speak to the user."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_without_traceback)  # nothing happens where it is there already


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drop what is said of a state that a flow returned, and was logged with it; shorten what a task raised."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FailedRun):
        return False
    if error is None or (isinstance(error, Exception) and error.__traceback__ and is_for_user(error)):
        record.exc_info = None
    return True


def run_here(flow: Flow[[], Any]) -> None:
    """Run a flow without a deployment, and leave with exit code 1 where it failed; the log says why."""
    state = cast(State[Any], flow(return_state=True))
    sys.exit(0 if state.is_completed() else 1)
