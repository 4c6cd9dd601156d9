"""Sources, splits and the prepared format."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from grpo_rm.datasets import read_ids, read_split
from pipelines.prepare import difference_hash, prepare, write_shards
from pipelines.sources import Item, Source, open_source
from pipelines.splits import assign_splits

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2}


def png(rng: np.random.Generator, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> bytes:
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "pets" / name / f"{index:02d}.png").write_bytes(png(rng))
    return tmp_path / "pets"


def made(labels: list[int], splits: list[str | None] | None = None) -> tuple[Source, list[str]]:
    splits = splits or [None] * len(labels)
    items = [
        Item(f"i{index}", label, split, lambda: b"")
        for index, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]
    return Source("made", [str(k) for k in range(max(labels) + 1)], items), [f"digest {item.id}" for item in items]


def test_folder(folder):
    source = open_source(f"folder:{folder}")
    assert (source.name, source.classes) == ("pets", ["cat", "dog"])
    assert [(item.id, item.label) for item in source.items][:1] == [("cat/00.png", 0)]
    assert len(source.items) == 40
    assert source.items[0].read() == (folder / "cat/00.png").read_bytes()


def test_folder_with_splits(tmp_path, folder):
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split/train")
    (tmp_path / "split/test/cat").mkdir(parents=True)
    (tmp_path / "split/test/cat/x.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path / 'split'}")
    assert source.classes == ["cat", "dog"]
    assert {item.id: item.split for item in source.items}["test/cat/x.png"] == "test"
    assert sum(item.split == "train" for item in source.items) == 40


def test_npz_file_and_folder(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 1, 0, 1], classes=["a", "b"])
    np.savez(tmp_path / "test.npz", images=images[:2], labels=[1, 0], classes=["a", "b"])
    one = open_source(f"npz:{tmp_path / 'train.npz'}")
    assert one.classes == ["a", "b"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.items[2].read()))), images[2])
    both = open_source(f"npz:{tmp_path}")
    assert [item.split for item in both.items] == ["train"] * 4 + ["test"] * 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "has no array labels"),
        ({"images": np.zeros((2, 4, 4)), "labels": [0, 1]}, r"images float64 \(2, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8), "labels": [0, 1]}, r"uint8 \(2, 4, 4, 5\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": []}, r"uint8 \(0, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [[0], [1]]}, r"labels int64 \(2, 1\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0.5, 1]}, "labels float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, 2], "classes": ["a", "b"]}, "labels 0 to 2, but 2 cl"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(f"npz:{tmp_path / 'bad.npz'}")


def test_npz_that_is_none(tmp_path):
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04broken")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "broken.npz", "array.npy"):
        with pytest.raises(ValueError, match=r"cannot be read: .*numpy\.savez"):
            open_source(f"npz:{tmp_path / name}")


def test_npz_never_loads_pickles(tmp_path):
    np.savez(tmp_path / "evil.npz", images=np.array([{}], dtype=object), labels=[0])
    with pytest.raises(ValueError, match="allow_pickle"):
        open_source(f"npz:{tmp_path / 'evil.npz'}")


def test_split_directories_beside_others_are_refused(tmp_path, folder):
    (tmp_path / "kaggle").mkdir()
    folder.rename(tmp_path / "kaggle/train")
    (tmp_path / "kaggle/valid/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds train beside valid; expected .* Rename a split"):
        open_source(f"folder:{tmp_path / 'kaggle'}")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        open_source(f"folder:{tmp_path / 'images.zip'}")


def test_one_class_is_refused(tmp_path):
    source, _ = made([0] * 9)
    with pytest.raises(ValueError, match="has one class, '0'; expected at least 2"):
        prepare(source, tmp_path / "prepared", **FRACTIONS, seed=0, origin="here")


def test_statistics_are_those_of_what_training_sees(tmp_path):
    """16 bits are scaled, EXIF turns the image, a channel without any contrast is not divided by 0."""
    rng = np.random.default_rng(0)
    for name in ("deep", "turned"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for index in range(6):
        deep = Image.fromarray(rng.integers(30_000, 36_000, (4, 4)).astype(np.uint16))
        deep.save(tmp_path / f"set/deep/{index}.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        red = np.zeros((4, 8, 3), np.uint8)
        red[..., 0] = rng.integers(0, 256, (4, 8))
        Image.fromarray(red).save(tmp_path / f"set/turned/{index}.png", exif=exif)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "set/deep/float.tiff")
    prepare(open_source(f"folder:{tmp_path / 'set'}"), tmp_path / "out", **FRACTIONS, seed=0, origin="here")
    manifest = pq.read_table(tmp_path / "out/manifest.parquet").to_pandas().set_index("id")
    assert manifest.loc["deep/0.png", "mean_r"] == pytest.approx(33_000 / 65_536, abs=0.03)
    assert (manifest.loc["turned/0.png", "width"], manifest.loc["turned/0.png", "height"]) == (4, 8)
    assert "32-bit image" in manifest.loc["deep/float.tiff", "decode_error"]
    only_red = open_source(f"folder:{tmp_path / 'set'}")
    items = [item for item in only_red.items if item.label == 1]
    halves = [Item(item.id, index % 2, None, item.read) for index, item in enumerate(items)]
    prepare(Source("red", ["a", "b"], halves), tmp_path / "red", **FRACTIONS, seed=0, origin="here")
    assert json.loads((tmp_path / "red/dataset.json").read_text())["std"][1:] == [1.0, 1.0]


def test_large_files_make_more_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.prepare.MAX_SHARD_BYTES", 100)
    items = [Item(f"i{index}", 0, None, lambda index=index: bytes([index]) * 40) for index in range(7)]
    write_shards(items, tmp_path / "train")
    assert len(list((tmp_path / "train").iterdir())) == 4
    assert read_split(tmp_path, "train").files == [item.read() for item in items]
    assert read_ids(tmp_path, "train") == [item.id for item in items]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(f"folder:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="one directory of images per class"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="hold no files"):
        open_source(f"folder:{tmp_path}")


def test_splits_golden():
    # places .498 .434 .298 .594 .892 .779 | .798 .777 .314 .000 .687 .649: in the first class no image is below
    # 0.2 nor 0.4, so its two nearest are moved
    source, digests = made([0] * 6 + [1] * 6)
    expected = ["train", "val", "test", *["train"] * 3, "train", "train", "val", "test", "train", "train"]
    assert assign_splits(source, digests, **FRACTIONS, seed=0) == expected


def test_split_shares():
    source, digests = made([0, 1] * 2000)
    splits = assign_splits(source, digests, **FRACTIONS, seed=3)
    for split, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        for label in (0, 1):
            mine = [splits[i] for i, item in enumerate(source.items) if item.label == label]
            assert mine.count(split) / len(mine) == pytest.approx(share, abs=0.03)


def test_adding_images_moves_none():
    source, digests = made([0, 1] * 100)
    more, more_digests = made([0, 1] * 150)
    before = assign_splits(source, digests, **FRACTIONS, seed=0)
    assert assign_splits(more, more_digests, **FRACTIONS, seed=0)[:200] == before


def test_copies_stay_together():
    source, digests = made([0] * 60)
    digests[40:] = digests[:20]
    splits = assign_splits(source, digests, **FRACTIONS, seed=0)
    assert splits[40:] == splits[:20]


def test_every_class_is_in_every_split():
    for count in range(3, 12):
        source, digests = made([0] * count)
        for seed in range(20):
            assert set(assign_splits(source, digests, **FRACTIONS, seed=seed)) == {"train", "val", "test"}


def test_given_splits_are_kept_and_the_missing_one_comes_from_training():
    source, digests = made([0] * 50, ["train"] * 40 + ["test"] * 10)
    splits = assign_splits(source, digests, **FRACTIONS, seed=0)
    assert splits[40:] == ["test"] * 10
    assert 0 < splits[:40].count("val") < 20
    assert "test" not in splits[:40]


def test_a_class_too_small_is_named():
    source, digests = made([0] * 5 + [1])
    with pytest.raises(ValueError, match=r"'1' has 1; expected at least 3, one for each of train, test, val"):
        assign_splits(source, digests, **FRACTIONS, seed=0)


def test_prepared_files(tmp_path, folder):
    (folder / "cat/broken.jpg").write_bytes(b"no image")
    (folder / "dog/gray.png").write_bytes(png(np.random.default_rng(9), mode="L"))
    (folder / "dog/.hidden").write_bytes(b"")
    output = tmp_path / "prepared"
    prepare(open_source(f"folder:{folder}"), output, **FRACTIONS, seed=0, origin=f"folder:{folder}")

    manifest = pq.read_table(output / "manifest.parquet").to_pandas().set_index("id")
    assert len(manifest) == 42
    broken = manifest.loc["cat/broken.jpg"]
    assert broken.decode_error == "UnidentifiedImageError: cannot identify image file"
    assert (broken.width, broken["mode"]) == (0, "")
    row = manifest.loc["dog/03.png"]
    pixels = np.asarray(Image.open(folder / "dog/03.png")) / 255
    assert (row.width, row.height, row["mode"], row.label) == (6, 5, "RGB", 1)
    assert row.mean_g == pytest.approx(pixels[..., 1].mean(), abs=1e-6)
    assert row.std_b == pytest.approx(pixels[..., 2].std(), abs=1e-6)
    assert manifest.loc["dog/gray.png", "mean_r"] == manifest.loc["dog/gray.png", "mean_b"]

    described = json.loads((output / "dataset.json").read_text())
    splits = {name: read_split(output, name) for name in ("train", "val", "test")}
    for name, split in splits.items():
        assert sum(described["counts"][name].values()) == len(split.ids)
        assert (manifest.loc[split.ids, "split"] == name).all()
        assert split.files == [(folder / id_).read_bytes() for id_ in split.ids]
        assert (manifest.loc[split.ids, "label"] == split.labels).all()
    assert sum(len(split.ids) for split in splits.values()) == 41

    train = np.concatenate(
        [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).reshape(-1, 3) / 255 for file in splits["train"].files]
    )
    assert described["mean"] == pytest.approx(train.mean(axis=0), abs=1e-5)
    assert described["std"] == pytest.approx(train.std(axis=0), abs=1e-5)


def test_preparing_twice_gives_the_same_bytes(tmp_path, folder):
    (folder / "cat/broken.jpg").write_bytes(b"no image")
    for name in ("one", "two"):
        prepare(open_source(f"folder:{folder}"), tmp_path / name, **FRACTIONS, seed=0, origin="here")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_failed_preparation_leaves_the_earlier_one(tmp_path, folder):
    output = tmp_path / "prepared"
    prepare(open_source(f"folder:{folder}"), output, **FRACTIONS, seed=0, origin="here")
    before = (output / "manifest.parquet").read_bytes()
    source = open_source(f"folder:{folder}")
    (folder / "dog/07.png").unlink()
    with pytest.raises(FileNotFoundError):
        prepare(source, output, **FRACTIONS, seed=0, origin="here")
    assert (output / "manifest.parquet").read_bytes() == before


def test_difference_hash_golden():
    falling = Image.fromarray(np.tile(np.arange(9, 0, -1, dtype=np.uint8) * 20, (8, 1)))
    assert difference_hash(falling) == "0" * 16
    assert difference_hash(falling.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == "f" * 16
