"""The server decodes and crops exactly as the library does; and refuses what strangers may not send."""

import inspect
import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from grpo_rm import image_cost, transforms
from serving import image_cost as serving_image_cost
from serving import preprocessing
from serving.preprocessing import ImageError

RNG = np.random.default_rng(0)
SIZES = [(1, 1), (2, 1), (1, 50), (31, 30), (64, 47), (300, 200)]
KINDS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B"],
    "JPEG": ["L", "RGB", "CMYK"],
    "GIF": ["L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
    "WEBP": ["RGB", "RGBA"],
    "PPM": ["1", "L", "RGB", "I;16"],
    "JPEG2000": ["L", "RGB", "RGBA", "I;16"],
    "AVIF": ["RGB", "RGBA"],
}


def encoded(mode, size, kind, orientation=None):
    raw = RNG.integers(0, 256, len(Image.new(mode, size).tobytes()), dtype=np.uint8).tobytes()
    image = Image.frombytes(mode, size, raw)
    if mode == "P":
        image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, **({"exif": exif} if orientation else {}))
    return buffer.getvalue()


FILES = [
    *[encoded(mode, size, kind) for kind, modes in KINDS.items() for mode in modes for size in SIZES],
    *[
        encoded("RGB", (9, 5), kind, orientation)
        for kind, orientation in itertools.product(("JPEG", "PNG", "TIFF", "WEBP"), range(1, 9))
    ],
]


def bomb(width, height):
    """Return a PNG that is small in bytes and large in pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def costly():
    """Return a file above each limit: pixels, parts, scans, bytes of a format that is slow."""
    progressive = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (48, 64), dtype=np.uint8)).save(progressive, "JPEG", progressive=True)
    file = progressive.getvalue()
    scan, end = file.rindex(b"\xff\xda"), file.index(b"\xff\xd9")
    return [
        bomb(8001, 8001),
        file[:2] + b"\xff\xe1\0\2" * 20_010 + file[2:],
        file[:scan] + file[scan:end] * 200 + file[end:],
        b"P6 1000 600 254\n" + bytes(1_800_000),
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "crop_pct", "interpolation"), [(16, 1.0, "bicubic"), (7, 0.875, "bilinear")])
def test_the_server_sees_what_training_saw(channels, size, crop_pct, interpolation):
    def view(module, file):
        image = module.decode(file, channels=channels)
        return module.evaluation_view(image, size=size, crop_pct=crop_pct, interpolation=interpolation).tobytes()

    views = [view(preprocessing, file) for file in FILES]
    assert views == [view(transforms, file) for file in FILES]
    assert all(len(view) == size * size * channels for view in views)


@pytest.mark.parametrize(
    "name",
    [
        "count_parts",
        "count_pixels",
        "count_scans",
        "pixel_cost",
        "is_slow",
        "_jpeg_segments",
        "_png_chunks",
        "_count_tiff_parts",
        "_tiff_entries",
    ],
)
def test_both_know_the_cost_of_a_file_by_the_same_lines(name):
    ours, theirs = getattr(image_cost, name), getattr(serving_image_cost, name)
    assert inspect.getsource(ours) == inspect.getsource(theirs)


def test_both_have_the_same_limits():
    def limits(module):
        return {key: value for key, value in vars(module).items() if key.isupper()}

    assert limits(image_cost) == limits(serving_image_cost)
    assert transforms.MAX_PIXELS == preprocessing.MAX_PIXELS
    assert set(transforms.FORMATS) == set(preprocessing.FORMATS)


@pytest.mark.parametrize("file", [b"", b"no image", encoded("RGB", (9, 5), "PNG")[:20], bomb(0, 5), *costly()])
def test_both_refuse_for_the_same_reason(file):
    with warnings.catch_warnings(action="ignore"), pytest.raises(ImageError) as theirs:
        preprocessing.decode(file, channels=3)
    with warnings.catch_warnings(action="ignore"), pytest.raises(transforms.ImageError) as ours:
        transforms.decode(file, channels=3)
    assert str(ours.value) == str(theirs.value)


def test_every_format_is_among_them():
    assert set(KINDS) == set(preprocessing.FORMATS)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused_by_both(mode):
    file = encoded(mode, (4, 4), "TIFF")
    with pytest.raises(ImageError, match=f"32-bit image .mode {mode}"):
        preprocessing.decode(file, channels=3)
    with pytest.raises(ValueError, match=f"32-bit image .mode {mode}"):
        transforms.decode(file, channels=3)


@pytest.mark.parametrize("side", [8001, 13_000, 60_000])  # above our limit, where Pillow warns, where it refuses
def test_a_decompression_bomb_is_refused_by_its_header(side):
    with warnings.catch_warnings(action="ignore"), pytest.raises(ImageError, match="pixels"):
        preprocessing.decode(bomb(side, side), channels=3)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"no image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_image_is_refused(file):
    with pytest.raises(ImageError, match=r"the file is empty|not an image: none of AVIF, BMP"):
        preprocessing.decode(file, channels=3)


def test_damaged_files_end_in_one_kind_of_error():
    reasons = [
        reason for number, file in enumerate(FILES) if (reason := refusal(damaged(file, is_cut=number % 2 == 1)))
    ]
    assert len(reasons) > 20
    assert not [reason for reason in reasons if "\n" in reason or "0x" in reason]


def damaged(file, *, is_cut):
    data = bytearray(file)
    for position in RNG.integers(0, len(data), 3):
        data[position] ^= 1 << RNG.integers(8)
    return bytes(data[: RNG.integers(len(data) // 2, len(data) + 1)]) if is_cut else bytes(data)


def refusal(file):
    try:
        with warnings.catch_warnings(action="ignore"):
            preprocessing.decode(file, channels=3)
    except ImageError as error:
        return str(error)
    return None
