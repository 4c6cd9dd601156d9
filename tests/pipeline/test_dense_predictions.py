"""Files of dense predictions: what is written is read again, by us and by others, and a damaged one is refused."""

import io
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from grpo_rm.evaluation.boundary import boundary_f1
from grpo_rm.evaluation.pixels import PixelSums
from pipelines.dense_predictions import (
    DensePredictionsWriter,
    decode_classes,
    encode_classes,
    join_outputs,
    outputs_of,
    read_dense_predictions,
)
from pipelines.predictions import read_origin

SIZES = {"val": [(6, 9), (12, 8)], "test": [(7, 5), (10, 10), (8, 9)]}
FIELDS = ("confusion", "nll", "confidence", "right", "count")


def made(split, num_classes=3):
    """What a model said of images that all have another size, with the logits and masks that it follows from."""
    rng = np.random.default_rng(len(split))
    logits = [torch.from_numpy(rng.normal(size=(1, num_classes, *size)).astype(np.float32)) for size in SIZES[split]]
    masks = [torch.from_numpy(rng.integers(-1, num_classes, (1, *size))) for size in SIZES[split]]
    masks[0][masks[0] == 2] = 0
    logits[0][:, 2] -= 99  # class 2 is nowhere: it has no boundary
    return logits, masks, join_outputs([outputs_of(*pair) for pair in zip(logits, masks, strict=True)])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "reports/predictions/grpo_rm.parquet"
    with closing(DensePredictionsWriter(path, origin={"hardware": "CPU"})) as writer:
        for split, sizes in SIZES.items():
            writer.write(split, [f"{split}-{row}" for row in range(len(sizes))], made(split)[2])
    return path


def test_what_is_written_is_read(path):
    ids, read = read_dense_predictions(path)
    assert list(read) == list(SIZES) and read_origin(path) == {"hardware": "CPU"}
    for split, sizes in SIZES.items():
        _, masks, expected = made(split)
        assert ids[split] == [f"{split}-{row}" for row in range(len(sizes))]
        for name in FIELDS:
            stored = getattr(read[split].sums, name)
            np.testing.assert_array_equal(stored, getattr(expected.sums, name))
            assert stored.dtype == getattr(expected.sums, name).dtype
        np.testing.assert_array_equal(read[split].boundary, expected.boundary)
        classes = [decode_classes(mask) for mask in read[split].masks]
        again = [boundary_f1(c[None], m.numpy(), 3)[0] for c, m in zip(classes, masks, strict=True)]
        np.testing.assert_array_equal(again, expected.boundary)
    assert np.isnan(read["test"].boundary[0]).any()


def test_others_read_it_too(path):
    rows = pq.read_table(path).to_pylist()
    logits, masks, _ = made("test")
    row = rows[3]
    said = np.asarray(Image.open(io.BytesIO(row["mask"])))
    np.testing.assert_array_equal(said, logits[1][0].argmax(dim=0).numpy())
    truth = masks[1][0].numpy()
    expected = [((truth == true) & (said == predicted)).sum() for true in range(3) for predicted in range(3)]
    assert row["confusion"] == expected and sum(row["count"]) == (truth >= 0).sum()
    assert rows[2]["boundary_f1"][2] is None and rows[2]["id"] == "test-0" and rows[2]["split"] == "test"


def test_rows_are_put_in_order():
    _, _, outputs = made("test")
    turned = outputs[[2, 0, 1]]
    assert turned.masks == [outputs.masks[2], outputs.masks[0], outputs.masks[1]]
    np.testing.assert_array_equal(turned[np.argsort([2, 0, 1])].sums.nll, outputs.sums.nll)
    assert isinstance(turned.sums, PixelSums) and turned.boundary.shape == (3, 3)


@pytest.mark.parametrize(("num_classes", "mode"), [(2, "L"), (256, "L"), (257, "I;16"), (40_000, "I;16")])
def test_masks_of_many_classes(num_classes, mode):
    classes = np.array([[0, 1, num_classes - 1], [0, num_classes // 2, 1]])
    file = encode_classes(classes, num_classes)
    assert Image.open(io.BytesIO(file)).mode == mode
    np.testing.assert_array_equal(decode_classes(file), classes)


@pytest.mark.parametrize("file", [b"", b"no image", encode_classes(np.zeros((9, 9), int), 2)[:-30]])
def test_a_damaged_mask(file):
    with pytest.raises(ValueError, match="a mask is damaged: "):
        decode_classes(file)


def change(path, column, value):
    rows = pq.read_table(path).to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: pq.write_table(pq.read_table(path).drop_columns("mask"), path),
        lambda path: change(path, "confusion", [1, 2, 3]),
        lambda path: change(path, "right", [1] * 14),
        lambda path: change(path, "boundary_f1", None),
    ],
    ids=["truncated", "empty", "a column missing", "a short list", "a bin missing", "no list"],
)
def test_a_damaged_file_says_what_to_do(path, damage):
    damage(path)
    with pytest.raises(ValueError, match=r"grpo_rm.parquet is damaged.*run `dvc repro --force evaluate`"):
        read_dense_predictions(path)


def test_no_flipped_bit_ends_in_another_error(path):
    """Not all are noticed: Parquet checks its pages only where it is told to."""
    original, said = path.read_bytes(), []
    for place in np.random.default_rng(0).integers(0, len(original), 150):
        content = bytearray(original)
        content[place] ^= 16
        path.write_bytes(content)
        try:
            _, read = read_dense_predictions(path)
            [decode_classes(mask) for outputs in read.values() for mask in outputs.masks]
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 10
    assert all("is damaged" in error for error in said)
