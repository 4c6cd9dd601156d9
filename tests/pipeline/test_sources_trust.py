"""What sets of strangers may not do, and what every source holds to."""

import io
import multiprocessing
import os
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.sources.kinds import open_source
from pipelines.sources.source import Source

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
NOBODY = 65534


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, files: list[dict[str, object]]) -> None:
    """Write what `datasets` reads as images; it would put the bytes in place of the paths itself."""
    metadata = datasets.Dataset.from_dict({"image": [], "label": []}, features=FEATURES).data.schema.metadata
    images = pa.array(files, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": images, "label": pa.array([0] * len(files))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_set_reads_its_own_files_and_not_the_token_of_the_user(tmp_path, monkeypatch):
    home, folder = tmp_path / "home", tmp_path / "set"
    for part, name in ((datasets.config, "HF_DATASETS_CACHE"), (constants, "HF_HUB_CACHE")):
        (home / name).mkdir(parents=True)
        (home / name / "image.png").write_bytes(png(7))
        monkeypatch.setattr(part, name, str(home / name))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(home))
    (home / "token").write_text("secret")
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    allowed = [home / "HF_DATASETS_CACHE/image.png", home / "HF_HUB_CACHE/image.png"]
    refused = [home / "token", home / "HF_HUB_CACHE/../token", folder / "pipe.png", folder, folder / "none.png"]
    files = [{"bytes": None, "path": str(path)} for path in (*allowed, *refused)]
    write_parquet(folder / "train-00000.parquet", files)
    source = open_source(f"huggingface:{folder}")
    assert [source.read(k) for k in range(len(allowed))] == [png(7)] * len(allowed)
    for k in range(len(allowed), len(files)):
        with pytest.raises(OSError, match=r"no path within the set|No such file"):
            source.read(k)


_opened: list[Source] = []


def _read(k: int) -> bytes:
    return _opened[-1].read(k)


def test_a_saved_set_is_read_in_forked_processes(tmp_path):
    images = [{"bytes": png(shade), "path": None} for shade in range(100)]
    datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 50}, features=FEATURES).save_to_disk(
        tmp_path / "set"
    )
    _opened.append(open_source(f"huggingface:{tmp_path / 'set'}"))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_read, range(100)).get(timeout=30) == [image["bytes"] for image in images]


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root reads everything, so it is somebody else for a while."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_what_may_not_be_read_has_its_reason():
    with tempfile.TemporaryDirectory() as directory:  # pytest's own folder is closed to others
        root = Path(directory)
        root.chmod(0o755)
        for path in ("a/closed/x.png", "a/x.png", "b/x.png", "b/closed.png", "b/closed.txt"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(png(0))
        closed = [root / "a/closed", root / "b/closed.png", root / "b/closed.txt"]
        for path in closed:
            path.chmod(0)
        with without_privileges():
            source = open_source(f"folder:{root}")
            with pytest.raises(PermissionError):
                source.read(source.ids.index("b/closed.png"))
        closed[0].chmod(0o755)  # to be removed
    assert source.ids == ["a/x.png", "b/closed.png", "b/x.png"]
    assert {left.id: left.reason for left in source.left_out} == {
        "a/closed": "a directory that cannot be read: Permission denied",
        "b/closed.txt": "a file with the extension .txt that cannot be read: Permission denied",
    }


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["x", "y", "z/deep"]), NAMES), min_size=1, max_size=12))
def test_ids_are_unique_and_sorted_whatever_the_names(names):
    with tempfile.TemporaryDirectory() as directory:
        expected = {}
        for shade, (parent, name) in enumerate(names):
            path = Path(directory, parent, f"i{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(shade))
            expected[str(path.relative_to(directory))] = png(shade)
        source = open_source(f"folder:{directory}")
    assert list(source.ids) == sorted(expected) and len(set(source.ids)) == len(expected)
    assert [source.classes[label] for label in source.labels] == [id_.split("/")[0] for id_ in source.ids]


def test_a_class_is_the_same_however_its_accents_are_written(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        directory = tmp_path / split / unicodedata.normalize(form, "café")
        directory.mkdir(parents=True)
        (directory / "x.png").write_bytes(png(0))
    source = open_source(f"folder:{tmp_path}")
    assert (source.classes, source.labels.tolist()) == (["café"], [0, 0])
