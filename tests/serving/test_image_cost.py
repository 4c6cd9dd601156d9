"""Small files that would take long, or much memory, are refused before they are decoded."""

import io
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from serving.image_cost import MAX_PARTS, MAX_SLOW_BYTES, PixelBudget, count_parts
from serving.preprocessing import ImageError, decode

MANY = MAX_PARTS + 10


def encode(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def encode_large(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5000, 4000)).save(buffer, kind)
    return buffer.getvalue()


def multiply_scans(file: bytes, count: int) -> bytes:
    """Repeat the last scan of a JPEG, of an MPO of its first picture."""
    end = file.index(b"\xff\xd9")
    scan = file.rindex(b"\xff\xda", 0, end)
    return file[:scan] + file[scan:end] * count + file[end:]


def mpo(**options) -> bytes:
    """Return two pictures in one file, as cameras write them: Pillow calls it MPO and not JPEG."""
    return encode("MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], **options)


def chunk(name: bytes, data=b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(order: str, parts: int) -> bytes:
    """Return the beginning of a TIFF that announces so many tiles."""
    signature = b"II*\0" if order == "<" else b"MM\0*"
    return signature + struct.pack(f"{order}IHHHII", 8, 1, 324, 4, parts, 26)


def big_tiff(parts: int) -> bytes:
    return b"II+\0" + struct.pack("<HHQQHHQQ", 8, 0, 16, 1, 273, 4, parts, 44)


def tiled_tiff(order: str, width: tuple[int, int], length: tuple[int, int], *more: int) -> bytes:
    """Return a TIFF of 16 x 16 in one tile, whose sides are given with their types; `more` is another width, LONG."""
    entries = [(256, 3, 16), (257, 3, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (322, *width)]
    entries += [(322, 4, side) for side in more] + [(323, *length), (324, 4, 300), (325, 4, 10)]
    pack = {3: f"{order}HHIHxx", 4: f"{order}HHII"}
    packed = b"".join(struct.pack(pack[kind], tag, kind, 1, value) for tag, kind, value in entries)
    signature = b"II*\0" if order == "<" else b"MM\0*"
    head = signature + struct.pack(f"{order}IH", 8, len(entries)) + packed + bytes(4)
    return head.ljust(300, b"\0") + zlib.compress(bytes(256))


PROGRESSIVE = encode("JPEG", progressive=True)
PNG = encode("PNG")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (multiply_scans(PROGRESSIVE, 200), "2[01][0-9] scans of 3,072 pixels"),
        (multiply_scans(mpo(progressive=True), 200), "2[01][0-9] scans of 3,072 pixels"),
        (PROGRESSIVE[:2] + b"\xff\xe1\0\2" * MANY + PROGRESSIVE[2:], "20,001 parts"),
        (PROGRESSIVE[:2] + b"\xff" * 30_000 + PROGRESSIVE[2:], "20,001 parts"),
        (PNG[:33] + chunk(b"prVt") * MANY + PNG[33:], "20,001 parts"),
        (encode_large("JPEG2000"), "the JPEG2000 has 5000 x 4000 pixels, expected at most 16,000,000"),
        (tiff("<", 10_000_000), "10,000,000 parts"),
        (tiff(">", 10_000_000), "10,000,000 parts"),
        (big_tiff(10_000_000), "10,000,000 parts"),
        (
            tiled_tiff("<", (4, 16_000), (4, 16_000)),
            "16 x 16 pixels in tiles of 256,000,000, expected at most 64,000,0",
        ),
        (tiled_tiff(">", (3, 16_000), (4, 16_000)), "16 x 16 pixels in tiles of 256,000,000"),
        (tiled_tiff("<", (4, 16_000), (4, 16_000), 16), "16 x 16 pixels in tiles of 256,000,000"),
        (b"P6 1000 600 254\n" + bytes(1_800_000), "this kind of PPM is slow to decode"),
        (b"P3 1000 300 255\n" + b"7 " * 900_000, "this kind of PPM is slow to decode"),
    ],
    ids=[
        "scans",
        "scans of an MPO",
        "segments",
        "fill bytes",
        "chunks",
        "pixels that cost more",
        "tiles",
        "tiles, MM",
        "strips of a BigTIFF",
        "large tiles",
        "large tiles, MM",
        "large tiles, given twice",
        "P6",
        "P3",
    ],
)
def test_what_costs_too_much(file, reason):
    start = time.process_time()
    with pytest.raises(ImageError, match=reason):
        decode(file, channels=3)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "file",
    [
        PNG,
        PROGRESSIVE,
        mpo(),
        encode("TIFF"),
        encode("TIFF", big_tiff=True),
        encode("TIFF", compression="tiff_lzw"),
        tiled_tiff("<", (3, 16), (3, 16)),
        encode("PPM"),
        b"P3 2 1 255\n1 2 3 4 5 6\n",
        b"P6 2 1 254\n\1\2\3\4\5\6",
    ],
)
def test_what_people_send(file):
    assert count_parts(file) < 100 and len(file) < MAX_SLOW_BYTES
    assert decode(file, channels=3).mode == "RGB"


def test_an_mpo_is_one():
    assert Image.open(io.BytesIO(mpo())).format == "MPO"


def test_pixels_at_once_are_bounded():
    budget, taken, most = PixelBudget(10), [], []

    def use(count):
        with budget.take(count):
            taken.append(count)
            most.append(sum(taken))
            time.sleep(0.01)
            taken.remove(count)

    threads = [threading.Thread(target=use, args=(count,)) for count in (4, 4, 9, 4, 25, 1, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 8 and sorted(most)[-2] <= 10 and max(most) == 25
