"""Six corruptions of images at five strengths, for the robustness of a classifier.

A corrupted image is a function of the image, the corruption, the strength, the seed and the image's id: of no other
image, and not of batch, order or process.

Parameters are those of Hendrycks & Dietterich 2019 (Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, https://github.com/hendrycks/robustness), who published three sets: CIFAR-10-C (32 pixels),
Tiny-ImageNet-C (64) and ImageNet-C (224). The set of the side nearest by ratio holds, and from there

| corruption | parameter | what another image size changes |
| --- | --- | --- |
| noise | standard deviation of Gaussian noise, of pixel values from 0 to 1 | nothing: it is of each pixel |
| blur | sigma of a Gaussian, in pixels | sigma grows with the side (ours) |
| brightness | what is added to the value of HSV | nothing |
| contrast | factor of the distance from the mean of the image's channel | nothing |
| jpeg | quality | nothing: the blocks of JPEG have 8 pixels at any size |
| pixelation | side of the reduced image over that of the image | nothing: it is a share |

In color the noise of the channels is independent, and brightness keeps hue and saturation. A gray image is treated as
its one channel (ours: the published sets are in color). Results are rounded; the published code cuts decimals off,
which darkens every image by half a step. Noise, brightness and contrast are written out, because torchvision has others
of these names: its noise takes no generator, its brightness is a factor, its contrast has one mean for all channels.
"""

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grpo_rm.transforms import Pixels

Values = NDArray[np.float32]  # (size, size, channels), from 0 to 255 before they are cut off there
Corrupt = Callable[[Pixels, float, np.random.Generator], Pixels]

STRENGTHS = (1, 2, 3, 4, 5)
PARAMETERS = {  # by side of the published images; one value per strength
    32: {
        "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "jpeg": (80, 65, 58, 50, 40),
        "pixelation": (0.95, 0.9, 0.85, 0.75, 0.65),
    },
    64: {
        "noise": (0.04, 0.08, 0.12, 0.15, 0.18),
        "blur": (0.5, 0.75, 1.0, 1.25, 1.5),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "jpeg": (65, 58, 50, 40, 25),
        "pixelation": (0.9, 0.8, 0.7, 0.6, 0.5),
    },
    224: {
        "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "jpeg": (25, 18, 15, 10, 7),
        "pixelation": (0.6, 0.5, 0.4, 0.3, 0.25),
    },
}


def corrupt(image: Pixels, corruption: str, strength: int, *, seed: int, image_id: str) -> Pixels:
    """Return the corrupted image, of the same shape.

    Args:
        image: (size, size, channels) uint8, as the model is given it; gray (1) or RGB (3).
        corruption: One of CORRUPTIONS.
        strength: 1 to 5.
        seed: Of the noise.
        image_id: Of the noise too: each image has its own, whatever else is in the set.

    Raises:
        ValueError: An image of another kind, no such corruption, or a strength out of range.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] not in (1, 3):
        raise ValueError(
            f"got an image of {image.dtype} {image.shape}; expected uint8 (size, size, 1 or 3): corrupt images as "
            "`evaluation_view` gives them, before they are normalized"
        )
    value = parameter(corruption, strength, size=image.shape[0])
    generator = _generator(f"{seed}/{corruption}/{strength}/{image_id}")
    return CORRUPTIONS[corruption](image, value, generator)


def parameter(corruption: str, strength: int, *, size: int) -> float:
    """Return the parameter of a corruption for images of `size` pixels, by the table above.

    Raises:
        ValueError: There is no such corruption, or the strength is out of range.
    """
    if corruption not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(
            f"got corruption {corruption!r} of strength {strength!r}; expected one of {', '.join(CORRUPTIONS)}, and "
            f"a strength from {STRENGTHS[0]} to {STRENGTHS[-1]}"
        )
    published = min(PARAMETERS, key=lambda side: abs(math.log(size / side)))
    value = PARAMETERS[published][corruption][strength - 1]
    return value * size / published if corruption == "blur" else value


def _generator(name: str) -> np.random.Generator:
    """Return the generator of this name alone: its digest is the key, so that names need no numbers."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def _noisy(image: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return _rounded(image + noise * np.float32(255 * deviation))


def _blurred(image: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    from scipy.ndimage import gaussian_filter  # slow to import

    values: Values = gaussian_filter(image.astype(np.float32), sigma, mode="nearest", axes=(0, 1))
    return _rounded(values)


def _brighter(image: Pixels, added: float, _: np.random.Generator) -> Pixels:
    """Add to the value of HSV, which is the largest channel; hue and saturation stay where all channels keep ratio."""
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + np.float32(255 * added), 255)
    return _rounded(np.where(value > 0, image * (brighter / np.maximum(value, 1)), brighter))


def _flatter(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    mean = image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return _rounded((image - mean) * np.float32(factor) + mean)


def _jpeg(image: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=int(quality))
    return np.array(Image.open(file, formats=["JPEG"])).reshape(image.shape)


def _pixelated(image: Pixels, share: float, _: np.random.Generator) -> Pixels:
    size, box = image.shape[0], Image.Resampling.BOX
    small = max(1, int(size * share))
    return np.array(_to_pillow(image).resize((small, small), box).resize((size, size), box)).reshape(image.shape)


def _to_pillow(image: Pixels) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _rounded(values: Values) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corrupt] = {
    "noise": _noisy,
    "blur": _blurred,
    "brightness": _brighter,
    "contrast": _flatter,
    "jpeg": _jpeg,
    "pixelation": _pixelated,
}
