"""Image files, decoded: one rule for each kind of file; masks as they are."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from grpo_rm import transforms
from grpo_rm.transforms import ImageError, decode, open_mask
from serving import preprocessing

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def luma(color):
    return np.asarray(Image.fromarray(color).convert("L"))


def test_decode_gray():
    data = encoded(Image.fromarray(GRAY))
    assert np.array_equal(decode(data, channels=1), GRAY)
    assert np.array_equal(decode(data, channels=3), np.stack([GRAY] * 3, axis=-1))


def test_decode_color():
    data = encoded(Image.fromarray(COLOR))
    assert np.array_equal(decode(data, channels=3), COLOR)
    gray = np.asarray(decode(data, channels=1))
    assert np.array_equal(gray, luma(COLOR))
    np.testing.assert_allclose(gray, COLOR @ [0.299, 0.587, 0.114], atol=1)  # ITU-R 601-2


def test_decode_palette():
    image = Image.fromarray(GRAY % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    expected = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], dtype=np.uint8)[GRAY % 3]
    for kind in ("PNG", "GIF"):
        assert np.array_equal(decode(encoded(image, kind), channels=3), expected)
        assert np.array_equal(decode(encoded(image, kind), channels=1), luma(expected))


def test_decode_drops_alpha():
    data = encoded(Image.fromarray(np.dstack([COLOR, GRAY])))
    assert np.array_equal(decode(data, channels=3), COLOR)
    assert np.array_equal(decode(data, channels=1), luma(COLOR))


@pytest.mark.parametrize(("mode", "kind"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
def test_decode_scales_16_bit_gray(mode, kind):
    """Pillow's own conversion cuts off at 255, so that everything but black becomes white."""
    values = np.array([[0, 256, 1000], [32768, 65279, 65535]])
    image = Image.frombytes("I;16" if mode == "<u2" else "I;16B", (3, 2), values.astype(mode).tobytes())
    assert np.asarray(decode(encoded(image, kind), channels=1)).tolist() == [[0, 1, 3], [128, 254, 255]]
    assert np.asarray(decode(encoded(image, kind), channels=3)).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, COLOR),
        (2, COLOR[:, ::-1]),
        (3, COLOR[::-1, ::-1]),
        (4, COLOR[::-1]),
        (6, np.rot90(COLOR, -1)),
        (8, np.rot90(COLOR)),
    ],
)
def test_decode_turns_photographs_upright(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(Image.fromarray(COLOR), exif=exif), channels=3), upright)


def test_decode_refuses_what_is_no_image():
    with pytest.raises(ImageError, match="not an image: none of AVIF, BMP"):
        decode(b"no image", channels=3)


def indexed(transparent=None):
    image = Image.fromarray(GRAY % 3).convert("P")
    image.frombytes((GRAY % 3).tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    return encoded(image, **({} if transparent is None else {"transparency": transparent}))


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], dtype=np.uint8)
LAB = Image.frombytes("LAB", COLOR.shape[1::-1], COLOR.tobytes())
OTHER = Image.fromarray(255 - COLOR)
CMYK = Image.fromarray(COLOR).convert("CMYK")


