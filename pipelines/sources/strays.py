"""What is in a folder and is none of its images: why it is left out, in words."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipelines.file_tree import EXTENSIONS, extension_of, file_id, walk
from pipelines.sources.source import LeftOut

NAMED = 100  # of a kind in a directory; more are counted
FORMATS = {  # first bytes, and the extension that goes with them
    b"\xff\xd8\xff": ("JPEG", ".jpg"),
    b"\x89PNG\r\n\x1a\n": ("PNG", ".png"),
    b"GIF8": ("GIF", ".gif"),
    b"II*\x00": ("TIFF", ".tif"),
    b"MM\x00*": ("TIFF", ".tif"),
    b"\x00\x00\x00\x0cjP  ": ("JPEG 2000", ".jp2"),
}
BRANDS = {b"WEBP": ("WebP", ".webp"), b"avif": ("AVIF", ".avif")}  # bytes 8 to 12
UNREAD = {**dict.fromkeys((".heic", ".heif"), "HEIC"), ".psd": "Photoshop", ".svg": "SVG", ".jxl": "JPEG XL"}
UNREAD |= dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"), "raw camera")


class Stray(NamedTuple):
    """A file or directory that is left out. Without a reason, its content tells it."""

    path: str
    reason: str


class FolderContent(NamedTuple):
    """What is in a folder; paths relative to it."""

    images: list[str]
    directories: list[str]
    strays: list[Stray]


def list_folder(root: Path, *, known: tuple[str, ...] = ()) -> FolderContent:
    """List what is below `root`, by name; the files in `known` are neither images nor strays."""
    content = FolderContent([], [], [])
    for path, _, is_directory, reason in walk(str(root), is_confined=True):
        if reason:
            content.strays.append(Stray(path, reason))
        elif is_directory:
            content.directories.append(path)
        elif extension_of(path) in EXTENSIONS:
            content.images.append(path)
        elif path not in known:
            content.strays.append(Stray(path, ""))
    return content


def leave_out(root: Path, strays: Iterable[Stray]) -> list[LeftOut]:
    """Name each stray with its reason; of many that are alike in a directory, the first ones."""
    alike: dict[tuple[str, str, str], list[Stray]] = defaultdict(list)
    for stray in strays:
        directory, _, _ = stray.path.rpartition("/")
        kind = stray.reason.partition(",")[0].partition(" to ")[0]  # "a link", wherever to
        alike[directory, extension_of(stray.path), kind].append(stray)
    left_out: list[LeftOut] = []
    for (directory, extension, kind), members in alike.items():
        named = [LeftOut(file_id(path), reason or _look_into(root / path)) for path, reason in members[:NAMED]]
        left_out += named
        if more := len(members) - len(named):
            like = file_id(f"{directory}/*{extension}".lstrip("/"))
            left_out.append(LeftOut(like, f"{more:,} more{f', {kind} each' if kind else ' that end like this'}"))
    return left_out


def _look_into(path: Path) -> str:
    """Say what a file without the extension of an image is."""
    extension = path.suffix
    said = f"the extension {file_id(extension)}" if extension else "no extension"
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        return f"a file with {said} that cannot be read: {error.strerror}"
    known = next((kind for magic, kind in FORMATS.items() if start.startswith(magic)), BRANDS.get(start[8:12]))
    if known is None and (kind := UNREAD.get(extension.lower())):
        return f"an image in {kind} format, which is not read: convert it to JPEG or PNG"
    if known is None:
        return f"no image: a file with {said}"
    return f"a {known[0]} file with {said}: rename it to {file_id(path.stem)}{known[1]}"
