"""Prepared data to batches: order and augmentation depend on (seed, epoch, index) alone."""

import io
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_rm import datasets
from grpo_rm.datasets import Batches, Split, read_dataset, read_ids, read_split
from grpo_rm.transforms import evaluation_view, training_view
from pipelines.preparation.shards import ShardRow, write_shard


def png(index, size=8):
    """A file whose pixels all have the value of the image's index."""
    buffer = io.BytesIO()
    Image.new("L", (size, size), index).save(buffer, "PNG")
    return buffer.getvalue()


def write_split(prepared, name, *, count, shards=1):
    directory = prepared / name
    directory.mkdir(parents=True)
    for shard, indices in enumerate(np.array_split(np.arange(count), shards)):
        rows = [ShardRow(f"image-{i}", png(int(i)), int(i) % 3) for i in indices]
        write_shard(directory / f"{shard:05d}.parquet", rows, classes=["a", "b", "c"], key="key")


def split_of(count):
    labels = np.arange(count, dtype=np.int64) % 3
    return Split([str(i) for i in range(count)], [png(i) for i in range(count)], labels)


def plain(image, rng):  # noqa: ARG001
    return evaluation_view(image, size=8, crop_pct=1.0, interpolation="bilinear")


def noisy(image, rng):
    """A view that shows the generator's state."""
    return (np.asarray(image).reshape(8, 8, -1) + rng.integers(0, 100, (8, 8, 1))).astype(np.uint8)


def batches(count=20, view=plain, **options):
    return Batches(split_of(count), view, channels=1, **({"batch_size": 8} | options))


def indices(epoch):
    """Which images the batches hold, in order."""
    return [images[:, 0, 0, 0].tolist() for images, _ in epoch]


def flat_indices(epoch):
    return [index for batch in indices(epoch) for index in batch]


