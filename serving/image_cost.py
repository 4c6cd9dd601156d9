"""What decoding an image file may cost, known before it is decoded.

The cost of most files is their pixels. Some formats allow files whose cost is something else: thousands of passes over
the same pixels, or millions of parts that Pillow reads one by one, in Python.
"""

import contextlib
import struct
import threading
from collections.abc import Iterator

from PIL import Image

# Time and memory of a pixel, where those of JPEG and PNG are 1 (64 million: a second, 250 MB)
PIXEL_COSTS = {"AVIF": 2, "JPEG2000": 4, "WEBP": 3}
MAX_SCANS = 100  # of a JPEG; a progressive one has about 10
MAX_SCANNED_PIXELS = 1_000_000_000  # scans times pixels: fifteen scans of the largest image, a second
MAX_PARTS = 20_000  # segments of a JPEG before its first scan, chunks of a PNG, strips or tiles of a TIFF
MAX_SLOW_BYTES = 1 << 20  # of a file that is decoded in Python: half a second
SLOW_CODECS = ("ppm", "ppm_plain", "bmp_rle")
JPEG_SCAN = b"\xff\xda"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_PARTS = (273, 324)  # tags: offsets of strips, of tiles
TIFF_TILE = (322, 323)  # tags: width and length of a tile
TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 16: "Q", 17: "Q"}  # types


def count_parts(data: bytes) -> int:
    """Return of how many parts a file consists, up to the first beyond MAX_PARTS; 0 where it does not matter."""
    if data.startswith(b"\xff\xd8"):
        return sum(1 for _ in zip(range(MAX_PARTS + 1), _jpeg_segments(data), strict=False))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return sum(1 for _ in zip(range(MAX_PARTS + 1), _png_chunks(data), strict=False))
    with contextlib.suppress(struct.error):  # it is damaged; Pillow says how
        return _count_tiff_parts(data)
    return 0


def count_pixels(image: Image.Image, data: bytes) -> int:
    """Return how many pixels are decoded for an opened image: those of a whole tile, where a TIFF has larger ones."""
    width, height = image.size
    with contextlib.suppress(struct.error):
        for tag, _, value in _tiff_entries(data):
            width, height = (
                max(side, value if tag == its_tag else 0)
                for side, its_tag in zip((width, height), TIFF_TILE, strict=True)
            )
    return width * height


def count_scans(data: bytes) -> int:
    """Return how many passes over its pixels a file makes, as far as it is a JPEG."""
    return max(1, data.count(JPEG_SCAN)) if data.startswith(b"\xff\xd8") else 1


def pixel_cost(image: Image.Image) -> int:
    """Return how many times the pixels of a JPEG those of an opened image cost."""
    return PIXEL_COSTS.get(image.format or "", 1)


def is_slow(image: Image.Image) -> bool:
    """Whether an opened image is decoded in Python."""
    return any(tile[0] in SLOW_CODECS for tile in getattr(image, "tile", [])[:1])


class PixelBudget:
    """Pixels that are decoded at the same time, in all threads together. First come, first served.

    Attributes:
        most: Of them.
    """

    def __init__(self, most: int) -> None:
        self.most, self._taken = most, 0
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Wait until there is room for some pixels; more than all find it when nobody else has any."""
        with self._turn, self._changed:
            while self._taken and self._taken + count > self.most:
                self._changed.wait()
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()


def _jpeg_segments(data: bytes) -> Iterator[int]:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill
            position += 1
        elif data[position + 1] == JPEG_SCAN[1]:
            return
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
        yield position


def _png_chunks(data: bytes) -> Iterator[int]:
    position = 8
    while position + 8 <= len(data):
        position += 12 + struct.unpack_from(">I", data, position)[0]
        yield position


def _count_tiff_parts(data: bytes) -> int:
    """Return the most strips or tiles that an entry of the first directory announces."""
    return max((parts for tag, parts, _ in _tiff_entries(data) if tag in TIFF_PARTS), default=0)


def _tiff_entries(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield tag, count, and the value where it is a whole number, of the entries of the first directory of a TIFF."""
    if data[:4] not in TIFF_SIGNATURES:
        return
    order = "<" if data.startswith(b"II") else ">"
    offset, number, entry = ("Q", "Q", "HHQ") if 43 in data[2:4] else ("I", "H", "HHI")  # BigTIFF, and the other
    start = struct.unpack_from(order + offset, data, 8 if 43 in data[2:4] else 4)[0]
    count = struct.unpack_from(order + number, data, start)[0]
    place = start + struct.calcsize(order + number)
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, place)
        place += struct.calcsize(order + entry)
        code, value = TIFF_INTEGERS.get(kind, ""), 0
        if tag in TIFF_TILE and code:
            is_here = struct.calcsize(order + code) <= struct.calcsize(order + offset)
            at = place if is_here else struct.unpack_from(order + offset, data, place)[0]
            value = struct.unpack_from(order + code, data, at)[0]
        yield tag, values, value
        place += struct.calcsize(order + offset)
