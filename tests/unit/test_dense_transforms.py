"""Joint views of image and mask: they stay aligned, no class appears that was not there, and void stays void."""

import numpy as np
import pytest
from PIL import Image

from grpo_rm.dense_transforms import dense_training_view
from grpo_rm.masks import VOID

SEEDS = 150
MIXED = 25  # of 255: what a bicubic filter brings from afar; two colors of the palette are 110 apart or more
SHAPES = [(40, 40), (31, 77), (90, 17), (12, 12), (1, 1), (64, 200)]
PALETTE = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 20], [120, 120, 120]], dtype=np.uint8)


def blocks(shape, seed=0, side=6):
    """A mask of blocks of classes 0 to 3 and void."""
    rows, columns = -(-shape[0] // side), -(-shape[1] // side)
    small = np.random.default_rng(seed).integers(-1, 4, (rows, columns)).astype(np.int16)
    return small.repeat(side, 0).repeat(side, 1)[: shape[0], : shape[1]]


def painted(mask):
    """The image that is the mask in colors; void is gray."""
    return Image.fromarray(PALETTE[mask])


def train(image, mask, seed, **options):
    settings = {"size": 24, "min_crop": 0.25, "flip": True, "interpolation": "bilinear", "fill": (0,)} | options
    return dense_training_view(image, mask, **settings, rng=np.random.default_rng(seed))


def is_far_from_edges(mask):
    """For each pixel whether its whole neighborhood of 5 x 5 has its class: there filters hardly mix colors."""
    padded = np.pad(mask, 2, constant_values=-9)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return (windows == mask[..., None, None]).all(axis=(2, 3))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_image_and_mask_stay_aligned(shape, interpolation):
    mask = blocks(shape)
    image = painted(mask)
    inside = 0
    for seed in range(SEEDS):
        pixels, classes = train(image, mask, seed, interpolation=interpolation)
        assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
        assert classes.shape == (24, 24) and classes.dtype == mask.dtype
        is_sure = is_far_from_edges(classes) & (classes != VOID)
        gaps = np.abs(pixels.astype(int) - PALETTE[classes]).max(axis=-1)
        assert (gaps[is_sure] <= MIXED).all()
        inside += is_sure.sum()
    assert inside > 0 or shape in ((1, 1), (12, 12))


@pytest.mark.parametrize("min_crop", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(50, 60), (70, 33)])
def test_painted_coordinates_are_those_of_the_mask(shape, min_crop):
    """Each pixel of the image names its row and column; each class of the mask is a place."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = Image.fromarray(np.dstack([rows, columns, 0 * rows]).astype(np.uint8) * 3)
    mask = (rows * shape[1] + columns).astype(np.int16)
    for seed in range(SEEDS):
        pixels, classes = train(image, mask, seed, min_crop=min_crop)
        assert (classes != VOID).all()  # the image is larger than the view
        found = np.dstack([classes // shape[1], classes % shape[1]])
        is_inner = ((found > 3) & (found < np.array(shape) - 4)).all(axis=-1)  # at the border a filter is one-sided
        gaps = np.abs(pixels[..., :2] / 3 - found)
        assert gaps[is_inner].max(initial=0) <= 0.5 + 1e-9 + 1 / 3  # half a pixel, and the rounding to 8 bits
        signs = np.sign(np.diff(found[..., 1].astype(int), axis=1))
        assert (signs >= 0).all() or (signs <= 0).all()


def test_misaligned_masks_would_be_found():
    mask = blocks((40, 40))
    shifted = np.roll(mask, 3, axis=1)
    gaps = []
    for seed in range(20):
        pixels, classes = train(painted(mask), shifted, seed)
        is_sure = is_far_from_edges(classes) & (classes != VOID)
        gaps.append(np.abs(pixels.astype(int) - PALETTE[classes]).max(axis=-1)[is_sure].max(initial=0))
    assert max(gaps) > 100


@pytest.mark.parametrize("shape", SHAPES)
def test_no_new_class_appears(shape):
    """Classes 0 and 200 alone: whatever lies between them would be made up."""
    mask = np.where(blocks(shape) > 1, 200, 0).astype(np.int16)
    for seed in range(SEEDS):
        _, classes = train(painted(blocks(shape)), mask, seed)
        assert set(np.unique(classes)) <= {*np.unique(mask), VOID}
        if min(shape) >= 24:
            assert VOID not in classes


def test_void_stays_void():
    columns = np.mgrid[:40, :40][1]
    mask = np.where(columns < 20, VOID, 1).astype(np.int16)
    image = Image.fromarray(np.where(columns < 20, 0, 255).astype(np.uint8))
    shares = []
    for seed in range(SEEDS):
        pixels, classes = train(image, mask, seed)
        assert set(np.unique(classes)) <= {VOID, 1}
        assert ((pixels[..., 0] < 100) <= (classes == VOID)).all()
        shares.append((classes == VOID).mean())
    assert min(shares) < 0.2 and max(shares) > 0.8 and abs(np.mean(shares) - 0.5) < 0.05


@pytest.mark.parametrize("shape", [(10, 10), (10, 60), (60, 10), (1, 1)])
def test_small_images_are_padded_with_black_and_void(shape):
    image, mask = Image.new("RGB", shape[::-1], (200, 200, 200)), np.ones(shape, dtype=np.int16)
    places = set()
    for seed in range(SEEDS):
        pixels, classes = train(image, mask, seed, min_crop=1.0)
        rows, columns = np.nonzero(classes == 1)
        assert len(rows) == min(shape[0], 24) * min(shape[1], 24)  # every pixel that fits, once
        assert ((pixels == 200).all(axis=-1) == (classes == 1)).all()
        assert ((pixels == 0).all(axis=-1) == (classes == VOID)).all()
        places.add((rows.min(), columns.min()))
    assert len(places) > 10  # the padding is on any side


def test_without_scaling_pixels_are_as_they_were():
    pixels, mask = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8), blocks((40, 50))
    for seed in range(30):
        view, classes = train(Image.fromarray(pixels), mask, seed, min_crop=1.0, flip=False, interpolation="bicubic")
        is_here = [
            (pixels[y : y + 24, x : x + 24] == view).all() and (mask[y : y + 24, x : x + 24] == classes).all()
            for y in range(17)
            for x in range(27)
        ]
        assert sum(is_here) == 1


def test_objects_are_shown_as_large_as_they_are_in_the_mean():
    """By their distances in the view: the logarithm of the scale is even around 0, from 1/2 to 2."""
    columns = np.mgrid[:400, :400][1]
    image, scales = Image.new("L", (400, 400)), []
    for seed in range(400):
        _, classes = train(image, (columns // 4).astype(np.int16), seed, size=64, flip=False)
        steps = int(classes[0, -1]) - int(classes[0, 0])
        scales.append(63 / (4 * steps))
    assert 0.4 < min(scales) < 0.6 and 1.6 < max(scales) < 2.5
    assert abs(np.median(np.log(scales))) < 0.08


def test_half_of_the_views_are_mirrored():
    columns = np.mgrid[:30, :30][1]
    image, mask = Image.fromarray((columns * 8).astype(np.uint8)), columns.astype(np.int16)
    mirrored = 0
    for seed in range(SEEDS):
        pixels, classes = train(image, mask, seed)
        assert (pixels[0, 0, 0] > pixels[0, -1, 0]) == (classes[0, 0] > classes[0, -1])
        mirrored += classes[0, 0] > classes[0, -1]
        plain, plain_classes = train(image, mask, seed, flip=False)
        assert plain_classes[0, 0] < plain_classes[0, -1]
        assert np.array_equal(plain, pixels) or np.array_equal(plain[:, ::-1], pixels)
    assert 0.35 < mirrored / SEEDS < 0.65


def test_a_view_follows_from_its_generator():
    mask = blocks((40, 50))
    views = [train(painted(mask), mask, seed)[1].tobytes() for seed in range(20)]
    assert views == [train(painted(mask), mask, seed)[1].tobytes() for seed in range(20)]
    assert len(set(views)) == 20


def test_a_mask_of_another_size_is_refused():
    image, mask = Image.new("L", (5, 4)), np.zeros((5, 4), dtype=np.int16)
    with pytest.raises(ValueError, match=r"mask \(H, W\) \(5, 4\) and image \(4, 5\) differ"):
        train(image, mask, 0)


def test_around_a_small_image_is_the_color_that_is_asked_for():
    image, mask = Image.new("RGB", (5, 4), (9, 9, 9)), np.zeros((4, 5), dtype=np.int16)
    pixels, classes = train(image, mask, 0, size=16, min_crop=1.0, interpolation="bilinear", fill=(10, 20, 30))
    assert (classes == VOID).any() and (pixels[classes == VOID] == (10, 20, 30)).all()
    assert (pixels[classes == 0] == 9).all()
