"""Sources of labeled images: folders, arrays, CSV files, and what is wrong with them."""

import hashlib
import io
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_sets import encode, noise, pets
from PIL import Image

from pipelines.sources.kinds import open_source
from pipelines.sources.source import Source


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def reasons(source: Source) -> dict[str, str]:
    return {left.id: left.reason for left in source.left_out}


def labels(source: Source) -> dict[str, str]:
    return {id_: source.classes[label] for id_, label in zip(source.ids, source.labels, strict=True)}


def test_digits_are_the_same_files_each_time():
    first, second = open_source("digits"), open_source("digits")
    assert (first.name, len(first.ids), first.classes) == ("digits", 1797, [str(digit) for digit in range(10)])
    assert first.ids[7] == "digit-000007"
    assert [hashlib.sha256(first.read(k)).digest() for k in range(50)] == [
        hashlib.sha256(second.read(k)).digest() for k in range(50)
    ]
    pixels = np.asarray(Image.open(io.BytesIO(first.read(0))))
    assert pixels.shape == (8, 8) and pixels.max() == 239  # 15 of 16


def test_folder(tmp_path):
    files = pets()
    source = open_source(f"folder:{write(tmp_path / 'pets', files)}")
    assert (source.name, source.classes, source.left_out) == ("pets", ["cat", "dog"], [])
    assert source.ids == sorted(files)
    assert [source.read(k) for k in range(40)] == [files[id_] for id_ in source.ids]
    assert all(id_.startswith(name) for id_, name in labels(source).items())
    assert set(source.splits) == {None}


def test_folder_with_splits(tmp_path):
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in pets(2).items()}
    write(tmp_path, {**files, "test/bird/deep/below/1.png": b""})
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ["bird", "cat", "dog"]
    assert labels(source)["test/bird/deep/below/1.png"] == "bird"
    assert all(id_.split("/")[0] == split for id_, split in zip(source.ids, source.splits, strict=True))


def test_what_is_left_out_has_its_reason(tmp_path):
    image = encode(noise(0))
    write(tmp_path, pets(1))
    write(
        tmp_path,
        {
            "cat/.hidden.png": image,
            "cat/notes.txt": b"notes",
            "cat/named.data": image,
            "cat/photo": encode(noise(0), "JPEG"),
            "beside.png": image,
            ".cache/x/1.png": image,
            "dog/UPPER.JPG": image,
        },
    )
    (tmp_path / "dog/out.png").symlink_to(__file__)
    os.mkfifo(tmp_path / "dog/pipe.png")
    source = open_source(f"folder:{tmp_path}")
    assert source.ids == ["cat/00.png", "dog/00.png", "dog/UPPER.JPG"]
    assert reasons(source) == {
        ".cache": "a hidden directory",
        "beside.png": "an image beside the directories of the classes, expected in one of them: move it",
        "cat/.hidden.png": "a hidden file",
        "cat/named.data": "a PNG file with the extension .data: rename it to named.png",
        "cat/notes.txt": "no image: a file with the extension .txt",
        "cat/photo": "a JPEG file with no extension: rename it to photo.jpg",
        "dog/out.png": f"a link to {__file__}, out of the source: copy the file",
        "dog/pipe.png": "a named pipe, no file",
    }


def test_many_that_are_alike_are_counted(tmp_path):
    write(tmp_path, {**pets(1), **{f"cat/{index:03d}.txt": b"" for index in range(130)}})
    source = open_source(f"folder:{tmp_path}")
    assert len(source.left_out) == 101
    assert reasons(source)["cat/*.txt"] == "30 more that end like this"


def test_names_of_any_bytes(tmp_path):
    image = encode(noise(0))
    composed, decomposed = (unicodedata.normalize(form, "école") for form in ("NFC", "NFD"))
    write(tmp_path, {"two words/line\nbreak.png": image, f"{composed}/1.png": image, f"{decomposed}/2.png": image})
    for name in (b"latin-\xe9.png", b"other.\xe9"):
        Path(os.fsdecode(os.fsencode(tmp_path / "two words") + b"/" + name)).write_bytes(image)
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ["two words", composed]
    assert len(source.ids) == len(set(source.ids)) == 4
    assert {"two words/line\nbreak.png", "two words/latin-\\xe9.png"} < set(source.ids)
    assert all(source.read(k) == image for k in range(4))
    ((id_, reason),) = reasons(source).items()
    assert id_ == "two words/other.\\xe9" and "\\xe9" in reason
    for text in (*source.ids, *source.classes, reason):
        text.encode()


