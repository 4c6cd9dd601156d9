"""The evaluation view and the training view of a decoded image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from grpo_rm.transforms import evaluation_view, training_view

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 40), (31, 30)])
@pytest.mark.parametrize("size", [1, 16])
def test_evaluation_view_shape(channels, shape, size):
    image = Image.new("L" if channels == 1 else "RGB", shape[::-1], 7 if channels == 1 else (7, 8, 9))
    view = evaluation_view(image, size=size, crop_pct=0.875, interpolation="bicubic")
    assert view.shape == (size, size, channels)
    assert view.dtype == np.uint8
    assert view.reshape(-1, channels)[0].tolist() == [7, 8, 9][:channels]
    assert (view == view[0, 0]).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view_of_a_square_of_the_right_size_changes_nothing(interpolation):
    pixels = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert np.array_equal(
        evaluation_view(Image.fromarray(pixels), size=12, crop_pct=1.0, interpolation=interpolation), pixels
    )


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_evaluation_view_keeps_the_central_square(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 12) // 2, (shape[1] - 12) // 2
    view = evaluation_view(Image.fromarray(pixels), size=12, crop_pct=1.0, interpolation="bicubic")
    assert np.array_equal(view, pixels[top : top + 12, left : left + 12])
    small = evaluation_view(Image.fromarray(pixels), size=6, crop_pct=0.5, interpolation="bicubic")
    assert np.array_equal(small, pixels[top + 3 : top + 9, left + 3 : left + 9])


@pytest.mark.parametrize(
    ("interpolation", "filter_"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("size", [24, 40, 96])
def test_evaluation_view_equals_crop_and_resize(interpolation, filter_, size):
    """Away from the border: there the filter looks beyond the crop, where an image cut beforehand has nothing."""
    image = Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    view = evaluation_view(image, size=size, crop_pct=0.8, interpolation=interpolation)
    expected = np.asarray(image.crop((16, 6, 64, 54)).resize((size, size), filter_))
    inner = slice(size // 8, -size // 8)
    assert np.array_equal(view[inner, inner], expected[inner, inner])


def test_interpolations_differ():
    image = Image.fromarray(COLOR)
    views = [evaluation_view(image, size=9, crop_pct=1, interpolation=name) for name in ("bilinear", "bicubic")]
    assert not np.array_equal(*views)


# An image whose red says the column and whose green says the row, so that a view tells where it was cut.
COORDINATES = Image.fromarray(
    np.dstack([*np.meshgrid(np.arange(200), np.arange(240)), np.zeros((240, 200))]).astype(np.uint8)
)


def train(seed=0, *, image=COORDINATES, size=16, min_crop=0.3, flip=False, interpolation="bilinear"):
    rng = np.random.default_rng(seed)
    return training_view(image, size=size, min_crop=min_crop, flip=flip, interpolation=interpolation, rng=rng)


def find_crop(view):
    """Return left, top, width and height of the crop, as shares of the image; a mirrored view has a negative width."""
    size = len(view)
    columns, rows = view[size // 2, :, 0].astype(float), view[:, size // 2, 1].astype(float)
    spans = [(line[-2] - line[1]) * size / (size - 3) for line in (columns, rows)]
    starts = [line[1:-1].mean() + 0.5 - span / 2 for line, span in zip((columns, rows), spans, strict=True)]
    return starts[0] / 200, starts[1] / 240, spans[0] / 200, spans[1] / 240


def test_training_view_depends_on_the_generator_alone():
    assert np.array_equal(train(3), train(3))
    assert not np.array_equal(train(3), train(4))
    rng = np.random.default_rng(3)
    options = {"size": 16, "min_crop": 0.3, "flip": True, "interpolation": "bicubic", "rng": rng}
    assert not np.array_equal(training_view(COORDINATES, **options), training_view(COORDINATES, **options))


def test_training_view_crops_as_described():
    """Inside the image, area uniform in [min_crop, 1], width over height in pixels log-uniform in [3/4, 4/3]."""
    crops = np.array([find_crop(train(seed)) for seed in range(400)])
    left, top, width, height = crops.T
    error = 0.02  # the coordinates are rounded to whole pixels
    assert min(left.min(), top.min()) > -error
    assert max((left + width).max(), (top + height).max()) < 1 + error
    areas = width * height
    assert areas.min() > 0.3 - error
    assert areas.max() < 1 + error
    ratios = np.log(width * 200 / (height * 240)) / np.log(4 / 3)
    assert abs(ratios).max() < 1 + 0.15
    small = areas < 0.6  # where every aspect ratio fits
    ratios = ratios[small]
    assert ratios.mean() == pytest.approx(0, abs=0.12)
    assert np.quantile(ratios, [0.25, 0.75]) == pytest.approx([-0.5, 0.5], abs=0.15)
    assert np.quantile(areas[small], [0.25, 0.5, 0.75]) == pytest.approx([0.375, 0.45, 0.525], abs=0.04)
    left, top, width, height = crops[(width < 0.8) & (height < 0.8)].T
    places = left / (1 - width), top / (1 - height)  # of the crop in the room it has
    assert [place.mean() for place in places] == pytest.approx([0.5, 0.5], abs=0.08)
    assert np.corrcoef(*places)[0, 1] == pytest.approx(0, abs=0.2)


def test_training_view_without_cropping_is_the_largest_square():
    tops = set()
    for seed in range(50):
        left, top, width, height = find_crop(train(seed, min_crop=1.0))
        assert (left, width) == pytest.approx((0, 1), abs=0.02)
        assert height == pytest.approx(200 / 240, abs=0.02)
        tops.add(round(top, 2))
    assert len(tops) > 5


def test_elongated_images_are_squeezed_as_little_as_square_ones():
    """A disk in a 3:1 image: width over height in training as in evaluation, up to the 4/3 of the augmentation."""
    wide = Image.new("L", (300, 100))
    ImageDraw.Draw(wide).ellipse((130, 30, 169, 69), fill=255)

    def aspect(view):
        rows, columns = np.nonzero(view[:, :, 0] > 127)
        return np.ptp(columns) / np.ptp(rows)

    plain = evaluation_view(wide, size=64, crop_pct=1.0, interpolation="bilinear")
    assert aspect(plain) == pytest.approx(1, abs=0.05)
    views = [train(seed, image=wide, size=64, min_crop=1.0) for seed in range(60)]
    whole = [aspect(view) for view in views if view[:, [0, -1]].max() == 0 and view.max() == 255]
    assert len(whole) >= 10
    assert all(0.7 < value < 1.4 for value in whole)


def test_training_view_mirrors_left_and_right_half_of_the_time():
    plain, mirrored = ([train(seed, flip=flip) for seed in range(200)] for flip in (False, True))
    is_mirrored = np.array([find_crop(view)[2] < 0 for view in mirrored])
    assert is_mirrored.mean() == pytest.approx(0.5, abs=0.1)
    assert all(find_crop(view)[3] > 0 for view in mirrored)
    for before, after, has_turned in zip(plain, mirrored, is_mirrored, strict=True):
        assert np.array_equal(after, before[:, ::-1] if has_turned else before)


@settings(max_examples=60)
@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    size=st.integers(1, 20),
    min_crop=st.floats(0.001, 1),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 10**9),
)
def test_any_image_has_a_view(width, height, size, min_crop, channels, seed):
    image = Image.new("L" if channels == 1 else "RGB", (width, height), 5 if channels == 1 else (5, 5, 5))
    view = train(seed, image=image, size=size, min_crop=min_crop, flip=True, interpolation="bicubic")
    assert view.shape == (size, size, channels)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert (view == 5).all()
