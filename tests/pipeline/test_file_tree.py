"""Walking through a folder of strangers: links, pipes, what cannot be read, names of any bytes."""

import os
import tracemalloc
from pathlib import Path

import pytest

from pipelines.file_tree import file_id, read_file, walk


def listed(root: Path, *, is_confined: bool = True) -> dict[str, str]:
    return {file_id(found.path): found.reason for found in walk(str(root), is_confined=is_confined)}


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_in_order_with_directories_before_their_content(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/c/x", "z"):
        touch(tmp_path / name)
    assert list(listed(tmp_path)) == ["a", "a/c", "a/c/x", "b", "b/1.png", "b/2.png", "z"]
    assert not any(listed(tmp_path).values())


def test_hidden_directories_are_told_of_and_not_entered(tmp_path):
    touch(tmp_path / ".git/config")
    touch(tmp_path / "__MACOSX/._a.png")
    touch(tmp_path / ".DS_Store")
    assert listed(tmp_path) == {
        ".DS_Store": "a hidden file",
        ".git": "a hidden directory",
        "__MACOSX": "a hidden directory",
    }


def test_links(tmp_path):
    root, outside = tmp_path / "set", tmp_path / "outside"
    touch(outside / "secret.png")
    touch(root / "a/1.png")
    (root / "a/inside.png").symlink_to("1.png")
    (root / "a/secret.png").symlink_to(outside / "secret.png")
    (root / "a/broken.png").symlink_to("nowhere")
    (root / "a/self.png").symlink_to("self.png")
    (root / "b").symlink_to("a")
    (root / "c").symlink_to(outside)
    (root / "lookalike").symlink_to(tmp_path / "set beside")
    touch(tmp_path / "set beside/x")
    found = listed(root)
    assert found["a/inside.png"] == found["b"] == found["b/1.png"] == ""
    assert found["a/secret.png"] == f"a link to {outside}/secret.png, out of the source: copy the file"
    assert found["c"] == f"a link to {outside}, out of the source: copy its files"
    assert "out of the source" in found["lookalike"]
    assert found["a/broken.png"] == "a link to nowhere: No such file or directory"
    assert found["a/self.png"] == "a link to self.png: Too many levels of symbolic links"
    assert not any(path.startswith(("c/", "lookalike/")) for path in found)
    free = listed(root, is_confined=False)
    assert free["c/secret.png"] == free["a/secret.png"] == ""


def test_links_in_a_circle_end(tmp_path):
    for name in "abc":
        touch(tmp_path / name / "1.png")
        for other in "abc":
            (tmp_path / name / f"to {other}").symlink_to(f"../{other}")
    (tmp_path / "a/up").symlink_to("..")
    found = listed(tmp_path)
    assert found["a/up"] == "a link to .., a directory above it: it would never end"
    assert found["a/to a"].endswith("it would never end")
    assert found["a/to b/1.png"] == ""
    assert found["a/to b/to c"] == "a link to ../c, within a link: copy its files"
    assert len(found) < 60


def test_links_into_the_cache_of_dvc_are_followed(tmp_path):
    cached = touch(tmp_path / f"cache/files/md5/ab/{'0' * 30}", b"content")
    other = touch(tmp_path / "cache/files/md5/ab/passwords")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/good.png").symlink_to(cached)
    (tmp_path / "set/bad.png").symlink_to(other)
    found = listed(tmp_path / "set")
    assert found["good.png"] == ""
    assert "out of the source" in found["bad.png"]


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to("pipe.png")
    assert listed(tmp_path) == {
        "linked.png": "a link to pipe.png, a named pipe, no file",
        "pipe.png": "a named pipe, no file",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every directory")
def test_a_directory_without_permission(tmp_path):
    touch(tmp_path / "closed/1.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert listed(tmp_path) == {"closed": "a directory that cannot be read: Permission denied"}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_directory_too_deep_to_read(tmp_path, monkeypatch):
    touch(tmp_path / "other/1.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    found = listed(tmp_path)
    assert [reason for reason in found.values() if reason] == ["a directory that cannot be read: File name too long"]
    assert found["other/1.png"] == ""


def test_names_of_any_bytes(tmp_path):
    names = [b"two words.png", b"line\nbreak.png", "größe 猫.png".encode(), b"latin-\xe9.png", b"quote'\".png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    found = {file_id(entry.path): entry.path for entry in walk(str(tmp_path), is_confined=True)}
    assert set(found) == {
        "two words.png",
        "line\nbreak.png",
        "größe 猫.png",
        "latin-\\xe9.png",
        "quote'\".png",
    }
    assert sorted(read_file(f"{tmp_path}/{path}") for path in found.values()) == sorted(names)
    for id_ in found:
        assert id_.encode()  # no half characters: Parquet has UTF-8


def test_a_file_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.file_tree.MAX_FILE_BYTES", 100)
    assert len(read_file(str(touch(tmp_path / "fits", bytes(100))))) == 100
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_file(str(touch(tmp_path / "larger", bytes(101))))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="which no image needs"):
            read_file(str(tmp_path / "a.png"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
