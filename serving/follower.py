"""The thread that makes the version an alias points to the live model: promotion and rollback alike."""

import contextlib
import ctypes
import logging
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serving.deployment import FILES, Deployment, load_version
from serving.indexes import Indexes
from serving.model import first_line
from serving.registry import Registry, Version

KEPT_VERSIONS = 2  # on disk: the live one and the one before, for a rollback without a download

logger = logging.getLogger("serving")


@dataclass(frozen=True)
class Alias:
    """An alias of a registered model.

    Attributes:
        name: Of the registered model.
        alias: Such as champion.
    """

    name: str
    alias: str


def parse_alias(uri: str) -> Alias | None:
    """Return what models:/NAME@ALIAS means, or None for a path.

    Raises:
        ValueError: It is another URI of models:.
    """
    if not uri.startswith("models:"):
        return None
    match = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    if match is None:
        raise ValueError(f"the model is {uri!r}, expected models:/NAME@ALIAS, such as models:/grpo-rm-digits@champion")
    return Alias(*match.groups())


class Follower(threading.Thread):
    """Looks at the alias when woken (by the webhook), else every `poll_seconds`.

    All reloading is done by this thread, so webhook and polling cannot get into each other's way, and several webhooks
    at once make one reload.
    """

    def __init__(
        self,
        deployment: Deployment,
        registry: Registry,
        alias: Alias,
        *,
        cache: Path,
        poll_seconds: float,
        precision: str = "fp32",
        threads: int = 0,
        indexes: Indexes | None = None,
    ) -> None:
        super().__init__(name="follower", daemon=True)  # a download under way does not hold up the end of the process
        self.deployment, self.registry, self.alias = deployment, registry, alias
        self.cache, self.poll_seconds = cache, poll_seconds
        self.precision, self.threads = precision, threads
        self.indexes = indexes
        self._wake, self._is_stopped = threading.Event(), False
        self._live = ""
        self._kept: list[Path] = []
        self._rejected: Version | None = None
        self._reason = ""
        deployment.error = f"{alias.name}@{alias.alias} is being loaded"

    def run(self) -> None:
        """Follow the alias until stopped."""
        is_woken = True
        while not self._is_stopped:
            self.follow(is_woken=is_woken)
            _give_memory_back()
            is_woken = self._wake.wait(self.poll_seconds)
            self._wake.clear()

    def wake(self) -> None:
        """Look at the alias now. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread, at once or after the reload under way. Returns at once."""
        self._is_stopped = True
        self._wake.set()

    def follow(self, *, is_woken: bool) -> None:
        """Look at the alias once. Whatever goes wrong, the live model stays, and the reason is told.

        Args:
            is_woken: Try a version again that failed a check; polling does not download it again and again.
        """
        try:
            version = self.registry.find(self.alias.name, self.alias.alias)
            if version == self._rejected and not is_woken:
                return self._say(self._reason)
            if self._identity(version) != self._live:
                self._deploy(version)
            return self._say(None)
        except Exception as error:  # anything: a registry that is down must not end the thread
            return self._say(first_line(error))

    def _deploy(self, version: Version) -> None:
        directory = self.cache / self._identity(version)
        try:
            model = load_version(self.registry, version, directory, precision=self.precision, threads=self.threads)
        except ValueError as error:
            self._rejected = version
            self._reason = f"{first_line(error)}. It is tried again when a webhook calls, or after a start"
            self.deployment.reloads["rejected"] += 1
            shutil.rmtree(directory)
            raise ValueError(self._reason) from error
        self._rejected, self._live = None, self._identity(version)
        self.deployment.reloads["live"] += 1
        self.deployment.model = model  # requests under way end with the old one
        logger.info("%s version %s is live, data %s", model.name, model.version, model.data_hash or "unknown")
        for warning in [*model.warnings, *(self.indexes.warnings(model) if self.indexes else [])]:
            logger.warning("%s version %s: %s", model.name, model.version, warning)
        self._forget_old_versions(directory)

    def _forget_old_versions(self, newest: Path) -> None:
        # Remembered, not read from the times of the files: two small versions may be loaded within one tick.
        self._kept = [*(path for path in self._kept if path != newest), newest][-KEPT_VERSIONS:]
        for directory in set(self.cache.iterdir()) - set(self._kept):
            shutil.rmtree(directory)

    def _say(self, error: str | None) -> None:
        if error and error != self.deployment.error:
            state = "the model stays as it is" if self.deployment.model else "there is no model yet"
            logger.warning("%s: %s", state, error)
        self.deployment.error = error

    def _identity(self, version: Version) -> str:
        """Return what tells versions apart, as a file name: a model deleted and made anew counts from 1 again."""
        return quote(f"{version.version} {version.tags.get(FILES[self.precision].onnx_tag, '')}", safe="")


def _give_memory_back() -> None:
    """Return what a former model took to the system: glibc keeps it, and takes more for the next one.

    At every look, because requests under way keep a model for a while after its successor is live.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
