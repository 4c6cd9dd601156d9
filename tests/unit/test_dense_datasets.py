"""Batches of segmentation: the right mask with each image, and all else as in classification."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_rm import dense_datasets
from grpo_rm.datasets import Batches, Split
from grpo_rm.dense_datasets import DenseSplit, read_dense_split
from grpo_rm.dense_transforms import dense_training_view, whole_view
from grpo_rm.masks import VOID, Masks, class_table, read_mask
from grpo_rm.transforms import ImageError
from pipelines.preparation import shards
from pipelines.preparation.shards import ShardRow, write_shard

VALUES, VOID_INDEX = [0, 3, 7], 255
TABLE = class_table(VALUES, VOID_INDEX)
SHAPE = (10, 8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pair(index):
    """An image whose pixels all have the value of its index, and a mask that names its image by its classes."""
    values = np.full(SHAPE, VOID_INDEX, dtype=np.uint8)
    values[0, :5] = [VALUES[index // 3**digit % 3] for digit in range(5)]
    return png(np.full(SHAPE, index, dtype=np.uint8)), png(values)


def named(masks):
    """Return which images masks belong to."""
    return [sum(int(value) * 3**digit for digit, value in enumerate(mask[0, :5])) for mask in masks]


def split_of(count):
    files, masks = zip(*(pair(index) for index in range(count)), strict=True)
    return DenseSplit([str(index) for index in range(count)], files, Masks(masks, TABLE))


def whole(image, mask, rng):  # noqa: ARG001
    return whole_view(image, mask)


def augmented(image, mask, rng):
    settings = {"size": 6, "min_crop": 0.3, "flip": True, "interpolation": "bilinear", "fill": (0,)}
    return dense_training_view(image, mask, **settings, rng=rng)


def batches(count=20, view=whole, **options):
    return Batches(split_of(count), view, channels=1, **({"batch_size": 8} | options))


def assert_equal_epochs(left, right):
    for (images, masks), (other_images, other_masks) in zip(left, right, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(masks, other_masks)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "palette", "TIFF"])
def test_values_become_classes(kind):
    values = np.array([[0, 3, 7], [7, 255, 0]], dtype=np.uint16 if kind == "uint16" else np.uint8)
    image, buffer = Image.fromarray(values), io.BytesIO()
    if kind == "palette":
        image.putpalette(list(range(256)) * 3)
    image.save(buffer, "TIFF" if kind == "TIFF" else "PNG")
    mask = read_mask(buffer.getvalue(), TABLE)
    assert mask.tolist() == [[0, 1, 2], [2, VOID, 0]]


def test_masks_of_one_and_of_sixteen_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[True, False]])).save(buffer, "PNG")
    assert read_mask(buffer.getvalue(), class_table([1, 0], None)).tolist() == [[0, 1]]
    deep = png(np.array([[300, 65_535, 0]], dtype=np.uint16))
    assert read_mask(deep, class_table([0, 300], 65_535)).tolist() == [[1, VOID, 0]]


def test_a_value_of_no_class_is_refused():
    with pytest.raises(ImageError, match=r"the mask has the value 4, expected one of dataset\.json's mask_values"):
        read_mask(png(np.array([[0, 4]], dtype=np.uint8)), TABLE)
    with pytest.raises(ImageError, match="the mask has the value 255"):
        read_mask(pair(0)[1], class_table(VALUES, None))


def write_prepared(root, *, count, shard_count, mask=True):
    (root / "train").mkdir()
    for number, indices in enumerate(np.array_split(np.arange(count), shard_count)):
        rows = [ShardRow(f"{i:03d}", pair(i)[0], 0, pair(i)[1] if mask else None) for i in indices.tolist()]
        write_shard(root / f"train/{number:05d}.parquet", rows, classes=["a", "b", "c"], key="key")
    (root / "dataset.json").write_text(json.dumps({"mask_values": VALUES, "void_index": VOID_INDEX}))


@pytest.mark.parametrize("shard_count", [1, 3, 12])
def test_a_split_is_read_out_of_shards(tmp_path, monkeypatch, shard_count):
    monkeypatch.setattr(shards, "GROUP_IMAGES", 5)
    write_prepared(tmp_path, count=24, shard_count=shard_count)
    split = read_dense_split(tmp_path, "train")
    assert list(split.ids) == [f"{index:03d}" for index in range(24)]
    assert list(split.files) == [pair(index)[0] for index in range(24)]
    assert len(split.masks) == 24
    for index in (0, 4, 5, 23):
        assert np.array_equal(split.masks[index], read_mask(pair(index)[1], TABLE))


def test_what_is_no_shard_of_segmentation_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        read_dense_split(tmp_path, "train")
    write_prepared(tmp_path, count=3, shard_count=1, mask=False)
    path = tmp_path / "train/00000.parquet"
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} has labels, expected masks"):
        read_dense_split(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged"):
        read_dense_split(tmp_path, "train")


def test_batches_hold_each_image_with_its_mask():
    seen = []
    for images, masks in batches(is_training=True).epoch(3):
        assert images.shape == (8, 10, 8, 1) and images.dtype == torch.uint8
        assert masks.shape == (8, 10, 8) and masks.dtype == torch.int64
        assert named(masks) == images[:, 0, 0, 0].tolist()
        assert (masks[:, 1:] == VOID).all()
        seen += named(masks)
    assert len(set(seen)) == 16


@pytest.mark.parametrize("is_training", [True, False])
def test_the_order_is_that_of_classification(is_training):
    labeled = Split([], [pair(index)[0] for index in range(20)], np.arange(20))
    plain = Batches(
        labeled,
        lambda image, rng: np.asarray(image)[..., None],  # noqa: ARG005
        channels=1,
        batch_size=8,
        seed=5,
        is_training=is_training,
    )
    dense = batches(seed=5, is_training=is_training)
    assert len(dense) == len(plain)
    for epoch in (0, 1, 2):
        assert [named(masks) for _, masks in dense.epoch(epoch)] == [
            labels.tolist() for _, labels in plain.epoch(epoch)
        ]


@pytest.mark.parametrize("batch_size", [8, 1])  # with 1, workers use their memory again and again
@pytest.mark.parametrize("is_training", [True, False])
def test_workers_change_nothing(is_training, batch_size):
    alone, helped = (
        batches(view=augmented, seed=3, is_training=is_training, batch_size=batch_size, workers=workers)
        for workers in (0, 2)
    )
    for epoch in (1, 2):
        assert_equal_epochs(alone.epoch(epoch), helped.epoch(epoch))
    next(helped.epoch(3))  # and no more of it
    assert_equal_epochs(alone.epoch(4), helped.epoch(4))
    helped.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_begins_where_it_was_left(workers):
    loader = batches(view=augmented, is_training=True, batch_size=4, workers=workers)
    whole_epoch = list(batches(view=augmented, is_training=True, batch_size=4).epoch(2))
    assert_equal_epochs(loader.epoch(2, start=3), whole_epoch[3:])
    loader.close()


def test_processes_share_a_batch():
    together = list(batches(view=augmented, is_training=True).epoch(1))
    parts = [list(batches(view=augmented, is_training=True, rank=rank, processes=2).epoch(1)) for rank in (0, 1)]
    joined = [tuple(map(torch.cat, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True)]
    assert_equal_epochs(together, joined)


def test_augmentation_depends_on_seed_epoch_and_index():
    """Of twenty copies of one image, each has a view of its own, the same whether they are shuffled or not."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30)).astype(np.uint8)
    same = DenseSplit([""] * 20, [png(pixels)] * 20, Masks([png(pixels % 2 * 3)] * 20, TABLE))

    def views(seed, epoch, **options):
        loader = Batches(same, augmented, channels=1, seed=seed, **({"batch_size": 10} | options))
        pairs = [pair for read in loader.epoch(epoch) for pair in zip(*read, strict=True)]
        return [image.numpy().tobytes() + mask.numpy().tobytes() for image, mask in pairs]

    reference = views(0, 1)
    assert len(set(reference)) == 20
    assert views(0, 1, batch_size=3) == reference
    assert sorted(views(0, 1, is_training=True)) == sorted(reference) and views(0, 1, is_training=True) != reference
    assert not set(reference) & set(views(0, 2)) and not set(reference) & set(views(1, 1))


PAIR_BYTES = SHAPE[0] * SHAPE[1] * (1 + 2)  # gray, and 16 bits of the mask


@pytest.mark.parametrize(("limit", "decoded"), [(2**30, 20), (5 * PAIR_BYTES, 20 + 15), (0, 40)])
def test_decoded_images_are_kept_up_to_a_limit(monkeypatch, limit, decoded):
    calls, decode = [], dense_datasets.decode
    monkeypatch.setattr(
        dense_datasets, "decode", lambda *files, **options: calls.append(1) or decode(*files, **options)
    )
    loader = batches(view=augmented, cache_gib=limit / 2**30)
    first, second = list(loader.epoch(1)), list(loader.epoch(1))
    assert len(calls) == decoded
    assert_equal_epochs(first, second)


def test_a_mask_that_does_not_fit_its_image_is_told_of():
    split = split_of(3)
    wrong = DenseSplit(split.ids, split.files, Masks([png(np.zeros((3, 3), dtype=np.uint8))] * 3, TABLE))
    with pytest.raises(ValueError, match=r"mask \(H, W\) \(3, 3\) and image \(10, 8\) differ"):
        next(Batches(wrong, whole, channels=1, batch_size=2).epoch(0))
