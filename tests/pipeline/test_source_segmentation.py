"""Folders of images with masks, and what is wrong with them."""

from pathlib import Path

import pytest

from pipelines.sources.kinds import open_source

NAMES = "road\ncar\nunlabeled\n"


def write(root: Path, *names: str, classes: str | bytes | None = NAMES) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    if classes is not None:
        (root / "classes.txt").write_bytes(classes if isinstance(classes, bytes) else classes.encode())
    return root


def test_images_and_masks_by_stem(tmp_path):
    write(tmp_path, "images/2.jpg", "masks/2.png", "images/street/1.one.png", "masks/street/1.one.png")
    source = open_source(f"folder:{tmp_path}", task="segmentation", void_index=2)
    assert source.ids == ["images/2.jpg", "images/street/1.one.png"]
    assert (source.classes, source.mask_values) == (["road", "car"], [0, 1])
    assert source.labels.tolist() == [-1, -1] and source.splits == [None, None] and source.left_out == []
    assert source.read_mask is not None
    assert [source.read(k).decode() for k in range(2)] == source.ids
    assert [source.read_mask(k).decode() for k in range(2)] == ["masks/2.png", "masks/street/1.one.png"]


def test_splits_and_a_void_value_amid_the_classes(tmp_path):
    write(tmp_path, *(f"{split}/{kind}/1.png" for split in ("train", "val", "test") for kind in ("images", "masks")))
    source = open_source(f"folder:{tmp_path}", task="segmentation", void_index=1)
    assert source.splits == ["test", "train", "val"]
    assert (source.classes, source.mask_values) == (["road", "unlabeled"], [0, 2])
    assert source.read_mask is not None and source.read_mask(1) == b"train/masks/1.png"
    assert len(open_source(f"folder:{tmp_path}", task="segmentation", void_index=255).classes) == 3


def test_what_is_left_out_has_its_reason(tmp_path):
    good = ["train/images/1.png", "train/masks/1.png"]
    write(tmp_path, *good, "train/images/2.png", "train/masks/3.png", "train/4.png", "train/masks/.x.png", "README.md")
    write(tmp_path, "train/images/5.png", "train/images/5.jpg", "train/masks/5.png", "test/images/1.png")
    (tmp_path / "train/images/6.png").symlink_to(__file__)
    source = open_source(f"folder:{tmp_path}", task="segmentation")
    assert source.ids == ["train/images/1.png"]
    several = "images with the same stem, so it is not clear which is meant: train/images/5.jpg, train/images/5.png"
    found = {left.id: left.reason for left in source.left_out}
    assert found.pop("train/4.png").startswith("neither in images nor in masks, expected")
    assert found == {
        "README.md": "no image: a file with the extension .md",
        "test/images/1.png": "an image without a mask of the same stem",
        "train/images/2.png": "an image without a mask of the same stem",
        "train/images/5.jpg": several,
        "train/images/5.png": several,
        "train/images/6.png": f"a link to {__file__}, out of the source: copy the file",
        "train/masks/.x.png": "a hidden file",
        "train/masks/3.png": "a mask without an image of the same stem",
        "train/masks/5.png": several,
    }


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (None, FileNotFoundError, r"classes\.txt does not exist; expected a file with a name per line"),
        ("road\n\ncar\n", ValueError, "line 2 is empty, expected a name for the value 1"),
        ("road\ncar\nroad\n", ValueError, "line 3 names 'road' again"),
        ("\n".join(map(str, range(257))), ValueError, "has 257 lines, expected at most 256"),
        ("stra\xdfe".encode("latin-1"), ValueError, "is no UTF-8 text"),
    ],
)
def test_bad_names_of_classes(tmp_path, classes, error, message):
    write(tmp_path, "images/1.png", "masks/1.png", classes=classes)
    with pytest.raises(error, match=message):
        open_source(f"folder:{tmp_path}", task="segmentation")


def test_names_of_classes_from_elsewhere_are_not_read(tmp_path):
    write(tmp_path / "set", "images/1.png", "masks/1.png", classes=None)
    write(tmp_path, classes="secret\n")
    (tmp_path / "set/classes.txt").symlink_to("../classes.txt")
    with pytest.raises(FileNotFoundError, match=r"is a link to \.\./classes\.txt, out of the source.* expected"):
        open_source(f"folder:{tmp_path / 'set'}", task="segmentation")


def test_other_layouts_are_refused(tmp_path):
    write(tmp_path / "pets", "cat/1.png", "dog/1.png")
    with pytest.raises(ValueError, match=r"no directories images and masks.* set `task: classification`"):
        open_source(f"folder:{tmp_path / 'pets'}", task="segmentation")
    write(tmp_path / "apart", "images/1.png", "masks/2.png")
    with pytest.raises(FileNotFoundError, match=r"no image with a mask.* the first is images/1\.png: an image without"):
        open_source(f"folder:{tmp_path / 'apart'}", task="segmentation")
    write(tmp_path / "mixed", "train/images/1.png", "train/masks/1.png", "validation/images/1.png")
    with pytest.raises(ValueError, match="Rename validation to val"):
        open_source(f"folder:{tmp_path / 'mixed'}", task="segmentation")
