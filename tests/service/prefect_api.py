"""Prefect's REST API, as a browser uses it."""

import time
from typing import Any

import httpx

SECONDS = 300  # for what takes some seconds on a machine that has nothing else to do


class PrefectApi:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        return self._answer("GET", path).json()

    def post(self, path: str, content: Any) -> Any:
        answer = self._answer("POST", path, content)
        return answer.json() if answer.content else None

    def delete(self, path: str) -> None:
        self._answer("DELETE", path)

    def _answer(self, method: str, path: str, content: Any = None) -> httpx.Response:
        """Ask until the server answers: on a busy machine its database is busy too, and Prefect's own client waits."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                answer = self._client.request(method, path, json=content)
            except httpx.TransportError:
                asks_only = method == "GET" or path.endswith("/filter")
                if not asks_only or time.monotonic() > deadline:
                    raise
            else:
                if answer.status_code != 503 or time.monotonic() > deadline:
                    return answer.raise_for_status()
            time.sleep(1)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.get(f"/deployments/name/{name}")

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment, and return its id."""
        deployment = self.deployment(name)["id"]
        return self.post(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def wait(self, run: str, *, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait until a run has ended, and return its state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(run))["type"] not in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"):
            assert time.monotonic() < deadline, (state, self.log(run))
            time.sleep(0.3)
        return state

    def wait_for_log(self, run: str, text: str, *, seconds: float = SECONDS) -> None:
        """Wait until a line of the run's log, or of its tasks', has a text."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.log(run)):
            assert time.monotonic() < deadline, (self.state(run), self.log(run))
            time.sleep(0.3)

    def unfinished(self) -> list[str]:
        """Return the runs that have begun and not ended."""
        states = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]}}}
        return [run["id"] for run in self.post("/flow_runs/filter", {"flow_runs": states})]

    def give_up(self, run: str) -> None:
        """Call a run cancelled whose processes are gone."""
        self.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})

    def cancel(self, run: str) -> None:
        self.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def log(self, run: str) -> list[str]:
        content = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        lines: list[str] = []
        while page := self.post("/logs/filter", content | {"offset": len(lines)}):  # 200 at most
            lines += [line["message"] for line in page]
        return lines

    def task_states(self, run: str) -> dict[str, str]:
        """Return the names of the states of a run's tasks."""
        tasks = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {task["name"]: task["state"]["name"] for task in tasks}

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """Return the artifacts of a run by key."""
        found = self.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {artifact["key"]: artifact for artifact in found}
