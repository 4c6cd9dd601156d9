"""Masks as pictures: each class in its color, void transparent, colors that color-blind eyes tell apart."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from grpo_rm.masks import VOID
from pipelines.reporting.mask_pictures import describe_mask, mask_colors, mask_picture

# What a color looks like, from linear RGB, to normal, protan and deutan eyes (Machado et al. 2009, severity 1).
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
LMS = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]]
)
OKLAB = np.array(
    [[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.42859220, 0.45059371], [0.02590404, 0.78277177, -0.80867577]]
)


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.mode == "P"
    return np.asarray(picture.convert("RGBA"))


def test_each_class_has_its_color_and_void_is_transparent() -> None:
    shown = pixels(mask_picture(np.array([[0, 1, VOID], [2, 0, 1]], dtype=np.int16), side=10))
    colors = [rgb(color) for color in mask_colors(3)]
    assert shown[0, 2, 3] == 0
    assert [tuple(shown[place]) for place in ((0, 0), (0, 1), (1, 0))] == [(*color, 255) for color in colors]
    assert tuple(shown[1, 1]) == (*colors[0], 255) and tuple(shown[1, 2]) == (*colors[1], 255)


@pytest.mark.parametrize(("shape", "expected"), [((400, 100), (50, 13)), ((100, 400), (13, 50)), ((1, 999), (1, 50))])
def test_a_large_mask_is_sampled_and_no_class_is_mixed(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).choice([VOID, 0, 2, 7], shape)
    shown = pixels(mask_picture(mask, side=50))
    assert shown.shape[:2] == expected
    colors = mask_colors(8)
    for row in range(expected[0]):
        for column in range(expected[1]):
            label = mask[int((row + 0.5) * shape[0] / expected[0]), int((column + 0.5) * shape[1] / expected[1])]
            pixel = shown[row, column]
            assert pixel[3] == 0 if label == VOID else tuple(pixel[:3]) == rgb(colors[label])


def test_a_small_mask_stays_as_it_is() -> None:
    assert pixels(mask_picture(np.zeros((3, 5), dtype=np.int64), side=50)).shape == (3, 5, 4)


@pytest.mark.parametrize(("count", "least"), [(12, 0.11), (24, 0.07)])
@pytest.mark.parametrize("eye", EYES)
def test_colors_are_told_apart(count: int, least: float, eye: str) -> None:
    shares = np.array([rgb(color) for color in mask_colors(count)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.cbrt(np.clip(linear @ np.transpose(EYES[eye]), 0, 1) @ LMS.T) @ OKLAB.T
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    assert distances[np.triu_indices(count, 1)].min() > least


def test_more_classes_than_colors() -> None:
    colors = mask_colors(1000)
    assert len(set(colors[:255])) == 255 and colors[255:510] == colors[:255]
    shown = pixels(mask_picture(np.array([[254, 255, 999, VOID]]), side=4))
    assert [tuple(pixel[:3]) for pixel in shown[0, :3]] == [rgb(colors[label]) for label in (254, 0, 999)]
    assert shown[0, :, 3].tolist() == [255, 255, 255, 0]


def test_a_mask_in_words() -> None:
    classes = ["road", "car", "sky"]
    assert describe_mask(np.array([[1, 1, 0, VOID]]), classes) == "car 50 %, road 25 %"
    assert describe_mask(np.array([[0, 1, 2, 2]]), classes, limit=1) == "sky 50 %, ..."
    assert describe_mask(np.array([[VOID]]), classes) == "void alone"
