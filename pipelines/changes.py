"""Whether there is something new: versions of the data, here and where the clone pulls from."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from grpo_rm.config import load_config
from pipelines import clone


def data_version(root: Path) -> tuple[str, str]:
    """Return `data.source` and a hash that changes with its files, or with the version that the upstream branch names.

    Files are told apart by path, size and time of modification: nothing is read.

    Raises:
        FileNotFoundError: The source does not exist.
        OSError: The upstream repository does not answer.
    """
    source = load_config(root / "params.yaml").data.source
    digest = hashlib.sha256()
    for line in [*_files(root, source), *clone.upstream_data(root)]:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return source, digest.hexdigest()


def _files(root: Path, source: str) -> Iterator[str]:
    kind, _, path = source.partition(":")
    if kind not in ("folder", "npz"):
        return
    start = root / path
    if not start.exists():
        raise FileNotFoundError(f"data.source is {source}, but {start} does not exist")
    for file in [str(start)] if start.is_file() else _walk(str(start)):
        status = Path(file).stat()
        yield f"{os.path.relpath(file, start)} {status.st_size} {status.st_mtime_ns}"


def _walk(start: str) -> Iterator[str]:
    for directory, folders, names in os.walk(start, followlinks=True):
        folders.sort()
        yield from (os.path.join(directory, name) for name in sorted(names))  # noqa: PTH118 (for millions of files)
