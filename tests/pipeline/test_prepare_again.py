"""Preparing again: what did not change stays as it was, and so does everything where it fails."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import encode, made, noise, pets, prepare_made, tree

from pipelines import prepare
from pipelines.preparation import shards
from pipelines.sources.source import SPLITS, Source


def read_rows(output, split):
    tables = [pq.read_table(path) for path in sorted((output / split).iterdir())]
    return pa.concat_tables(tables).to_pylist() if tables else []


def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "USUAL_IMAGES", 8)
    monkeypatch.setattr(shards, "USUAL_COST", shards.USUAL_BYTES * 8)


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    files = pets() | {"cat/broken.jpg": b"no image"}
    for name in ("one", "two"):
        prepare_made(made(files), tmp_path / name)
    once = tree(tmp_path / "one")
    assert set(once) > {"manifest.parquet", "left_out.parquet", "dataset.json", "train/00000.parquet"}
    assert tree(tmp_path / "two") == once
    prepare_made(made(files), tmp_path / "two")
    assert tree(tmp_path / "two") == once


def test_preparing_again_writes_only_the_shards_that_change(tmp_path, monkeypatch):
    small_shards(monkeypatch)
    files, output = pets(100), tmp_path / "prepared"
    prepare_made(made(files), output)
    before = {path.read_bytes(): path.stat() for path in output.rglob("0*.parquet")}
    assert len(before) > 12
    files["dog/030.png"] = encode(noise(1000))
    prepare_made(made(files), output)
    after = {path.read_bytes(): path.stat() for path in output.rglob("0*.parquet")}
    assert 1 <= len(set(after) - set(before)) <= 3
    for content in set(after) & set(before):
        assert (after[content].st_ino, after[content].st_mtime_ns) == (
            before[content].st_ino,
            before[content].st_mtime_ns,
        )
    found = {row["id"]: row["image"]["bytes"] for split in SPLITS for row in read_rows(output, split)}
    assert found == files


@pytest.mark.parametrize("kind", ["link", "read-only"])
def test_shards_as_dvc_leaves_them_are_kept(tmp_path, kind):
    output = tmp_path / "prepared"
    prepare_made(made(pets()), output)
    before = tree(output)
    (tmp_path / "cache").mkdir()
    for number, path in enumerate(sorted(path for path in output.rglob("*") if path.is_file())):
        cached = tmp_path / "cache" / str(number)
        path.rename(cached)
        cached.chmod(0o444)
        path.symlink_to(cached) if kind == "link" else path.hardlink_to(cached)
    cache = tree(tmp_path / "cache")
    prepare_made(made(pets()), output)
    assert tree(output) == before
    assert not [path for path in output.rglob("*") if path.is_symlink()]
    prepare_made(made(pets() | {"cat/new.png": encode(noise(77))}), output)
    assert tree(tmp_path / "cache") == cache


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_damaged_shard_is_not_kept(tmp_path, position):
    output = tmp_path / "prepared"
    prepare_made(made(pets()), output)
    before = tree(output)
    shard = next(iter(sorted(output.glob("train/*.parquet"))))
    content = bytearray(shard.read_bytes())
    content[int(len(content) * position)] ^= 1
    shard.write_bytes(content)
    assert tree(output) != before
    prepare_made(made(pets()), output)
    assert tree(output) == before


def test_other_labels_or_classes_make_other_shards(tmp_path):
    output = tmp_path / "prepared"
    source = made(pets())
    prepare_made(source, output)
    other = Source(source.name, ["dog", "cat"], source.ids, 1 - source.labels, source.splits, source.read)
    prepare_made(other, output)
    rows = read_rows(output, "train")
    assert rows and all(row["label"] == (row["id"] < "d") for row in rows)


def test_the_former_manifest_is_used_where_the_splits_are_of_the_same_settings(tmp_path, monkeypatch):
    seen = []
    assign = prepare.assign_splits
    monkeypatch.setattr(
        prepare,
        "assign_splits",
        lambda *args, former, **rest: seen.append(former) or assign(*args, former=former, **rest),
    )
    output = tmp_path / "prepared"
    for options in ({}, {}, {"seed": 1}, {"seed": 1, "origin": "there"}, {"seed": 1, "origin": "there"}):
        prepare_made(made(pets()), output, **options)
    for damaged in ("{", "[1]"):
        (output / "dataset.json").write_text(damaged)
        prepare_made(made(pets()), output, seed=1, origin="there")
    assert [former is not None for former in seen] == [False, True, False, False, True, False, False]
    assert seen[1]["id"].to_pylist() == sorted(pets())


def test_files_that_change_meanwhile(tmp_path):
    output, files = tmp_path / "prepared", pets()
    prepare_made(made(files), output)
    before = tree(output)
    file = tmp_path / "00.png"
    file.write_bytes(encode(noise(5)))

    def read():
        data = file.read_bytes()
        file.write_bytes(encode(noise(len(data), (7, 7, 3))))
        return data

    with pytest.raises(ValueError, match=r"'cat/00.png' changed while it was being prepared: run again"):
        prepare_made(made(files | {"cat/00.png": read}), output)
    assert tree(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00.png", "prepared", "prepared.lock"]


def test_a_file_that_cannot_be_read_is_a_row(tmp_path):
    output = tmp_path / "prepared"
    prepare_made(made(pets() | {"cat/00.png": (tmp_path / "gone.png").read_bytes}), output)
    manifest = pq.read_table(output / "manifest.parquet").to_pandas().set_index("id")
    row = manifest.loc["cat/00.png"]
    assert (row.decode_error, row.sha256) == ("the file cannot be read: No such file or directory", "")
    assert (manifest.decode_error == "").sum() == len(pets()) - 1
