"""Walking through a folder of files from strangers: what is in it, in one order, and what is better not opened."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# of the formats that serving.preprocessing decodes
KINDS = "avif bmp dib gif j2k jfif jp2 jpe jpeg jpf jpg jpx pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset(f".{kind}" for kind in KINDS.split())

MAX_FILE_BYTES = 2**30  # of an image: a sparse file of a terabyte would fill the memory
# What `dvc` with cache.type symlink puts in place of a file. Its name is the hash of its content.
DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
HIDDEN = ("__MACOSX",)  # beside the names that begin with a dot: macOS adds it to archives


class Found(NamedTuple):
    """Something in a folder.

    Attributes:
        path: Relative to the folder, as the file system has it.
        entry: For its state.
        is_directory: Its content follows, unless it has a reason.
        reason: Why it is better left out, in words; "" for a file or directory to go on with.
    """

    path: str
    entry: os.DirEntry[str]
    is_directory: bool
    reason: str

    @property
    def is_hidden(self) -> bool:
        """Whether its name says that it is not to be seen."""
        return is_hidden(self.entry.name)


@dataclass(frozen=True)
class _Directory:
    path: str
    identities: tuple[tuple[int, int], ...]  # its own, and those of the directories above it
    is_linked: bool


def walk(root: str, *, is_confined: bool) -> Iterator[Found]:
    """Go through all below `root`, by name. Nothing is opened but directories. Hidden ones are told of, not entered.

    Links are followed, one on a path: directories that are links to each other would have paths without number.

    Args:
        root: An existing directory.
        is_confined: Leave out links to elsewhere, except those that DVC makes into its cache.

    Raises:
        OSError: `root` itself cannot be read.
    """
    home = os.path.realpath(root) if is_confined else None
    stack = [(_Directory("", (_identity(os.stat(root)),), False), _list(root))]  # noqa: PTH116
    while stack:
        directory, entries = stack[-1]
        if not entries:
            stack.pop()
            continue
        found = _look(entries.pop(), directory, home)
        if found.is_directory and not found.reason:
            try:
                stack.append((_enter(found, directory), _list(found.entry.path)))
            except OSError as error:
                found = found._replace(reason=f"a directory that cannot be read: {error.strerror}")
        yield found


def is_hidden(name: str) -> bool:
    """Whether the name of a file or directory says that it is not to be seen."""
    return name.startswith(".") or name in HIDDEN


def file_id(path: str) -> str:
    """Return a path as text: the name of a file may be any bytes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def extension_of(path: str) -> str:
    """Return the extension in lower case, with its dot; "" for none."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


def read_file(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: It cannot be read, or is larger than any image.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        is_small = os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES  # else a gigabyte would be read to find that out
        content = file.read(MAX_FILE_BYTES + 1) if is_small else b""
    if not is_small or len(content) > MAX_FILE_BYTES:
        raise OSError(f"it has more than {MAX_FILE_BYTES:,} bytes, which no image needs")
    return content


def is_inside(real_path: str, home: str) -> bool:
    """Whether a path without links lies in a directory, or is a file of DVC's cache."""
    return real_path == home or real_path.startswith(home.rstrip("/") + "/") or DVC_CACHE.search(real_path) is not None


def is_regular(path: str) -> bool:
    """Whether it is a file that can be read like one: a pipe would never end.

    Raises:
        OSError: It is not there.
    """
    return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116


def _list(directory: str) -> list[os.DirEntry[str]]:
    """Return what is in a directory, to be taken from the end."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name, reverse=True)


def _enter(found: Found, parent: _Directory) -> _Directory:
    is_linked = parent.is_linked or found.entry.is_symlink()
    return _Directory(found.path, (*parent.identities, _identity(found.entry.stat())), is_linked)


def _look(entry: os.DirEntry[str], parent: _Directory, home: str | None) -> Found:
    path = f"{parent.path}/{entry.name}" if parent.path else entry.name
    is_directory = entry.is_dir(follow_symlinks=False)
    if is_hidden(entry.name):
        return Found(path, entry, is_directory, f"a hidden {'directory' if is_directory else 'file'}")
    if is_directory or entry.is_file(follow_symlinks=False):
        return Found(path, entry, is_directory, "")
    if entry.is_symlink():
        return Found(path, entry, *_look_at_link(entry, parent, home))
    return Found(path, entry, False, _describe(entry.stat(follow_symlinks=False).st_mode))


def _look_at_link(entry: os.DirEntry[str], parent: _Directory, home: str | None) -> tuple[bool, str]:
    """Return whether a link is one to a directory, and why it is left out."""
    link = f"a link to {file_id(os.readlink(entry.path))}"  # noqa: PTH115
    try:
        state = entry.stat()
    except OSError as error:
        return False, f"{link}: {error.strerror}"
    is_directory = stat.S_ISDIR(state.st_mode)
    if home is not None and not is_inside(os.path.realpath(entry.path), home):
        return is_directory, f"{link}, out of the source: copy {'its files' if is_directory else 'the file'}"
    if not is_directory:
        return False, "" if stat.S_ISREG(state.st_mode) else f"{link}, {_describe(state.st_mode)}"
    if _identity(state) in parent.identities:
        return True, f"{link}, a directory above it: it would never end"
    return True, f"{link}, within a link: copy its files" if parent.is_linked else ""


def _describe(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a device",
        stat.S_IFCHR: "a device",
    }
    return f"{kinds.get(stat.S_IFMT(mode), 'something')}, no file"


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