# One rule for each kind of file, as the docstring of the module has them: the file, and the colors it is read as.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(GRAY)), GRAY),
        (encoded(Image.fromarray(COLOR)), COLOR),
        (encoded(Image.fromarray(GRAY > 127)), np.where(GRAY > 127, 255, 0)),
        (indexed(), PALETTE[GRAY % 3]),
        (indexed(transparent=1), PALETTE[GRAY % 3]),
        (indexed(transparent=bytes([0, 128, 255])), PALETTE[GRAY % 3]),
        (encoded(Image.fromarray(COLOR), transparency=(1, 2, 3)), COLOR),
        (encoded(Image.fromarray(np.dstack([COLOR, GRAY]))), COLOR),
        (encoded(Image.fromarray(np.dstack([GRAY, 255 - GRAY]))), GRAY),
        (encoded(Image.fromarray(GRAY.astype(np.uint16) * 256 + 255)), GRAY),
        (encoded(Image.fromarray(GRAY.astype(np.uint16) * 256 + 255), "PPM"), GRAY),
        (encoded(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
        (encoded(LAB, "TIFF"), np.asarray(LAB.convert("RGB"))),
        (encoded(Image.fromarray(COLOR), save_all=True, append_images=[OTHER]), COLOR),
        (encoded(Image.fromarray(GRAY), "GIF", save_all=True, append_images=[OTHER]), GRAY),
        (encoded(Image.fromarray(COLOR), "WEBP", lossless=True, save_all=True, append_images=[OTHER]), COLOR),
        (encoded(Image.fromarray(COLOR), "TIFF", save_all=True, append_images=[OTHER]), COLOR),
        (encoded(Image.fromarray(COLOR), "BMP"), COLOR),
    ],
    ids=[
        "gray",
        "RGB",
        "1 bit",
        "palette",
        "palette with a transparent color",
        "palette with transparent colors",
        "transparent color",
        "alpha",
        "gray with alpha",
        "16 bits",
        "PPM of 16 bits",
        "CMYK",
        "LAB",
        "animated PNG",
        "animated GIF",
        "animated WEBP",
        "TIFF of two pages",
        "BMP",
    ],
)
def test_one_rule_for_each_kind_of_file(data, expected):
    expected = (expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)).astype(np.uint8)
    for module in (transforms, preprocessing):
        assert np.array_equal(module.decode(data, channels=3), expected)
        assert np.array_equal(module.decode(data, channels=1), luma(expected))


def test_a_cmyk_photograph():
    """A JPEG with four channels: as Pillow converts it, and near to the colors it was made of."""
    smooth = Image.fromarray(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 3).convert("CMYK")
    data = encoded(smooth, "JPEG", quality=95)
    assert np.abs(np.asarray(decode(data, channels=3)).astype(int) - np.asarray(smooth.convert("RGB"))).max() < 8
    assert np.array_equal(decode(data, channels=3), preprocessing.decode(data, channels=3))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(mode):
    with pytest.raises(ImageError, match=f"32-bit image .mode {mode}., expected 8 or 16 bits per channel: convert it"):
        decode(encoded(Image.new(mode, (3, 3)), "TIFF"), channels=3)


def test_every_error_is_of_one_kind_and_one_line():
    for data in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        encoded(Image.fromarray(COLOR))[:-30],
        encoded(Image.fromarray(COLOR))[:40],
    ):
        with pytest.raises(ImageError) as caught:
            decode(data, channels=3)
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def few_bits(bits: int) -> bytes:
    """Return a gray PNG of 8 x 1 with the values 0 and 1 in turn, of so many bits each."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = int(f"{1:0{2 * bits}b}" * 4, 2).to_bytes(bits)
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "mask", [few_bits(2), few_bits(4), b"P5 8 1 20\n" + bytes([0, 1] * 4), b"P2 8 1 20\n0 1 0 1 0 1 0 1\n"]
)
def test_open_mask_refuses_what_pillow_scales(mask):
    """A mask of 4 bits with the classes 0 and 1 would have 0 and 17."""
    with pytest.raises(ImageError, match="is read with other values than it has: save it as 8-bit PNG"):
        open_mask(mask)


@pytest.mark.parametrize("mask", [few_bits(1), few_bits(8), b"P5 8 1 255\n" + bytes([0, 1] * 4)])
def test_open_mask_takes_gray(mask):
    assert np.asarray(open_mask(mask)).astype(int).tolist() == [[0, 1] * 4]


def test_open_mask_gives_values_as_they_are():
    assert np.array_equal(open_mask(indexed(transparent=1)), GRAY % 3)
    deep = np.array([[0, 300, 65_535]], dtype=np.uint16)
    assert np.array_equal(open_mask(encoded(Image.fromarray(deep))), deep)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(open_mask(encoded(Image.fromarray(GRAY), exif=exif)), np.rot90(GRAY, -1))
    with pytest.raises(ImageError, match="the mask is a JPEG, which changes values"):
        open_mask(encoded(Image.fromarray(GRAY), "JPEG"))
    with pytest.raises(ImageError, match="the mask has mode RGB, expected one channel"):
        open_mask(encoded(Image.fromarray(COLOR)))
