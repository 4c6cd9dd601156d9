"""Masks: stored as they came, counted, and refused with a reason where training could not use them."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_sets import encode, noise, prepare_made, segmentation
from PIL import Image

from pipelines.preparation.description import describe_mask
from pipelines.sources.source import SPLITS

VALUES = [0, 1, 2, 5]
MASK = np.array([[0, 1, 2, 5, 255, 0], [0, 0, 0, 0, 0, 0]], dtype=np.uint8)
COUNTS = [8, 1, 1, 1]


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.frombytes(values.tobytes())
    image.putpalette(noise(0, (768,)).tobytes())
    return image


def rgb(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


@pytest.mark.parametrize(
    "mask",
    [
        encode(MASK),
        encode(palette(MASK)),
        encode(palette(MASK), "GIF", optimize=False),
        encode(MASK.astype(np.uint16)),
        encode(MASK, "TIFF"),
        encode(MASK.astype(">u2"), "TIFF"),
        encode(MASK, "BMP"),
    ],
    ids=["gray", "palette", "GIF", "16 bits", "TIFF", "big-endian TIFF", "BMP"],
)
def test_kinds_of_masks(mask):
    known, stored = describe_mask(mask, (6, 2), VALUES, None, 255)
    assert known == ("", pytest.approx(1 / 12), COUNTS)
    assert stored == len(mask)


def test_one_bit():
    mask = encode(Image.fromarray(MASK > 0), "PNG")
    assert describe_mask(mask, (6, 2), [0, 1], None, None)[0] == ("", 0.0, [8, 4])


def test_16_bits_are_not_scaled():
    mask = encode(np.array([[0, 300, 65_535]], dtype=np.uint16))
    assert describe_mask(mask, (3, 1), [0, 300, 65_535], None, None)[0] == ("", 0.0, [1, 1, 1])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (encode(MASK.T.copy()), "mask and image have 2 x 6 and 6 x 2 pixels, expected the same"),
        (encode(rgb(MASK)), "the mask has mode RGB, expected one channel: gray (8 or 16 bits) or a palette"),
        (encode(np.dstack([MASK, MASK])), "the mask has mode LA, expected one channel"),
        (encode(MASK.astype(np.float32), "TIFF"), "the mask has mode F, expected one channel"),
        (encode(MASK.astype(np.int32), "TIFF"), "the mask has mode I, expected one channel"),
        (encode(MASK, "JPEG"), "the mask is a JPEG, which changes values: save it anew as PNG, from the source"),
        (encode(MASK, "JPEG2000"), "the mask is a JPEG2000, which changes values"),
        (encode(MASK + 1), "values of no class: 3 (1 pixels), 6 (1 pixels); expected 0, 1, 2, 5, or 255 (void)"),
        (b"", "the file is empty"),
        (encode(noise(0, (90, 90)))[:300], "cannot be decoded: image file is truncated"),
    ],
    ids=["turned", "RGB", "alpha", "floats", "32 bits", "JPEG", "JPEG2000", "values", "empty", "cut"],
)
def test_why_a_mask_cannot_be_used(mask, reason):
    known, stored = describe_mask(mask, (6, 2), VALUES, None, 255)
    assert known.error.startswith(reason)
    assert np.isnan(known.void_share) and known.counts == [0, 0, 0, 0] and stored == 0
    assert describe_mask(mask, (6, 2), VALUES, 2, 255)[0].error == known.error


def test_without_a_void_index_255_is_no_class():
    assert describe_mask(encode(MASK), (6, 2), VALUES, None, None)[0].error.startswith("values of no class: 255 (1 pix")


@pytest.fixture
def scenes():
    rng = np.random.default_rng(0)
    files = {f"{index:02d}.png": encode(noise(index, (20, 30, 3))) for index in range(30)}
    masks = {name: rng.choice([*VALUES, 255], (20, 30)).astype(np.uint8) for name in files}
    return files, masks


def read_rows(output):
    tables = {split: [pq.read_table(path) for path in sorted((output / split).iterdir())] for split in SPLITS}
    return {split: [row for table in mine for row in table.to_pylist()] for split, mine in tables.items()}


def test_prepared_scenes(tmp_path, scenes):
    files, masks = scenes
    encoded = {name: encode(mask) for name, mask in masks.items()}
    encoded["03.png"] = encode(rgb(masks["03.png"]))
    files["04.png"] = b"no image"
    prepare_made(segmentation(files, encoded, VALUES), tmp_path / "out", void_index=255)
    manifest = pq.read_table(tmp_path / "out/manifest.parquet")
    assert [str(field.type) for field in manifest.schema][-3:] == ["string", "float", "list<element: int64>"]
    table = manifest.to_pandas().set_index("id")
    assert (table.label == -1).all()
    assert table.index[table.mask_error != ""].tolist() == ["03.png"]
    assert table.loc["05.png", "void_share"] == pytest.approx((masks["05.png"] == 255).mean())
    assert table.loc["05.png", "mask_counts"].tolist() == [(masks["05.png"] == value).sum() for value in VALUES]
    rows = read_rows(tmp_path / "out")
    found = {row["id"]: (row["image"]["bytes"], row["mask"]["bytes"]) for mine in rows.values() for row in mine}
    assert found == {name: (files[name], encoded[name]) for name in files if name not in ("03.png", "04.png")}
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert (described["task"], described["mask_values"], described["void_index"]) == ("segmentation", VALUES, 255)
    for split, mine in rows.items():
        expected = [sum((masks[row["id"]] == value).any() for row in mine) for value in VALUES]
        assert list(described["counts"][split].values()) == expected


def test_masks_are_resized_by_nearest_neighbor(tmp_path, scenes):
    files, masks = scenes
    exif = Image.Exif()
    exif[0x0112] = 6
    files["00.png"] = encode(noise(0, (30, 20, 3)), exif=exif)  # upright as large as its mask
    encoded = {name: encode(palette(mask)) for name, mask in masks.items()}
    prepare_made(segmentation(files, encoded, VALUES), tmp_path / "out", void_index=255, shorter_side=10)
    table = pq.read_table(tmp_path / "out/manifest.parquet").to_pandas().set_index("id")
    assert (table.mask_error == "").all()
    rows = [row for mine in read_rows(tmp_path / "out").values() for row in mine]
    assert len(rows) == 30
    for row in rows:
        small = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        assert np.array_equal(small, masks[row["id"]][1::2, 1::2])
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (15, 10)
        assert table.loc[row["id"], "mask_counts"].tolist() == [(small == value).sum() for value in VALUES]


def test_another_mask_makes_another_shard(tmp_path, scenes):
    files, masks = scenes
    for _ in range(2):
        encoded = {name: encode(mask) for name, mask in masks.items()}
        prepare_made(segmentation(files, encoded, VALUES), tmp_path / "out", void_index=255)
        rows = {row["id"]: row for mine in read_rows(tmp_path / "out").values() for row in mine}
        assert {name: row["mask"]["bytes"] for name, row in rows.items()} == encoded
        masks["07.png"] = masks["07.png"][::-1].copy()
