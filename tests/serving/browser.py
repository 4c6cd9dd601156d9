"""A headless Chromium, driven over its DevTools protocol."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = Path("/usr/bin/chromium")


class Browser:
    """A page, and what its console said."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._number = connection, 0
        self.console: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1200, height=2400, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._connection.recv(timeout=30))).get("id") != self._number:
            if answer["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.console.append(answer["params"])
        assert "error" not in answer, answer
        return dict(answer["result"])

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script}\n{self.run('document.body.innerText')}\n{self.console}"
            time.sleep(0.02)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href.startsWith('http')")

    def drop(self, *files: Path) -> None:
        """Drop files in the middle of the page, as from a file manager."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        process = subprocess.Popen(
            [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with connect(_address(Path(profile) / "DevToolsActivePort"), max_size=None) as connection:
                yield Browser(connection)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(file: Path) -> str:
    end = time.monotonic() + 30
    while not (file.exists() and "\n" in file.read_text()):
        assert time.monotonic() < end, "Chromium does not start"
        time.sleep(0.02)
    with urllib.request.urlopen(f"http://127.0.0.1:{file.read_text().split()[0]}/json") as response:
        return str(next(tab for tab in json.load(response) if tab["type"] == "page")["webSocketDebuggerUrl"])
