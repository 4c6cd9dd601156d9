"""Files of predictions: what is written is read again, by us and by others, and a damaged one is refused."""

from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from grpo_rm.inference import Predictions
from pipelines.predictions import (
    PredictionsWriter,
    read_corrupted,
    read_origin,
    read_predictions,
    write_corrupted,
)

SIZES = {"train": 5, "val": 2, "test": 3, "sketch": 4}


@pytest.fixture
def outputs():
    """What a model said of four sets of images."""
    rng = np.random.default_rng(0)
    return {
        split: Predictions(
            rng.normal(size=(size, 6)).astype(np.float32),
            rng.normal(size=(size, 3)).astype(np.float32),
            np.arange(size, dtype=np.int64) % 3,
        )
        for split, size in SIZES.items()
    }


def write(outputs, path, *, origin, part=2):
    """Write them in parts of some images."""
    with closing(PredictionsWriter(path, origin=origin)) as writer:
        for split, said in outputs.items():
            for start in range(0, len(said.labels), part):
                rows = slice(start, start + part)
                ids = [f"{split}-{row}" for row in range(len(said.labels))][rows]
                writer.write(split, ids, Predictions(said.embeddings[rows], said.logits[rows], said.labels[rows]))


def test_what_is_written_is_read(outputs, tmp_path):
    path = tmp_path / "reports/predictions/grpo_rm.parquet"
    write(outputs, path, origin={"hardware": "CPU"})
    ids, read = read_predictions(path)
    assert list(read) == list(SIZES) and read_origin(path) == {"hardware": "CPU"}
    for split, size in SIZES.items():
        assert ids[split] == [f"{split}-{row}" for row in range(size)]
        for name in ("embeddings", "logits", "labels"):
            np.testing.assert_array_equal(getattr(read[split], name), getattr(outputs[split], name))


def test_others_read_it_too(outputs, tmp_path):
    path = tmp_path / "grpo_rm.parquet"
    write(outputs, path, origin={})
    table = pq.read_table(path).to_pandas()
    assert list(table) == ["id", "split", "label", "logits", "probabilities", "embedding"]
    assert np.stack(table["probabilities"].to_list()).sum(axis=1) == pytest.approx(1)
    rows = table[table["id"] == "test-1"]
    np.testing.assert_array_equal(rows["embedding"].iloc[0], outputs["test"].embeddings[1])


def corrupted():
    ids = ["b", "a", "c"]
    return ids, np.random.default_rng(0).random((len(CORRUPTIONS), len(STRENGTHS), len(ids))) < 0.5


def test_answers_to_corrupted_images(tmp_path):
    ids, answers = corrupted()
    path = tmp_path / "robustness/grpo_rm.parquet"
    write_corrupted(answers, ids, path, origin={"weights": "1f"})
    read_ids, read = read_corrupted(path)
    assert read_ids == ids and read_origin(path) == {"weights": "1f"}
    np.testing.assert_array_equal(read, answers)
    table = pq.read_table(path).to_pandas()
    one = table[(table["corruption"] == "blur") & (table["strength"] == 4) & (table["id"] == "a")]
    assert one["is_right"].to_list() == [answers[list(CORRUPTIONS).index("blur"), 3, 1]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: rows[:-1],
        lambda rows: rows[1:] + rows[:1],
        lambda rows: rows[:-1] + rows[:1],
        lambda rows: rows[:0],
        lambda rows: rows[:30],
    ],
    ids=["one missing", "another order", "one twice", "empty", "not all strengths"],
)
def test_a_damaged_file_of_answers_is_refused(tmp_path, damage):
    ids, answers = corrupted()
    path = tmp_path / "grpo_rm.parquet"
    write_corrupted(answers, ids, path, origin={"weights": "1f"})
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(damage(table.to_pylist()), table.schema), path)
    with pytest.raises(ValueError, match="expected one per corruption, strength and image"):
        read_corrupted(path)


def flip_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def test_no_flipped_bit_ends_in_another_error(outputs, tmp_path):
    """Not all are noticed: Parquet checks its pages only where it is told to."""
    path = tmp_path / "grpo_rm.parquet"
    write(outputs, path, origin={"hardware": "CPU"})
    original = path.read_bytes()
    said = []
    for place in np.random.default_rng(0).integers(0, len(original), 150):
        path.write_bytes(original)
        flip_bit(path, int(place))
        said += [error for read in (read_predictions, read_origin) if (error := error_of(read, path))]
    assert len(said) > 30
    assert {type(error) for error in said} == {ValueError}
    assert all("run `dvc repro --force evaluate`" in str(error) for error in said)


def error_of(read, path):
    try:
        read(path)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), read_predictions),
        (lambda path: path.write_bytes(b""), read_origin),
        (lambda path: pq.write_table(pq.read_table(path).drop_columns("embedding"), path), read_predictions),
    ],
    ids=["truncated", "empty", "a column missing"],
)
def test_a_damaged_file_of_predictions_says_what_to_do(outputs, tmp_path, damage, read):
    path = tmp_path / "grpo_rm.parquet"
    write(outputs, path, origin={})
    damage(path)
    with pytest.raises(ValueError, match=r"grpo_rm.parquet is damaged.*run `dvc repro --force evaluate`") as caught:
        read(path)
    assert type(caught.value) is ValueError
