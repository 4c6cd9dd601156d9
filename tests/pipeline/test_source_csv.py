"""Sources of images listed in a CSV file, and what is wrong with them."""

import os
from pathlib import Path

import pytest
from image_sets import labels_of, reasons, write

from pipelines.sources.kinds import open_source


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
    assert labels_of(source) == {
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
