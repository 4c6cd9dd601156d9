"""The embedded shapes: the same each time, with masks that are exact, through stage prepare to batches."""

import hashlib
import io
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_sets import FRACTIONS
from PIL import Image

from grpo_rm.datasets import Batches, read_dataset
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_transforms import whole_view
from grpo_rm.masks import VOID as VOID_CLASS
from pipelines.prepare import prepare
from pipelines.sources import shapes
from pipelines.sources.kinds import open_source
from pipelines.sources.shapes import CLASSES, COUNT, SIDE, VOID
from pipelines.sources.source import SPLITS

PIXELS_PER_VALUE = [437746, 60031, 60574, 42995, 89854]  # background, circle, square, triangle, void
MEAN_PIXEL = 133.109


@pytest.fixture(scope="module")
def source():
    return open_source("shapes", task="segmentation", void_index=VOID)


@pytest.fixture(scope="module")
def scenes(source):
    return [
        tuple(np.asarray(Image.open(io.BytesIO(data))) for data in (source.read(k), source.read_mask(k)))
        for k in range(COUNT)
    ]


def test_what_it_holds(source, scenes):
    assert (source.name, source.classes, source.mask_values) == ("shapes", CLASSES, [0, 1, 2, 3])
    assert len(source.ids) == len(set(source.ids)) == 300
    assert source.ids[7] == "shapes-000007" and (source.labels == -1).all()
    for pixels, mask in scenes:
        assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == mask.dtype == np.uint8
        assert mask.shape == (SIDE, SIDE) and set(np.unique(mask)) <= {0, 1, 2, 3, VOID}
        assert 0.02 < (mask == VOID).mean() < 0.25
    shown = [sum((mask == value).any() for _, mask in scenes) for value in range(4)]
    assert shown[0] == 300 and min(shown) > 150
    assert len({pixels.tobytes() for pixels, _ in scenes}) == 300


def test_it_is_the_same_each_time(source):
    def digests(opened, order):
        return {k: hashlib.sha256(opened.read(k) + opened.read_mask(k)).digest() for k in order}

    again = open_source("shapes", task="segmentation", void_index=VOID)
    assert digests(source, range(40)) == digests(again, reversed(range(40)))


def test_pixels_and_masks_are_those_of_its_first_release(scenes):
    """Of masks, to the pixel; of pixels roughly, as processors may round otherwise."""
    masks = np.stack([mask for _, mask in scenes])
    assert np.bincount(masks.ravel(), minlength=256)[[0, 1, 2, 3, VOID]].tolist() == PIXELS_PER_VALUE
    assert np.stack([pixels for pixels, _ in scenes]).mean() == pytest.approx(MEAN_PIXEL, abs=0.01)


def test_classes_differ_by_outline_alone(scenes):
    """The mean color of the classes is about the same, over all images."""
    means = [np.concatenate([pixels[mask == value] for pixels, mask in scenes]).mean() for value in (1, 2, 3)]
    assert max(means) - min(means) < 12


@pytest.mark.parametrize(
    ("value", "area"),
    [
        (1, lambda radius: math.pi * radius**2),
        (2, lambda radius: 4 * radius**2),
        (3, lambda radius: 27**0.5 * radius**2),
    ],
)
def test_masks_have_the_area_of_the_shape(value, area):
    """Of an object with the inradius r: the innermost pixel's distance, and half a pixel's diagonal more at most."""
    checked = 0
    for seed in range(40):
        distances = shapes._distances(value, np.random.default_rng(seed))
        edge = np.concatenate([distances[0], distances[-1], distances[:, 0], distances[:, -1]])
        if edge.min() > 0:  # the whole object is in the image
            least = -distances.min()
            assert 0.97 * area(least) <= (distances < 0).sum() <= 1.03 * area(least + 0.71)
            checked += 1
    assert checked > 10


def test_the_outline_is_void_on_both_sides(scenes):
    """No pixel of an object touches one of another class: there is void between."""
    for _, mask in scenes:
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert ((first == second) | (first == VOID) | (second == VOID)).all()


def test_prepared_and_read(source, scenes, tmp_path):
    prepare(source, tmp_path, **FRACTIONS, seed=0, origin="shapes", void_index=VOID)
    manifest = pq.read_table(tmp_path / "manifest.parquet").to_pandas()
    assert (manifest.decode_error == "").all() and (manifest.mask_error == "").all()
    assert (manifest.near_duplicate_of == "").all()
    described = read_dataset(tmp_path)
    assert (described["task"], described["void_index"]) == ("segmentation", VOID)
    assert all(count >= 20 for split in SPLITS for count in described["counts"][split].values())
    total = 0
    for name in SPLITS:
        split = read_dense_split(tmp_path, name)
        total += len(split.ids)
        loader = Batches(split, whole, channels=3, batch_size=64)
        images, masks = (np.concatenate(parts) for parts in zip(*loader.epoch(0), strict=True))
        for id_, image, mask in zip(split.ids, images, masks, strict=True):
            pixels, values = scenes[int(id_.removeprefix("shapes-"))]
            assert np.array_equal(image, pixels)
            assert np.array_equal(mask, np.where(values == VOID, VOID_CLASS, values.astype(np.int64)))
    assert total == COUNT and json.loads((tmp_path / "dataset.json").read_text())["classes"] == CLASSES


def whole(image, mask, rng):  # noqa: ARG001
    return whole_view(image, mask)


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match=r"has masks and no labels: set `task: segmentation`"):
        open_source("shapes")
    for void_index in (None, 3):
        with pytest.raises(ValueError, match=rf"data\.void_index is {void_index}, expected 255"):
            open_source("shapes", task="segmentation", void_index=void_index)
    with pytest.raises(ValueError, match="did you mean shapes"):
        open_source("shape")
