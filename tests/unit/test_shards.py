"""Shards read in place: what is in them, and what is said of a file that is none."""

import pickle
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo_rm.datasets import read_split
from pipelines.preparation import shards
from pipelines.preparation.shards import ShardRow, write_shard

PLAIN = {"compression": "none", "use_dictionary": False}
DAMAGED = "is damaged, or not written by this version: delete it, then run `dvc checkout` or `dvc repro prepare`"


def rows_of(count):
    """Rows of many sizes, whose bytes look like lengths."""
    return [ShardRow(f"{i:04d} ü\n.png", (bytes([i % 5, 0, 0, 0]) * 30)[: i * 7 % 100], i % 3) for i in range(count)]


def write(prepared, *parts):
    (prepared / "train").mkdir()
    for number, rows in enumerate(parts):
        write_shard(prepared / f"train/{number:05d}.parquet", rows, classes=["a", "b", "c"], key="key")
    return prepared / "train/00000.parquet"


@pytest.fixture
def small_groups(monkeypatch):
    """A row group ends with 10 images or 400 bytes."""
    monkeypatch.setattr(shards, "GROUP_IMAGES", 10)
    monkeypatch.setattr(shards, "GROUP_BYTES", 400)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("begins", [[0, 1], [0, 10], [0, 11, 12], list(range(60)), [0]])
def test_every_image_is_found(tmp_path, begins):
    rows = rows_of(60)
    write(tmp_path, *(rows[begin:end] for begin, end in zip(begins, [*begins[1:], 60], strict=True)))
    split = read_split(tmp_path, "train")
    assert list(split.files) == [row.image for row in rows]
    assert list(split.ids) == [row.id for row in rows]
    assert split.labels.tolist() == [row.label for row in rows]


@pytest.mark.usefixtures("small_groups")
def test_columns_are_sequences(tmp_path):
    rows = rows_of(40)
    write(tmp_path, rows[:25], rows[25:])
    split = read_split(tmp_path, "train")
    for column, expected in ((split.files, [row.image for row in rows]), (split.ids, [row.id for row in rows])):
        assert len(column) == 40
        assert column[-1] == expected[-1]
        assert column[20:30:3] == expected[20:30:3]
        assert expected[33] in column
        for index in (40, -41):
            with pytest.raises(IndexError):
                column[index]


def test_another_process_maps_the_shards_itself(tmp_path):
    write(tmp_path, rows_of(30))
    split = read_split(tmp_path, "train")
    assert split.files[7] == rows_of(30)[7].image
    copied = pickle.loads(pickle.dumps(split))
    assert list(copied.files) == [row.image for row in rows_of(30)]
    assert list(copied.ids) == list(split.ids)


def test_more_shards_than_files_can_be_open(tmp_path):
    write(tmp_path, *([row] for row in rows_of(80)))
    program = f"""
import resource
from pathlib import Path
from grpo_rm.datasets import read_split
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
print(sum(map(len, read_split(Path({str(tmp_path)!r}), "train").files)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == f"{sum(len(row.image) for row in rows_of(80))}\n", result.stderr


def table_of(rows):
    images = [{"bytes": row.image, "path": row.id} for row in rows]
    columns = {"id": [row.id for row in rows], "image": images, "label": [row.label for row in rows]}
    return pa.table(columns | {"size": pa.array([len(row.image) for row in rows], pa.int32())})


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda table, path: pq.write_table(table, path),  # compressed
        lambda table, path: pq.write_table(table, path, compression="none"),  # with a dictionary
        lambda table, path: pq.write_table(table, path, **PLAIN, data_page_size=50, write_batch_size=10),  # 3 pages
        lambda table, path: pq.write_table(table, path, **PLAIN, data_page_size=400, write_batch_size=29),  # 2 pages
        lambda table, path: table.to_pandas().to_parquet(path, compression=None),
        lambda table, path: pq.write_table(table.set_column(3, "size", [[9] * 30]), path, **PLAIN),
        lambda table, path: pq.write_table(table.drop_columns("image"), path),
        lambda table, path: pd.DataFrame({"x": [1]}).to_parquet(path),  # noqa: ARG005
        lambda table, path: path.write_bytes(b"none"),  # noqa: ARG005
        lambda table, path: path.write_bytes(b""),  # noqa: ARG005
        lambda table, path: path.write_bytes(path.read_bytes()[:-20]),  # noqa: ARG005
    ],
)
def test_a_shard_of_another_hand_is_refused(tmp_path, rewrite):
    path = write(tmp_path, rows_of(30))
    rewrite(table_of(rows_of(30)), path)
    with pytest.raises(ValueError, match=DAMAGED) as caught:
        list(read_split(tmp_path, "train").files)
    assert str(path) in str(caught.value)


def test_a_shard_without_sizes_says_to_prepare_again(tmp_path):
    path = write(tmp_path, rows_of(30))
    pq.write_table(table_of(rows_of(30)).drop_columns("size"), path, compression="none")
    with pytest.raises(ValueError, match=r"has no column 'size'.*`dvc repro prepare`"):
        read_split(tmp_path, "train")


def test_a_damaged_header_of_a_page_is_found_when_the_shard_is_opened(tmp_path):
    path = write(tmp_path, [ShardRow(str(i), b"%d" % i * 10, 0) for i in range(5)])
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 36 + content[40:])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged"):
        read_split(tmp_path, "train")


def test_a_damaged_length_is_found_when_the_image_is_read(tmp_path):
    rows = [ShardRow(str(i), b"%d" % i * 10, 0) for i in range(5)]
    path = write(tmp_path, rows)
    content = path.read_bytes()
    place = content.index(rows[3].image)
    path.write_bytes(content[: place - 4] + b"\x0b" + content[place - 3 :])
    files = read_split(tmp_path, "train").files
    assert [files[i] for i in (0, 1, 2, 4)] == [rows[i].image for i in (0, 1, 2, 4)]
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged"):
        files[3]


def test_a_shard_that_was_cut_off_after_it_was_opened(tmp_path):
    """Reading behind its end would end the process."""
    path = write(tmp_path, rows_of(30))
    files = read_split(tmp_path, "train").files
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged"):
        files[29]


def test_segmentation_is_not_trained_yet(tmp_path):
    write(tmp_path, [row._replace(mask=b"mask") for row in rows_of(3)])
    with pytest.raises(ValueError, match="has masks, expected labels: training of segmentation is not there yet"):
        read_split(tmp_path, "train")


def test_bytes_behind_the_end_are_not_read(tmp_path):
    """The sum of sizes is right, the order is not."""
    rows = rows_of(10)
    path = write(tmp_path, rows)
    sizes = [len(row.image) for row in rows]
    table = pq.read_table(path)
    swapped = [sizes[1], sizes[0], *sizes[2:]]
    table = table.set_column(3, table.schema.field("size"), pa.array(swapped, pa.int32()))
    pq.write_table(table, path, **PLAIN)
    with pytest.raises(ValueError, match="damaged"):
        read_split(tmp_path, "train").files[0]
