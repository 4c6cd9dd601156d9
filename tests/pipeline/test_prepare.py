"""The prepared format: manifest, shards, dataset.json."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from image_sets import FRACTIONS, encode, made, noise, pets, prepare_made, tree
from PIL import Image

from pipelines.sources.source import SPLITS, LeftOut

COLUMNS = {
    "id": "string",
    "split": "string",
    "label": "int64",
    "group": "string",
    "width": "int32",
    "height": "int32",
    "mode": "string",
    "format": "string",
    "bytes": "int64",
    "sha256": "string",
    "perceptual_hash": "string",
    "near_duplicate_of": "string",
    "decode_error": "string",
    **{f"{name}_{channel}": "float" for name in ("mean", "std") for channel in "rgb"},
}


def read_manifest(output):
    return pq.read_table(output / "manifest.parquet").to_pandas().set_index("id")


def read_rows(output, split):
    tables = [pq.read_table(path) for path in sorted((output / split).iterdir())]
    return pa.concat_tables(tables).to_pylist() if tables else []


@pytest.fixture
def prepared(tmp_path):
    files = pets()
    files["cat/broken.jpg"] = b"no image"
    files["dog/gray.png"] = encode(noise(99, (5, 6)))
    prepare_made(made(files, groups=["a", *[""] * (len(files) - 1)]), tmp_path / "prepared")
    return files, tmp_path / "prepared"


def test_manifest(prepared):
    files, output = prepared
    table = pq.read_table(output / "manifest.parquet")
    assert {field.name: str(field.type) for field in table.schema} == COLUMNS
    assert table["id"].to_pylist() == sorted(files)
    assert table["group"].to_pylist()[:2] == ["a", ""]
    manifest = read_manifest(output)
    broken = manifest.loc["cat/broken.jpg"]
    assert broken.decode_error.startswith("not an image: none of AVIF, BMP")
    assert (broken.width, broken["mode"], broken["format"], broken.perceptual_hash) == (0, "", "", "")
    assert np.isnan(broken.mean_r) and broken.bytes == 8
    row = manifest.loc["dog/03.png"]
    pixels = np.asarray(Image.open(io.BytesIO(files["dog/03.png"]))) / 255
    assert (row.width, row.height, row["mode"], row["format"], row.label) == (6, 5, "RGB", "PNG", 1)
    assert row.mean_g == pytest.approx(pixels[..., 1].mean(), abs=1e-6)
    assert row.std_b == pytest.approx(pixels[..., 2].std(), abs=1e-6)
    assert len(row.perceptual_hash) == 64
    assert manifest.loc["dog/gray.png", "mean_r"] == manifest.loc["dog/gray.png", "mean_b"]


def test_shards_and_dataset_json(prepared):
    files, output = prepared
    manifest, described = read_manifest(output), json.loads((output / "dataset.json").read_text())
    rows = {split: read_rows(output, split) for split in SPLITS}
    for split, mine in rows.items():
        assert sum(described["counts"][split].values()) == len(mine)
        assert [row["id"] for row in mine] == sorted(row["id"] for row in mine)
        for row in mine:
            assert row["image"]["bytes"] == files[row["id"]]
            assert (row["label"], split) == tuple(manifest.loc[row["id"], ["label", "split"]])
    assert sum(map(len, rows.values())) == 41
    pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows["train"]]
    train = np.concatenate([image.reshape(-1, 3) / 255 for image in pixels])
    assert described["mean"] == pytest.approx(train.mean(axis=0), abs=1e-5)
    assert described["std"] == pytest.approx(train.std(axis=0), abs=1e-5)
    known = ("task", "name", "source", "classes", "split")
    assert {name: described[name] for name in known} == {
        "task": "classification",
        "name": "made",
        "source": "here",
        "classes": ["cat", "dog"],
        "split": {"seed": 0, **FRACTIONS},
    }


def test_others_can_read_a_shard(prepared):
    datasets = pytest.importorskip("datasets")
    files, output = prepared
    shard = output / "train/00000.parquet"
    frame = pd.read_parquet(shard)
    assert frame.image[0]["bytes"] == files[frame.id[0]]
    assert pyarrow.dataset.dataset(output / "train").count_rows() == len(frame)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(shard), split="train", cache_dir=str(output.parent / "cache")
    )
    expected = np.asarray(Image.open(io.BytesIO(files[frame.id[0]])))
    assert np.array_equal(np.asarray(loaded[0]["image"]), expected)
    assert loaded.features["label"].names == ["cat", "dog"]


def test_what_is_told(tmp_path, capsys):
    files = pets() | {"cat/a\nb\x1b[2J.png": b"", **{f"dog/x{index}.png": b"x" for index in range(6)}}
    left_out = [LeftOut("notes\n.txt", "it is no image")]
    prepare_made(made(files, left_out=left_out), tmp_path / "prepared")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"made: 47 images, 2 classes -> {tmp_path / 'prepared'}"
    assert lines[1].startswith("splits  train ")
    assert lines[2] == "cannot be decoded  7"
    assert lines[3].startswith(r"  'cat/a\nb\x1b[2J.png': the file is empty")
    assert lines[8] == "  and 2 more"
    assert lines[9:11] == ["left out  1", r"  'notes\n.txt': it is no image"]
    assert lines[11].startswith("shards  ")
    assert pq.read_table(tmp_path / "prepared/left_out.parquet").to_pylist() == [
        {"id": "notes\n.txt", "reason": "it is no image"}
    ]


def test_names_of_any_text(tmp_path):
    names = ["cat/a b.png", "cat/a\nb.png", "cat/ü 猫.png", "dog/\\xff.png", "dog/'.png", 'dog/".png', "dog/\t.png"]
    files = {name: encode(noise(seed)) for seed, name in enumerate(names)} | pets(4)
    prepare_made(made(files), tmp_path / "prepared")
    assert read_manifest(tmp_path / "prepared").index.tolist() == sorted(files)
    found = {row["id"]: row["image"]["bytes"] for split in SPLITS for row in read_rows(tmp_path / "prepared", split)}
    assert found == files


def test_statistics_are_those_of_what_training_sees(tmp_path):
    """16 bits are scaled, EXIF turns the image, a channel without any contrast is not divided by 0."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"deep/float.tiff": encode(np.zeros((4, 4), np.float32), "TIFF")}
    for index in range(8):
        files[f"deep/{index}.png"] = encode(rng.integers(30_000, 36_000, (4, 4)).astype(np.uint16))
        red = np.zeros((4, 8, 3), np.uint8)
        red[..., 0] = rng.integers(0, 256, (4, 8))
        files[f"turned/{index}.png"] = encode(red, exif=exif)
    prepare_made(made(files), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.loc["deep/0.png", "mean_r"] == pytest.approx(33_000 / 65_536, abs=0.03)
    assert (manifest.loc["turned/0.png", "width"], manifest.loc["turned/0.png", "height"]) == (4, 8)
    assert "32-bit image" in manifest.loc["deep/float.tiff", "decode_error"]
    assert manifest.loc["deep/float.tiff", "format"] == "TIFF"
    reds = [data for name, data in files.items() if name.startswith("turned")]
    prepare_made(made({f"{'ab'[index % 2]}/{index}": data for index, data in enumerate(reds)}), tmp_path / "red")
    assert json.loads((tmp_path / "red/dataset.json").read_text())["std"][1:] == [1.0, 1.0]


def test_statistics_of_a_constant_image_are_exact(tmp_path):
    values = [0, 77, 100, 255]
    files = {f"cat/constant {value}.png": encode(np.full((251, 97, 3), value, np.uint8)) for value in values}
    prepare_made(made(pets() | files), tmp_path / "out")
    rows = read_manifest(tmp_path / "out").loc[sorted(files)]
    assert rows.mean_r.tolist() == [np.float32(value / 255) for value in sorted(values, key=str)]
    assert (rows.std_g == 0).all()


def test_one_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has one class, 'cat'; expected at least 2"):
        prepare_made(made({"cat/1.png": b""}), tmp_path / "prepared")


def test_no_readable_training_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 20 files of made can be decoded; 'cat/00\.png': not"):
        prepare_made(made({name: data[8:] for name, data in pets(10).items()}), tmp_path / "prepared")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.lock"]


def test_no_training_image_is_refused(tmp_path):
    files = pets(10)
    splits = [("train", "val", "test")[index % 3] for index in range(20)]
    bad = {
        name: data[8:] if split == "train" else data for (name, data), split in zip(files.items(), splits, strict=True)
    }
    source = dataclasses.replace(made(bad), splits=splits)
    with pytest.raises(ValueError, match="made"):
        prepare_made(source, tmp_path / "prepared")


def test_large_images_are_resized_where_that_is_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)).convert("RGB")
    files = pets() | {
        "cat/photo.jpg": encode(smooth, "JPEG", exif=exif),
        "cat/gray.png": encode(np.add.outer(np.arange(30), np.arange(30)).astype(np.uint16) * 1000),
        "cat/palette.gif": encode(smooth.quantize(16), "GIF"),
        "cat/small.jpg": encode(noise(3, (20, 90, 3)), "JPEG", quality=5),
    }
    output = tmp_path / "prepared"
    prepare_made(made(files), output, shorter_side=20)
    manifest = read_manifest(output)
    stored = {row["id"]: row["image"]["bytes"] for split in SPLITS for row in read_rows(output, split)}
    opened = {name: Image.open(io.BytesIO(data)) for name, data in stored.items()}
    assert [name for name in stored if stored[name] != files[name]] != []
    assert {name for name in stored if stored[name] != files[name]} == {
        "cat/photo.jpg",
        "cat/gray.png",
        "cat/palette.gif",
    }
    photo, gray, palette = opened["cat/photo.jpg"], opened["cat/gray.png"], opened["cat/palette.gif"]
    assert (photo.format, photo.size, photo.mode, photo.getexif().get(0x0112)) == ("JPEG", (20, 30), "RGB", None)
    assert photo.layer[0][1:3] == (1, 1), "4:4:4"
    assert (gray.format, gray.size, gray.mode) == ("PNG", (20, 20), "L")
    assert (palette.format, palette.size, palette.mode) == ("PNG", (30, 20), "RGB")
    upright = np.asarray(smooth.rotate(-90, expand=True).resize((20, 30), Image.Resampling.BICUBIC))
    assert np.abs(np.asarray(photo).astype(int) - upright).mean() < 2
    row = manifest.loc["cat/photo.jpg"]
    assert (row.width, row.height, row.bytes) == (20, 30, len(files["cat/photo.jpg"]))
    assert row.mean_r == pytest.approx(np.asarray(photo)[..., 0].mean() / 255, abs=1e-6)
    before = tree(output)
    prepare_made(made(files), output)
    assert read_manifest(output).loc["cat/photo.jpg", "width"] == 40
    prepare_made(made(files), output, shorter_side=20)
    assert tree(output) == before


def test_a_source_is_not_written_to(tmp_path):
    (tmp_path / "images").mkdir()
    for name, data in pets().items():
        (tmp_path / "images" / name.replace("/", "_")).write_bytes(data)
    readers = {name: (tmp_path / "images" / name.replace("/", "_")).read_bytes for name in pets()}
    before = {path: path.stat().st_mtime_ns for path in [tmp_path / "images", *(tmp_path / "images").iterdir()]}
    prepare_made(made(readers), tmp_path / "prepared", shorter_side=4)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path / "images", *(tmp_path / "images").iterdir()]} == before
