"""Corrupted images: what each corruption does, and that nothing but image, strength, seed and id decides on it."""

import colorsys
import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_rm.evaluation.corruptions import CORRUPTIONS, PARAMETERS, STRENGTHS, corrupt, parameter

SHAPES = st.tuples(st.integers(1, 40), st.sampled_from([1, 3]))
GOLDEN = "618f92"


def random_image(size, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def picture(size=32, channels=3):
    """A smooth picture with an edge and some grain: neighbors are alike, as in a photo."""
    y, x = np.mgrid[0:size, 0:size] / size
    planes = [90 + 60 * np.sin(5 * x + 3 * y + channel) + 50 * (x + y > 1) for channel in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8) + random_image(size, channels) // 8


def corrupted(image, corruption, strength=3, *, seed=0, image_id="a.png"):
    return corrupt(image, corruption, strength, seed=seed, image_id=image_id)


def distance(left, right):
    return np.abs(left.astype(int) - right.astype(int)).mean()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@given(shape=SHAPES, strength=st.sampled_from(STRENGTHS))
def test_any_size_keeps_its_shape_and_the_image_is_left_as_it_was(corruption, shape, strength):
    image = random_image(*shape)
    before = image.copy()
    result = corrupted(image, corruption, strength)
    assert result.shape == (shape[0], shape[0], shape[1]) and result.dtype == np.uint8
    assert result.flags.writeable
    assert np.array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_strength_is_further_from_the_image(corruption, size, channels):
    image = picture(size, channels)
    distances = [distance(corrupted(image, corruption, strength), image) for strength in STRENGTHS]
    assert distances == sorted(distances) and 0 < distances[0] < distances[-1], distances


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("corruption", ["blur", "contrast", "jpeg", "pixelation"])
def test_an_image_of_one_value_has_nothing_to_lose(corruption, channels):
    image = np.full((24, 24, channels), 128, np.uint8)  # what JPEG codes as 0
    assert np.array_equal(corrupted(image, corruption, 5), image)


@pytest.mark.parametrize("corruption", ["blur", "brightness", "contrast", "pixelation"])
def test_gray_is_color_of_three_equal_channels(corruption):
    gray = random_image(32, 1)
    color = corrupted(gray.repeat(3, axis=2), corruption)
    assert np.array_equal(color, corrupted(gray, corruption).repeat(3, axis=2))


def test_noise_has_the_published_deviation_and_is_new_in_each_channel():
    gray = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupted(gray, "noise", 1).astype(float) - 128  # 0.08 * 255 = 20.4: nothing is cut off
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(20.4, rel=0.01)
    correlations = np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.02


def test_noise_depends_on_seed_id_and_strength_alone():
    gray = np.full((32, 32, 1), 128, np.uint8)
    same, again = corrupted(gray, "noise"), corrupted(gray, "noise")
    assert np.array_equal(same, again)
    others = [corrupted(gray, "noise", seed=1), corrupted(gray, "noise", image_id="b.png"), corrupted(gray, "noise", 4)]
    for other in others:
        correlation = np.corrcoef(same.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 0.15  # 4.8 standard errors of 1,024 values


@pytest.mark.parametrize("corruption", [name for name in CORRUPTIONS if name != "noise"])
def test_the_others_take_no_chance(corruption):
    image = random_image(16, 3)
    assert np.array_equal(corrupted(image, corruption), corrupted(image, corruption, seed=9, image_id="b.png"))


def digest_of_all():
    """Of the corruptions that this library computes with NumPy; those of libjpeg or SciPy may change with them."""
    results = [corrupted(random_image(9, 3), name).tobytes() for name in ("noise", "brightness", "contrast")]
    return hashlib.sha256(b"".join(results)).hexdigest()[:6]


def test_another_process_gives_the_same_images():
    code = (
        "import sys; sys.path.insert(0, 'tests/unit'); import test_evaluation_corruptions as t;"
        "t.corrupted(t.random_image(5, 1), 'noise', 5);"  # what was done before does not count
        "print(t.digest_of_all())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == digest_of_all() == GOLDEN


def gaussian_by_hand(image, sigma):
    """Weigh all pixels within four sigma; beyond the edge is the pixel at the edge."""
    radius, size = int(4 * sigma + 0.5), image.shape[0]
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    weights = [weight / sum(weights) for weight in weights]
    result = np.zeros(image.shape)
    for y in range(size):
        for x in range(size):
            for down, vertical in zip(offsets, weights, strict=True):
                for right, horizontal in zip(offsets, weights, strict=True):
                    pixel = image[min(max(y + down, 0), size - 1), min(max(x + right, 0), size - 1)]
                    result[y, x] += vertical * horizontal * pixel
    return result


@pytest.mark.parametrize(("strength", "sigma"), [(1, 0.4), (5, 1.0)])
def test_blur_is_a_gaussian_of_the_published_width(strength, sigma):
    image = random_image(32, 3)
    assert np.abs(corrupted(image, "blur", strength) - gaussian_by_hand(image, sigma)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("strength", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation(strength, added):
    image = random_image(10, 3)
    image[0, 0], image[0, 1] = (0, 0, 0), (255, 255, 255)
    result = corrupted(image, "brightness", strength)
    for pixel, bright in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))
        np.testing.assert_allclose(bright, 255 * np.array(expected), atol=0.501)


def test_contrast_moves_each_channel_to_its_mean():
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, :, 0] = [[0, 100], [200, 100]]  # mean 100
    image[:, :, 1] = [[0, 0], [0, 200]]  # mean 50
    result = corrupted(image, "contrast", 2)  # factor 0.5
    assert result[:, :, 0].tolist() == [[50, 100], [150, 100]]
    assert result[:, :, 1].tolist() == [[25, 25], [25, 125]]
    assert not result[:, :, 2].any()


def test_pixelation_is_the_mean_of_blocks():
    image = random_image(64, 3)
    means = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))  # strength 5 of 64 pixels: half the side
    result = corrupted(image, "pixelation", 5)
    assert np.abs(result - means.repeat(2, axis=0).repeat(2, axis=1)).max() <= 1
    assert np.array_equal(result[::2, ::2], result[1::2, 1::2])


