"""Which index belongs to the live model: the one in memory, a newer one on disk, or none and why."""

import logging
import threading
import weakref
from pathlib import Path

import anyio

from serving.deployment import LiveModel
from serving.index import DESCRIPTION, Index, NoIndexError, directory_of, state_of
from serving.processors import count_processors

logger = logging.getLogger("serving")


class Indexes:
    """The indexes in a directory, of which one is in memory: that of the live model. Threads may share it.

    Attributes:
        limiter: Of the threads that load and search.
    """

    def __init__(self, directory: Path | None, model: str) -> None:
        """Nothing is read yet.

        Args:
            directory: Where they are, one for each model; None where the server was given none.
            model: As the server was told it, for the command that builds one.
        """
        self.directory, self.model = directory, model
        self.limiter = anyio.CapacityLimiter(count_processors())
        self._loading = threading.Lock()
        self._latest: Index | None = None
        # by the model: the latest, and others as long as a request has them
        self._used: weakref.WeakValueDictionary[str, Index] = weakref.WeakValueDictionary()
        self._failed: tuple[str, str, str] | None = None  # model, state, reason

    def find(self, live: LiveModel) -> Index:
        """Return the index of a model. It is loaded where it is not yet, or where there is a newer one.

        Whatever is wrong with a newer one, the earlier one stays, and the reason is in the log.

        Raises:
            NoIndexError: There is none; the message says what there is, and how to build one.
        """
        directory, sha256 = self._directory(live), live.onnx.model_sha256
        try:
            state = state_of(directory)
        except OSError as error:
            raise NoIndexError(self._missing(live)) from error
        earlier = self._used.get(sha256)
        if earlier is not None and earlier.state == state:
            return earlier
        if not self._loading.acquire(blocking=earlier is None):
            assert earlier is not None
            return earlier  # another thread is loading the newer one
        try:
            return self._load(directory, sha256, state)
        finally:
            self._loading.release()

    def _load(self, directory: Path, sha256: str, state: str) -> Index:
        current = self._used.get(sha256)
        if current is not None and current.state == state:  # loaded while we waited
            return current
        if self._failed is None or self._failed[:2] != (sha256, state):
            try:
                index = Index(directory)
                if index.description.model_sha256 != sha256:
                    raise ValueError(f"it is of the model {index.description.model_sha256}")
            except (ValueError, OSError, MemoryError) as error:
                said = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
                self._failed = sha256, state, f"the index in {directory} cannot be used: {said}"
                logger.warning("%s", self._failed[2])
            else:
                self._latest = self._used[sha256] = index
                logger.info("the index in %s is live: %d images", directory, index.description.count)
                return index
        if current is not None:
            return current
        raise NoIndexError(f"{self._failed[2]}. {self._advice()}")

    def warnings(self, live: LiveModel) -> list[str]:
        """Return that there is no index of a model, where that is so. Reads nothing."""
        if self.directory is None or directory_of(self.directory, live.onnx.model_sha256).is_dir():
            return []
        return [f"/v1/similar will answer 503: {self._missing(live)}"]

    def advice(self) -> str:
        """Return what is to be done where the server was started without indexes."""
        return (
            f"the server has no index: build one with `grpo-rm index FOLDER --model {self.model} --out indexes`, "
            "and start the server with --index indexes (GRPO_RM_INDEX)"
        )

    def _directory(self, live: LiveModel) -> Path:
        if self.directory is None:
            raise NoIndexError(self.advice())
        return directory_of(self.directory, live.onnx.model_sha256)

    def _missing(self, live: LiveModel) -> str:
        return (
            f"there is no index of {live.name} version {live.version} (model_sha256 {live.onnx.model_sha256[:12]}...) "
            f"in {self.directory}, which has {self._contents()}. {self._advice()}"
        )

    def _contents(self) -> str:
        assert self.directory is not None
        found = sorted(path.parent.name for path in self.directory.glob(f"*/{DESCRIPTION}"))
        return ", ".join(found[:5]) or "none"

    def _advice(self) -> str:
        return f"Build it with `grpo-rm index FOLDER --model {self.model} --out {self.directory}`"
