"""The embedded shapes: images drawn by code, with exact masks. They are synthetic, for tests and for a first try alone.

What a class is follows from its outline alone: colors, sizes, angles and the ground are drawn independently of it.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.sources.arrays import encode_png
from pipelines.sources.source import Source, make_source

COUNT, SIDE = 300, 48
CLASSES = ["background", "circle", "square", "triangle"]
VOID = 255
RING = 1.0  # pixels on both sides of an outline that are void: there a pixel shows both
COLORS = np.array(
    [(214, 64, 52), (62, 158, 78), (58, 96, 200), (226, 178, 46), (150, 74, 172), (232, 232, 226)], dtype=np.float64
)
NOISE = 14.0  # standard deviation, of 255

Distances = NDArray[np.float64]  # (SIDE, SIDE) pixels, below 0 within an outline


class _Scene(NamedTuple):
    pixels: NDArray[np.uint8]  # (SIDE, SIDE, 3)
    mask: NDArray[np.uint8]  # (SIDE, SIDE)


def open_shapes(*, void_index: int | None) -> Source:
    """Open 300 color images of 48 x 48 pixels with circles, squares and triangles, void around them.

    Raises:
        ValueError: `void_index` is another value than that of the masks.
    """
    if void_index != VOID:
        raise ValueError(f"data.void_index is {void_index}, expected {VOID} for data.source shapes: set it")
    return make_source(
        "shapes",
        CLASSES,
        [f"shapes-{row:06d}" for row in range(COUNT)],
        labels=np.full(COUNT, -1, np.int64),
        splits=[None] * COUNT,
        read=lambda k: encode_png(Image.fromarray(_draw(k).pixels)),
        read_mask=lambda k: encode_png(Image.fromarray(_draw(k).mask)),
        mask_values=list(range(len(CLASSES))),
    )


@functools.lru_cache(maxsize=1)  # an image is read, then its mask
def _draw(index: int) -> _Scene:
    """Draw two to four objects on a ground; a later one covers those before, with their rings."""
    rng = np.random.default_rng(index)
    pixels = _ground(rng)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        value = int(rng.integers(1, len(CLASSES)))
        distances = _distances(value, rng)
        share = np.clip(0.5 - distances, 0, 1)[..., None]  # of the object, in a pixel on its outline
        color = COLORS[rng.integers(len(COLORS))] + rng.uniform(-20, 20, 3)
        pixels = pixels * (1 - share) + color * share
        mask[distances < RING] = VOID
        mask[distances <= -RING] = value
    noisy = pixels + NOISE * rng.standard_normal(pixels.shape)
    return _Scene(np.clip(np.round(noisy), 0, 255).astype(np.uint8), mask)


def _ground(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return stripes between two colors, as colorful as those of the objects: (SIDE, SIDE, 3)."""
    first, second = rng.uniform(40, 215, (2, 3))
    angle, length, phase = rng.uniform(0, math.pi), rng.uniform(4, 16), rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * (2 * math.pi / length) + phase)
    share = (0.5 + 0.25 * waves + 0.2 * rng.uniform(-1, 1, (SIDE // 6, SIDE // 6)).repeat(6, 0).repeat(6, 1))[..., None]
    return np.asarray(first + (second - first) * share)


def _distances(value: int, rng: np.random.Generator) -> Distances:
    """Return how far each pixel's center is from the outline of an object; near its corners, from its longer sides."""
    x, y = rng.uniform(6, SIDE - 6, 2)
    radius, angle = rng.uniform(6, 13), rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    if CLASSES[value] == "circle":
        return np.asarray(np.hypot(columns - x, rows - y) - radius)
    sides = 4 if CLASSES[value] == "square" else 3
    inner = radius * (0.9 if sides == 4 else 0.75)  # so that all three are about as large
    normals = [angle + 2 * math.pi * side / sides for side in range(sides)]
    beyond = [(columns - x) * math.cos(a) + (rows - y) * math.sin(a) - inner for a in normals]
    return np.asarray(np.max(beyond, axis=0))
