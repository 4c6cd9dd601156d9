"""Files from strangers: each has its reason in the manifest, none stops the stage, none fills the terminal."""

import io
import re
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_sets import encode, made, noise, pets, prepare_made
from PIL import Image

from pipelines.preparation.description import describe_image, explain


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def bomb(side: int) -> bytes:
    return png(header(side, side), chunk(b"IDAT", zlib.compress(bytes(100_000))), chunk(b"IEND"))


JPEG = encode(noise(0, (64, 64, 3)), "JPEG")
PROGRESSIVE = encode(noise(0, (64, 64, 3)), "JPEG", progressive=True)
SCAN, END = PROGRESSIVE.rindex(b"\xff\xda"), PROGRESSIVE.index(b"\xff\xd9")
HOSTILE = {
    "zero.jpg": (b"", "^the file is empty$"),
    "text.jpg": (b"I am a text.\n" * 50, "^not an image: none of AVIF, BMP, GIF, JPEG"),
    "page.png": (b"<html><body>404 Not Found</body></html>", "not an image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    "archive.png": (b"PK\x03\x04" + bytes(60), "not an image"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], r"^cannot be decoded: image file is truncated \(140 bytes not processed\)$"),
    "cut in the header.jpg": (JPEG[:100], "decoded"),
    "cut.png": (encode(noise(0, (64, 64, 3)))[:-2000], "truncated|broken"),
    "flipped.png": (encode(noise(0))[:45] + b"\x77" * 20 + encode(noise(0))[65:], "decoded"),
    "bomb.png": (bomb(100_000), r"pixels\)?, expected at most 64,000,000$"),
    "small bomb.png": (bomb(8_001), "the PNG has 8001 x 8001 pixels, expected at most 64,000,000"),
    "warned bomb.png": (bomb(11_000), "pixels"),
    "flat.gif": (
        b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\x02\x01\x4c\x00;",
        "^a GIF file of 0 x 0 pixels, or with a damaged header$",
    ),
    "flat.png": (png(header(0, 5), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND")), "^a PNG file of 0 x 0 pixels"),
    "chunks.png": (png(header(8, 8), chunk(b"prVt") * 21_000, chunk(b"IEND")), "20,001 parts"),
    "scans.jpg": (PROGRESSIVE[:SCAN] + PROGRESSIVE[SCAN:END] * 300 + PROGRESSIVE[END:], "3[01][0-9] scans"),
    "text chunk.png": (
        png(header(8, 8), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), chunk(b"IEND")),
        "decoded",
    ),
    "float.tiff": (encode(np.zeros((3, 3), np.float32), "TIFF"), "32-bit image .mode F"),
    "cut.tiff": (encode(noise(0), "TIFF")[:30], "a TIFF file .* damaged header|decoded"),
}
GOOD = {
    "a photo.png": encode(noise(1, (9, 9, 3)), "JPEG"),
    "animated.gif": encode(
        Image.fromarray(noise(2, (9, 9))), "GIF", save_all=True, append_images=[Image.new("L", (9, 9))]
    ),
    "no extension": encode(noise(3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_reason_for_each(name):
    data, reason = HOSTILE[name]
    known, stored = describe_image(data, "digest", None)
    assert re.search(reason, known.decode_error), known.decode_error
    assert (known.width, known.height, known.perceptual_hash, known.bytes, stored) == (0, 0, "", len(data), 0)
    assert known.decode_error.isprintable() and len(known.decode_error) <= 200
    assert describe_image(data, "digest", None)[0].decode_error == known.decode_error
    assert describe_image(data, "digest", 4)[0].decode_error == known.decode_error


def test_all_of_them_beside_good_ones(tmp_path, capfd):
    files = pets() | {f"cat/{name}": data for name, (data, _) in HOSTILE.items()}
    prepare_made(made(files | {f"dog/{name}": data for name, data in GOOD.items()}), tmp_path / "prepared")
    manifest = pq.read_table(tmp_path / "prepared/manifest.parquet").to_pandas().set_index("id")
    assert set(manifest.index[manifest.decode_error != ""]) == {f"cat/{name}" for name in HOSTILE}
    assert manifest.loc["dog/a photo.png", "format"] == "JPEG"
    shards = list((tmp_path / "prepared").rglob("0*.parquet"))
    stored = {id_ for path in shards for id_ in pq.read_table(path)["id"].to_pylist()}
    assert stored == set(pets()) | {f"dog/{name}" for name in GOOD}
    assert capfd.readouterr().err == ""


def test_damaged_files_of_every_format():
    rng = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
    files = [encode(Image.fromarray(noise(seed, (17, 13, 3))), kind) for kind in kinds for seed in range(12)]
    reasons = []
    for file in files:
        data = bytearray(file)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        known, _ = describe_image(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]), "", None)
        reasons.append(known.decode_error)
    assert sum(map(bool, reasons)) > 40
    assert not [reason for reason in reasons if "0x" in reason or "\n" in reason or len(reason) > 200]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "cannot be decoded: MemoryError"),
        (RecursionError("too deep"), "cannot be decoded: too deep"),
        (OSError(f"bad {io.BytesIO()!r}\nsecond line"), "cannot be decoded: bad ..."),
        (SyntaxError("\ud800" * 2), r"cannot be decoded: \ud800\ud800"),
        (ValueError("x" * 999), "cannot be decoded: " + "x" * 181),
        (ValueError("\n"), "cannot be decoded: ValueError"),
    ],
)
def test_explain(error, reason):
    assert explain(error) == reason