def assert_equal_epochs(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for (images, labels), (other_images, other_labels) in zip(left, right, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_read_split_reads_all_shards_in_order(tmp_path, shards):
    write_split(tmp_path, "train", count=12, shards=shards)
    split = read_split(tmp_path, "train")
    assert list(split.ids) == read_ids(tmp_path, "train") == [f"image-{i}" for i in range(12)]
    assert list(split.files) == [png(i) for i in range(12)]
    assert split.labels.tolist() == [i % 3 for i in range(12)]
    assert split.labels.dtype == np.int64


def test_missing_files_name_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json not found: run `dvc repro prepare`"):
        read_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no Parquet file in .*val: run `dvc repro prepare` first"):
        read_split(tmp_path, "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        read_split(tmp_path, "val")


def test_read_dataset(tmp_path):
    description = {"task": "classification", "classes": ["ä", "b"], "mean": [0.1, 0.2, 0.3]}
    (tmp_path / "dataset.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    assert read_dataset(tmp_path) == description


def test_batches_are_uint8_channels_last():
    images, labels = next(batches().epoch(0))
    assert images.shape == (8, 8, 8, 1)
    assert images.dtype == torch.uint8
    assert labels.shape == (8,)
    assert labels.dtype == torch.int64
    images, _ = next(Batches(split_of(4), plain, channels=3, batch_size=2).epoch(0))
    assert images.shape == (2, 8, 8, 3)


def test_evaluation_keeps_order_and_the_last_batch():
    loader = batches()
    assert len(loader) == 3
    for epoch in (0, 1):
        assert indices(loader.epoch(epoch)) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert torch.cat([labels for _, labels in loader.epoch(0)]).tolist() == [i % 3 for i in range(20)]


def test_training_shuffles_and_drops_the_last_batch():
    loader = batches(is_training=True)
    assert len(loader) == 2
    seen = [flat_indices(loader.epoch(epoch)) for epoch in range(1, 60)]
    assert all(len(set(order)) == 16 for order in seen)
    assert seen[0] != sorted(seen[0])
    assert set().union(*seen) == set(range(20))  # nothing is dropped for ever
    for images, labels in loader.epoch(1):
        assert (images[:, 0, 0, 0] % 3).tolist() == labels.tolist()


def test_every_epoch_and_seed_has_its_own_order():
    orders = {
        (seed, epoch): tuple(flat_indices(batches(is_training=True, seed=seed).epoch(epoch)))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(set(orders.values())) == 4


def test_an_epoch_does_not_depend_on_what_came_before():
    used = batches(view=noisy, is_training=True, seed=5)
    for epoch in (1, 2, 7):
        list(used.epoch(epoch))
    torch.manual_seed(123)
    torch.rand(3)
    assert_equal_epochs(used.epoch(3), batches(view=noisy, is_training=True, seed=5).epoch(3))


def test_augmentation_depends_on_seed_epoch_and_index():
    def pixels(seed, epoch):
        loader = batches(view=noisy, seed=seed)
        return torch.cat([images for images, _ in loader.epoch(epoch)]).int() - torch.arange(20).view(-1, 1, 1, 1)

    reference = pixels(0, 1)
    assert torch.equal(reference, pixels(0, 1))
    assert not torch.equal(reference, pixels(0, 2))
    assert not torch.equal(reference, pixels(1, 1))
    assert len({image.numpy().tobytes() for image in reference}) == 20


def test_augmentation_of_an_image_is_the_same_in_any_order():
    """Shuffled or not, in batches of 4 or of 10: image i of epoch e is always the same."""
    ordered = torch.cat([images for images, _ in batches(view=noisy, seed=2).epoch(4)])
    loader = batches(view=noisy, seed=2, is_training=True, batch_size=10)
    shuffled = torch.cat([images for images, _ in loader.epoch(4)])
    assert not torch.equal(ordered, shuffled)
    assert {image.numpy().tobytes() for image in ordered} == {image.numpy().tobytes() for image in shuffled}
    small = torch.cat([images for images, _ in batches(view=noisy, seed=2, batch_size=4).epoch(4)])
    assert torch.equal(ordered, small)


def test_what_a_view_draws_is_nothing_to_the_next_image():
    """Half a word that one image has left over, or thousands that it took, must not reach another."""

    def greedy(image, rng):
        pixels = np.asarray(image).reshape(8, 8, 1)
        first = rng.integers(0, 256, 1, dtype=np.uint8)
        rng.random(10_000 * int(pixels[0, 0, 0] % 3))
        rng.integers(0, 2**32, 1 + pixels[0, 0, 0] % 2, dtype=np.uint32)
        return np.where(np.arange(8).reshape(8, 1, 1) == 0, first, pixels).astype(np.uint8)

    together = torch.cat([images for images, _ in batches(view=greedy, seed=1).epoch(2)])
    alone = torch.cat([images for images, _ in batches(view=greedy, seed=1, batch_size=1, workers=2).epoch(2)])
    assert torch.equal(together, alone)
    reordered = torch.cat([images for images, _ in batches(view=greedy, seed=1, is_training=True).epoch(2)])
    assert {image.numpy().tobytes() for image in reordered} <= {image.numpy().tobytes() for image in together}


def cropped(image, rng):
    return training_view(image, size=8, min_crop=0.3, flip=True, interpolation="bilinear", rng=rng)


@pytest.mark.parametrize("batch_size", [8, 1])  # with 1, workers use their memory again and again
@pytest.mark.parametrize("is_training", [True, False])
def test_workers_change_nothing(is_training, batch_size):
    split = split_of(20)
    rng = np.random.default_rng(0)
    for index in range(20):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 10), dtype=np.uint8)).save(buffer, "PNG")
        split.files[index] = buffer.getvalue()
    alone, helped = (
        Batches(split, cropped, channels=1, batch_size=batch_size, seed=3, is_training=is_training, workers=workers)
        for workers in (0, 2)
    )
    for epoch in (1, 2):
        assert_equal_epochs(alone.epoch(epoch), helped.epoch(epoch))
    next(helped.epoch(3))  # and no more of it
    assert_equal_epochs(alone.epoch(4), helped.epoch(4))
    helped.close()
    assert_equal_epochs(alone.epoch(5), helped.epoch(5))
    helped.close()


def killed(image, rng):
    if multiprocessing.parent_process():  # not where the first image is decoded to see how large it is
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(image, rng)


def test_a_worker_that_is_killed_is_told_of():
    loader = batches(view=killed, workers=1)
    with pytest.raises(ChildProcessError, match=r"exited unexpectedly.* memory runs out. Lower loader\.cache_gib"):
        next(loader.epoch(0))
    loader.close()


@pytest.mark.parametrize("is_training", [True, False])
def test_a_batch_larger_than_the_set_holds_all_of_it(is_training):
    loader = batches(5, batch_size=64, is_training=is_training)
    assert loader.batch_size == 5
    assert len(loader) == 1
    assert [sorted(batch) for batch in indices(loader.epoch(1))] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("limit", "decoded"), [(2**30, 20), (5 * 64, 20 + 15), (0, 40)])
def test_decoded_images_are_kept_up_to_a_limit(monkeypatch, limit, decoded):
    calls = []
    monkeypatch.setattr(datasets, "decode", lambda data, channels: calls.append(1) or _decode(data, channels=channels))
    loader = batches(view=noisy, cache_gib=limit / 2**30)
    first, second = list(loader.epoch(1)), list(loader.epoch(1))
    assert len(calls) == decoded
    assert_equal_epochs(first, second)


_decode = datasets.decode
