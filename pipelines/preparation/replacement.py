"""A folder that is replaced as a whole: killed at any moment, the earlier one is there or the new one."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
NEW, FORMER = "new", "former"


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Give an empty folder to write into; at the end of the block it takes the place of `output`, if all went well.

    It is in `output`.partial, which is removed in the end, and at the next start where a run was killed.

    Raises:
        ValueError: Another process is writing it.
    """
    output = output.resolve()
    partial = output.with_name(f"{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _sole_writer(output):
        repair(output)
        try:
            (partial / NEW).mkdir(parents=True)
            yield partial / NEW
            _sync_folders(partial / NEW)
            _replace(output, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def repair(output: Path) -> None:
    """Bring `output` back where a run was killed between two renames, and remove what it left."""
    partial = output.with_name(f"{output.name}.partial")
    if not output.exists() and (partial / FORMER).exists():
        (partial / FORMER).rename(output)
    if partial.exists():
        shutil.rmtree(partial)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that it is there after a power failure too."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _sole_writer(output: Path) -> Iterator[None]:
    lock = output.with_name(f"{output.name}.lock")  # it stays: removing it would let two processes lock two files
    with lock.open("w") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not held by forked processes
        except BlockingIOError:
            raise ValueError(f"another process is writing {output}: wait until it is done, or end it") from None
        yield


def _sync_folders(root: Path) -> None:
    for folder in (*(path for path in root.rglob("*") if path.is_dir()), root):
        sync(folder)


def _replace(output: Path, partial: Path) -> None:
    if not output.exists():
        (partial / NEW).rename(output)
    elif not _exchange(partial / NEW, output):
        output.rename(partial / FORMER)
        (partial / NEW).rename(output)
    sync(output.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None:
        return False
    if exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
