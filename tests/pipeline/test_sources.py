"""Sources of images in a directory per class, and what is wrong with them."""

import os
import unicodedata
from pathlib import Path

import pytest
from image_sets import encode, labels_of, noise, pets, reasons, write

from pipelines.sources.kinds import open_source


def test_folder(tmp_path):
    files = pets()
    source = open_source(f"folder:{write(tmp_path / 'pets', files)}")
    assert (source.name, source.classes, source.left_out) == ("pets", ["cat", "dog"], [])
    assert source.ids == sorted(files)
    assert [source.read(k) for k in range(40)] == [files[id_] for id_ in source.ids]
    assert all(id_.startswith(name) for id_, name in labels_of(source).items())
    assert set(source.splits) == {None}


def test_folder_with_splits(tmp_path):
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in pets(2).items()}
    write(tmp_path, {**files, "test/bird/deep/below/1.png": b""})
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ["bird", "cat", "dog"]
    assert labels_of(source)["test/bird/deep/below/1.png"] == "bird"
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
            "cat/phone.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
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
        "cat/phone.HEIC": "an image in HEIC format, which is not read: convert it to JPEG or PNG",
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


def test_a_path_without_its_kind(tmp_path):
    with pytest.raises(ValueError, match=f"did you mean folder:{tmp_path}"):
        open_source(str(tmp_path))


def test_a_folder_for_hugging_face_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder: correct the path, or give USER/SET of the Hub"):
        open_source(f"huggingface:{tmp_path}/missing")


@pytest.mark.parametrize("source", ["digits", "npz:x", "csv:x", "torchvision:MNIST"])
def test_segmentation_needs_a_folder(source):
    with pytest.raises(ValueError, match="expected folder:PATH for `task: segmentation`"):
        open_source(source, task="segmentation")
