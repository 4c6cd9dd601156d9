"""Shards: where they begin, what is in them, and that others can read them."""

import hashlib
import io
import random

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.preparation import shards
from pipelines.preparation.shards import ShardRow, plan_shards, read_key, shard_key, write_shard

MIB = 2**20
IDS = st.text("ab/é\n", max_size=6)
SIZES = st.integers(0, 40 * MIB) | st.integers(0, 300 * MIB)
ROWS = st.dictionaries(IDS, SIZES, min_size=1, max_size=60)
SAME_EXAMPLES = settings(derandomize=True, database=None, deadline=None)


def starts_of(sizes):
    """Return the id that each shard begins with."""
    ids = sorted(sizes)
    return [ids[rows[0]] for rows in plan_shards(ids, [sizes[id_] for id_ in ids])]


def cost(size):
    """Return what part of a usual shard it is."""
    return max(size / (64 * MIB), 1 / 4000)


@SAME_EXAMPLES
@given(ROWS)
def test_where_shards_begin_row_by_row(sizes):
    begins, filled = [], 0.0
    for id_ in sorted(sizes):
        number = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little") / 2**64
        is_chosen = filled >= 0.5 and number < 2 * cost(sizes[id_])
        if not begins or is_chosen or filled + cost(sizes[id_]) > 2:
            begins.append(id_)
            filled = 0.0
        filled += cost(sizes[id_])
    assert starts_of(sizes) == begins


@SAME_EXAMPLES
@given(ROWS)
def test_every_row_is_in_one_shard_and_none_is_too_large(sizes):
    ids = sorted(sizes)
    plan = plan_shards(ids, [sizes[id_] for id_ in ids])
    assert [row for rows in plan for row in rows] == list(range(len(ids)))
    assert all(len(rows) == 1 or sum(sizes[ids[row]] for row in rows) <= 128 * MIB for rows in plan)


@SAME_EXAMPLES
@given(ROWS, IDS, SIZES)
def test_another_image_changes_nothing_before_it_nor_after_the_next_common_start(sizes, added, size):
    sizes.pop(added, None)
    before, after = starts_of(sizes) if sizes else [], starts_of(sizes | {added: size})
    assert [id_ for id_ in before[1:] if id_ < added] == [id_ for id_ in after[1:] if id_ < added]
    common = [id_ for id_ in after if id_ > added and id_ in before]
    if common:
        assert before[before.index(common[0]) :] == after[after.index(common[0]) :]


def test_another_image_changes_few_shards():
    ids = [f"class {number // 500:03d}/{number % 500:03d}.jpg" for number in range(60_000)]
    plan = plan_shards(ids, [20_000] * len(ids))
    known = {tuple(ids[row] for row in rows) for rows in plan}
    assert 12 <= len(plan) <= 30
    assert max(len(rows) for rows in plan) <= 8_000
    assert len(plan_shards(ids, [100_000] * len(ids))) > 60  # of as many bytes each, not of as many images
    counts = []
    for place in random.Random(0).sample(range(60_000), 30):
        more = [*ids[: place + 1], f"{ids[place]} copy", *ids[place + 1 :]]
        counts.append(
            sum(tuple(more[row] for row in rows) not in known for rows in plan_shards(more, [20_000] * 60_001))
        )
    assert sum(counts) / len(counts) < 1.5
    assert max(counts) <= 3


def test_no_rows_no_shards():
    assert plan_shards([], []) == []


def test_the_key_says_what_the_content_follows_from():
    same = {"ids": ["a", "b"], "digests": ["0", "1"], "labels": [0, 1], "classes": ["x", "y"]}
    others = [{"ids": ["a", "c"]}, {"digests": ["0", "2"]}, {"labels": [1, 1]}, {"classes": ["x", "z"]}]
    keys = {shard_key(**(same | other)) for other in [{}, *others, {"ids": ["ab"], "digests": ["01"]}]}
    assert len(keys) == 6
    assert shard_key(**same) == shard_key(**same) in keys


def test_the_format_is_in_the_key(monkeypatch):
    before = shard_key(["a"], ["0"], [0], classes=["x"])
    monkeypatch.setattr(shards, "FORMAT", shards.FORMAT + 1)
    assert shard_key(["a"], ["0"], [0], classes=["x"]) != before


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (8, 6), value).save(buffer, "PNG")
    return buffer.getvalue()


