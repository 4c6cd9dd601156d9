"""Whether there is something new: versions of the data, here and where the clone pulls from."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from grpo_rm.config import load_config
from pipelines import clone


def data_version(root: Path) -> tuple[str, str]:
    """Return `data.source` and a hash of its version.

    Of data under version control that is what the .dvc files say, those of the upstream branch where there is one.
    Other files are told apart by path, size and time of modification: nothing is read.

    Raises:
        FileNotFoundError: The source does not exist.
        OSError: The upstream repository does not answer.
    """
    source = load_config(root / "params.yaml").data.source
    digest = hashlib.sha256()
    for line in _lines(root, source):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return source, digest.hexdigest()


def _lines(root: Path, source: str) -> Iterator[str]:
    kind, _, path = source.partition(":")
    if kind not in ("folder", "npz", "csv"):
        return
    start = (root / path).parent if kind == "csv" else root / path  # its images are beside it
    controlled = [*start.parent.glob(f"{start.name}.dvc"), *(start.rglob("*.dvc") if start.is_dir() else [])]
    if not controlled and start.exists():
        for file in [str(start)] if start.is_file() else _walk(str(start)):
            status = Path(file).stat()
            yield f"{os.path.relpath(file, start)} {status.st_size} {status.st_mtime_ns}"
        return
    versions = clone.upstream_data(root) or [file.read_text(encoding="utf-8") for file in sorted(controlled)]
    if not versions:
        raise FileNotFoundError(f"data.source is {source}, but {start} does not exist")
    yield from versions


def _walk(start: str) -> Iterator[str]:
    for directory, folders, names in os.walk(start, followlinks=True):
        folders.sort()
        yield from (os.path.join(directory, name) for name in sorted(names))  # noqa: PTH118 (for millions of files)
