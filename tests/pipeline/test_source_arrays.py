"""Sources of images in arrays: the digits, .npz files, and what is wrong with them."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from image_sets import noise, reasons
from PIL import Image

from pipelines.sources.kinds import open_source


def test_digits_are_the_same_files_each_time():
    first, second = open_source("digits"), open_source("digits")
    assert (first.name, len(first.ids), first.classes) == ("digits", 1797, [str(digit) for digit in range(10)])
    assert first.ids[7] == "digit-000007"
    assert [hashlib.sha256(first.read(k)).digest() for k in range(50)] == [
        hashlib.sha256(second.read(k)).digest() for k in range(50)
    ]
    pixels = np.asarray(Image.open(io.BytesIO(first.read(0))))
    assert pixels.shape == (8, 8) and pixels.max() == 239  # 15 of 16


def test_npz_file_and_folder(tmp_path):
    images = noise(0, (4, 5, 6))
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 1, 0, 1], classes=["a", "b"])
    np.savez(tmp_path / "test.npz", images=images[:2, ..., None], labels=[1, 0], classes=["a", "b"])
    one = open_source(f"npz:{tmp_path / 'train.npz'}")
    assert (one.name, one.classes, one.ids[3]) == ("train", ["a", "b"], "image-000003")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.read(2)))), images[2])
    np.savez(tmp_path / "extra.npz", images=images)
    both = open_source(f"npz:{tmp_path}")
    assert both.splits == ["test"] * 2 + ["train"] * 4
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(both.read(1)))), images[1])
    assert "rename it" in reasons(both)["extra.npz"]


def test_npz_of_16_bits_and_of_color(tmp_path):
    deep, color = np.arange(40, dtype=np.uint16).reshape(2, 4, 5) * 1000, noise(1, (2, 4, 5, 3))
    for images in (deep, color):
        np.savez_compressed(tmp_path / "set.npz", images=images, labels=[0, 1])
        source = open_source(f"npz:{tmp_path / 'set.npz'}")
        assert source.classes == ["0", "1"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(1)))), images[1])


GRAY = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GRAY}, "has no array labels"),
        ({"images": np.zeros((2, 4, 4)), "labels": [0, 1]}, r"images float64 \(2, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8), "labels": [0, 1]}, r"uint8 \(2, 4, 4, 5\)"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": []}, r"uint8 \(0, 4, 4\)"),
        ({"images": GRAY, "labels": [[0], [1]]}, r"labels int64 \(2, 1\)"),
        ({"images": GRAY, "labels": [0.5, 1]}, "labels float64"),
        ({"images": GRAY, "labels": [0, 2], "classes": ["a", "b"]}, "labels 0 to 2, but 2 classes"),
        ({"images": GRAY, "labels": [-1, 0]}, "labels -1 to 0, but 1 classes"),
        ({"images": GRAY, "labels": [0, 10**12]}, "labels to 1000000000000, expected 0, 1, 2"),
        ({"images": GRAY, "labels": [0, 1], "classes": ["a", "a"]}, "names the class 'a' twice"),
        ({"images": GRAY, "labels": [0, 1], "classes": [[0.5]]}, r"classes float64 \(1, 1\)"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(f"npz:{tmp_path / 'bad.npz'}")


def test_npz_files_that_disagree(tmp_path):
    for split, classes in {"train": ["a", "b"], "test": ["b", "a"]}.items():
        np.savez(tmp_path / f"{split}.npz", images=GRAY, labels=[0, 1], classes=classes)
    with pytest.raises(ValueError, match="name different classes"):
        open_source(f"npz:{tmp_path}")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds none of train\.npz"):
        open_source(f"npz:{tmp_path / 'none'}")


def test_npz_that_is_none(tmp_path):
    np.savez(tmp_path / "whole.npz", images=noise(0, (50, 8, 8)), labels=np.zeros(50, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04broken")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        for name in ("images", "labels"):
            archive.writestr(f"{name}.npy", b"no array")
    for name in ("cut.npz", "text.npz", "empty.npz", "broken.npz", "array.npy", "bytes.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read: .*numpy\.savez"):
            open_source(f"npz:{tmp_path / name}")


def test_npz_that_claims_to_be_huge(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**46, 4, 4)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", b"")
    with pytest.raises(ValueError, match=r"huge\.npz cannot be read: "):
        open_source(f"npz:{tmp_path / 'huge.npz'}")


def test_npz_larger_than_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((1000, 64, 64), np.uint8), labels=np.zeros(1000, int))
    free = type("Memory", (), {"available": 2**21})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(ValueError, match=r"arrays take 0\.0 GiB, .* as files in a directory per class"):
        open_source(f"npz:{tmp_path / 'bomb.npz'}")