def test_jpeg_loses_fine_patterns_and_keeps_coarse_ones():
    squares = 255 * (np.indices((64, 64)).sum(axis=0)[:, :, None] // 8 % 2).astype(np.uint8)
    grain = random_image(64, 1)
    assert distance(corrupted(squares, "jpeg", 5), squares) < distance(corrupted(grain, "jpeg", 5), grain) / 2


@pytest.mark.parametrize(("size", "published"), [(8, 32), (28, 32), (32, 32), (45, 32), (46, 64), (64, 64), (96, 64)])
def test_parameters_are_those_of_the_nearest_size_and_blur_grows_with_the_side(size, published):
    for corruption in CORRUPTIONS:
        for strength in STRENGTHS:
            scale = size / published if corruption == "blur" else 1
            expected = scale * PARAMETERS[published][corruption][strength - 1]
            assert parameter(corruption, strength, size=size) == expected


def test_parameters_of_large_images():
    assert [parameter("blur", 5, size=size) for size in (120, 224, 448)] == [6 * 120 / 224, 6, 12]
    assert [parameter("jpeg", 5, size=size) for size in (119, 120, 448)] == [25, 7, 7]
    assert [parameter("noise", 1, size=size) for size in (32, 64, 224)] == [0.04, 0.04, 0.08]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 1), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 5, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_another_kind_of_image_is_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(size, size, 1 or 3\)"):
        corrupted(image, "noise")


@pytest.mark.parametrize(("corruption", "strength"), [("fog", 1), ("noise", 0), ("noise", 6), ("noise", -1)])
def test_what_there_is_not_is_refused(corruption, strength):
    with pytest.raises(ValueError, match="expected one of noise, blur, brightness, contrast, jpeg, pixelation, and a"):
        corrupted(random_image(4, 1), corruption, strength)