CLASSES = ["höhe", "tiefe"]
LABELED = [ShardRow(f"a b/{number:02d}\n.png", png(number), number % 2) for number in range(25)]
MASKED = [row._replace(mask=png(100 + number)) for number, row in enumerate(LABELED)]


@pytest.fixture(params=["labels", "masks"])
def rows(request):
    return {"labels": LABELED, "masks": MASKED}[request.param]


def write(path, rows):
    write_shard(path, iter(rows), classes=CLASSES, key="the key")
    return path


def test_same_rows_same_bytes(tmp_path, rows):
    assert write(tmp_path / "a.parquet", rows).read_bytes() == write(tmp_path / "b.parquet", rows).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b.parquet"}


def test_pandas_reads_all_columns(tmp_path, rows):
    table = pd.read_parquet(write(tmp_path / "a.parquet", rows))
    assert table["id"].tolist() == [row.id for row in rows]
    assert table["image"].tolist() == [{"bytes": row.image, "path": row.id} for row in rows]
    assert table["size"].tolist() == [len(row.image) for row in rows]
    if rows is MASKED:
        assert list(table) == ["id", "image", "mask", "size", "mask_size"]
        assert table["mask"].tolist() == [{"bytes": row.mask, "path": row.id} for row in rows]
        assert table["mask_size"].tolist() == [len(row.mask) for row in rows]
    else:
        assert list(table) == ["id", "image", "label", "size"]
        assert table["label"].tolist() == [row.label for row in rows]


def test_the_datasets_library_decodes_images_and_knows_classes(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "a.parquet", rows)
    images = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert images["id"][:] == [row.id for row in rows]
    assert [image.getpixel((0, 0)) for image in images["image"]] == list(range(25))
    if rows is MASKED:
        assert [mask.getpixel((0, 0)) for mask in images["mask"]] == list(range(100, 125))
    else:
        assert images.features["label"].int2str(images["label"][:2]) == CLASSES


@pytest.mark.parametrize(
    ("images", "size", "groups"), [(1000, 2**24, [25]), (10, 2**24, [10, 10, 5]), (10, 1, [1] * 25)]
)
def test_row_groups_are_small_and_each_has_one_page(tmp_path, monkeypatch, images, size, groups):
    monkeypatch.setattr(shards, "GROUP_IMAGES", images)
    monkeypatch.setattr(shards, "GROUP_BYTES", size)
    metadata = pq.read_metadata(write(tmp_path / "a.parquet", LABELED))
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == groups
    first = 0
    for number, count in enumerate(groups):
        column = metadata.row_group(number).column(1)
        assert column.path_in_schema == "image.bytes"
        assert column.compression == "UNCOMPRESSED" and not column.is_stats_set and not column.has_dictionary_page
        content = sum(len(row.image) + 4 for row in LABELED[first : first + count])
        assert 0 < column.total_compressed_size - content < 40  # one header
        first += count


def test_images_with_masks_fill_a_row_group_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_BYTES", 200)  # an image has about 75
    assert pq.read_metadata(write(tmp_path / "labels.parquet", LABELED)).num_row_groups == 13
    assert pq.read_metadata(write(tmp_path / "masks.parquet", MASKED)).num_row_groups == 25


def test_the_key_is_read_from_the_file(tmp_path):
    assert read_key(write(tmp_path / "a.parquet", LABELED)) == "the key"
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    assert [read_key(tmp_path / f"{name}.parquet") for name in "bcd"] == [None] * 3


def test_half_a_shard_is_none(tmp_path):
    """Else it would be taken for the whole one, whose key it has, when data are prepared again."""

    def fails_in_the_end():
        yield from LABELED
        raise OSError("the source is gone")

    write(tmp_path / "a.parquet", LABELED[:3])
    for name in "ab":
        with pytest.raises(OSError, match="the source is gone"):
            write_shard(tmp_path / f"{name}.parquet", fails_in_the_end(), classes=CLASSES, key="key")
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == 3
    assert not (tmp_path / "b.parquet").exists()