def test_two_names_that_read_alike_are_refused(tmp_path):
    write(tmp_path, {"a/latin-\\xe9.png": b"", "b/1.png": b""})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/latin-\xe9.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"two images of .* have the id .*rename one"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("directories", "message"),
    [
        (["train/cat", "valid/cat"], r"holds train beside valid; expected .* Rename valid to val\."),
        (["test/cat", "cat"], r"holds test beside cat; .* Rename the class that is called like a split"),
        (["training/cat", "testing/cat"], r"rename testing to test, training to train"),
        (["Train/cat", "Test/cat"], r"rename Test to test, Train to train"),
        (["images", "masks"], "set `task: segmentation`"),
        (["train/images", "train/masks"], r"train/images and train/masks.* set `task: segmentation`"),
    ],
)
def test_layouts_that_are_refused(tmp_path, directories, message):
    write(tmp_path, {f"{name}/1.png": b"" for name in directories})
    with pytest.raises(ValueError, match=message):
        open_source(f"folder:{tmp_path}")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(f"folder:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="one directory of images per class"):
        open_source(f"folder:{tmp_path}")
    write(tmp_path, {"cat/1.txt": b""})
    with pytest.raises(FileNotFoundError, match=r"1 class directories in .* hold no images; left out: 1 .*cat/1\.txt"):
        open_source(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        open_source(f"folder:{tmp_path / 'cat/1.txt'}")


@pytest.mark.parametrize("source", ["folders:x", "folder:", "folder", "", "huggingface:", "digits:x"])
def test_sources_that_do_not_exist(source):
    with pytest.raises(ValueError, match=r"data\.source is .*(did you mean|expected)"):
        open_source(source)


@pytest.mark.parametrize("source", ["digits", "npz:x", "csv:x", "torchvision:MNIST"])
def test_segmentation_needs_a_folder(source):
    with pytest.raises(ValueError, match="expected folder:PATH for `task: segmentation`"):
        open_source(source, task="segmentation")


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


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_npz_never_loads_pickles(tmp_path, name):
    arrays = {"images": GRAY, "labels": np.zeros(2, int), "classes": np.array(["a"])}
    np.savez(tmp_path / "evil.npz", **{**arrays, name: np.array([Evil(tmp_path / "done")], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        open_source(f"npz:{tmp_path / 'evil.npz'}")
    assert not (tmp_path / "done").exists()


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


def table(root: Path, text: str, encoding: str = "utf-8") -> str:
    (root / "table.csv").write_bytes(text.encode(encoding))
    return f"csv:{root / 'table.csv'}"


def test_csv(tmp_path):
    files = {"a.png": b"a", "with, comma.png": b"c", "line\nbreak.png": b"l", "ü.png": b"u"}
    write(tmp_path, files)
    text = (
        'label,image,split,group,notes\r\n10,a.png,train,p1,x\r\n9,"with, comma.png",test,p2,\r\n\r\n'
        '9,"line\nbreak.png",train,p1,\r\n10,./ü.png,val,,\r\n9,a.png,train,p1,\r\n'
    )
    source = open_source(table(tmp_path, text, "utf-8-sig"))
    assert (source.name, source.classes) == ("table", ["9", "10"])
    assert labels(source) == {
        "a.png": "10",
        "a.png#2": "9",
        "line\nbreak.png": "9",
        "with, comma.png": "9",
        "ü.png": "10",
    }
    assert dict(zip(source.ids, source.splits, strict=True))["with, comma.png"] == "test"
    assert source.groups == ["p1", "p1", "p1", "p2", ""]
    assert [source.read(k) for k in range(5)] == [b"a", b"a", b"l", b"c", b"u"]


def test_csv_without_groups_and_with_paths_that_leave(tmp_path):
    write(tmp_path / "set", {"a.png": b"a"})
    write(tmp_path, {"secret.png": b"secret"})
    (tmp_path / "set/link.png").symlink_to("../secret.png")
    os.mkfifo(tmp_path / "set/pipe.png")
    rows = ["a.png", "missing.png", "../secret.png", "/etc/passwd", "x/../../secret.png", "link.png", "pipe.png"]
    source = open_source(table(tmp_path / "set", "image,label\n" + "".join(f"{row},a\n" for row in rows)))
    assert source.groups is None and set(source.splits) == {None}
    assert source.ids == ["a.png", "link.png", "missing.png", "pipe.png"]
    assert set(reasons(source)) == {"../secret.png", "/etc/passwd", "x/../../secret.png"}
    assert reasons(source)["/etc/passwd"].startswith("line 5: a path that")
    for k, message in ((1, "a link out of the folder"), (2, "No such file"), (3, "it is no file")):
        with pytest.raises(OSError, match=message):
            source.read(k)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column image and no label; its first line has nothing"),
        ("image;label\na.png;cat\n", "no column image and no label; its first line has image;label"),
        ("image,label,image\na,b,c\n", "the column image twice"),
        ("image,label,Split\na,b,train\n", r"a column 'Split'; did you mean 'split'\?"),
        ("image,label\na.png,cat\nb.png\n", "line 3: 1 values, expected 2"),
        ("image,label\na,b.png,cat\n", "line 2: 3 values, expected 2.*quote"),
        ("image,label\na.png,cat\nb.png, \n", "line 3: there is no label"),
        ("image,label\n,cat\n", "line 2: there is no image"),
        ("image,label,split\na.png,cat,valid\n", "line 2: the split is 'valid', expected train, val, test"),
        ("image,label,split\na.png,cat,\n", "line 2: the split is '', expected train, val, test"),
        ('image,label\na.png,cat\n"b.png,cat\n', "line 3: this is no CSV: unexpected end"),
        ('image,label\n"a"b.png,cat\n', "line 2: this is no CSV"),
        (f"image,label\n{'x' * 200_000},cat\n", "line 2: this is no CSV: field larger"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        open_source(table(tmp_path, text))


def test_csv_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"line 3: this is no UTF-8 text .*save it as UTF-8"):
        open_source(table(tmp_path, "image,label\na.png,b\né.png,b\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match="lists no images"):
        open_source(table(tmp_path, "image,label\n"))
    with pytest.raises(FileNotFoundError, match=r"lists no images; 1 are left out, the first: line 2"):
        open_source(table(tmp_path, "image,label\n/x.png,a\n"))
    with pytest.raises(ValueError, match="is no file, expected a CSV"):
        open_source(f"csv:{tmp_path}")
