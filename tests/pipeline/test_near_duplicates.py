"""Near-duplicates: the perceptual hash, and the sets of images whose hashes are close."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from pipelines.preparation.near_duplicates import NO_HASH, THRESHOLD, find_near_duplicates, perceptual_hash


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Twelve parts of two photographs."""
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [image.crop((x, y, x + 200, y + 200)) for image in images for x in (10, 220, 430) for y in (10, 210)]


def distance(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def flip(hashes: np.ndarray, bits: int, seed: int = 1) -> np.ndarray:
    """Change as many bits of each hash, at random places."""
    rng = np.random.default_rng(seed)
    changed = np.unpackbits(hashes.view(np.uint8), axis=1)
    for row in changed:
        row[rng.choice(256, bits, replace=False)] ^= 1
    return np.packbits(changed, axis=1).copy().view(np.uint64)


def naive(hashes: np.ndarray) -> list[int]:
    """All pairs, one after the other."""
    firsts = list(range(len(hashes)))
    for i, one in enumerate(hashes):
        for j, other in enumerate(hashes[:i]):
            if (
                one.any()
                and other.any()
                and np.bitwise_count(one ^ other).sum() <= THRESHOLD
                and firsts[i] != firsts[j]
            ):
                low, high = sorted((firsts[i], firsts[j]))
                firsts = [low if first == high else first for first in firsts]
    return firsts


def test_hash_golden():
    """An image that is the sum of 256 waves, half of them turned: the hash says which."""
    signs = np.random.default_rng(0).permutation(np.repeat([-1, 1], 128))
    waves = np.cos(np.pi / 64 * np.outer(np.arange(1, 17), np.arange(64) + 0.5))
    pixels = 128 + 2.5 * np.einsum("uv,uy,vx->yx", signs.reshape(16, 16), waves, waves)
    image = Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
    assert perceptual_hash(image) == np.packbits(signs > 0).tobytes()
    assert perceptual_hash(image).hex() == "2e4aaab61dd19b6b5f92cc0d5e08e052f5cb588766a4f6f5bf803d24394780ba"


def test_hash_is_what_a_plain_cosine_transform_gives(photographs):
    for image in photographs[:4]:
        small = image.convert("L").resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=2.0)
        y, u = np.arange(64) + 0.5, np.arange(1, 17)
        basis = np.cos(np.pi / 64 * np.outer(u, y))
        coefficients = np.einsum("uy,vx,yx->uv", basis, basis, np.asarray(small, dtype=np.float64)).ravel()
        expected = np.packbits(coefficients > np.median(coefficients)).tobytes()
        assert distance(perceptual_hash(image), expected) <= 2  # the basis is rounded there


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (lambda image: jpeg(image, 75), 8),
        (lambda image: jpeg(image, 50), 16),
        (lambda image: image.resize((100, 100), Image.Resampling.BICUBIC), 8),
        (lambda image: image.resize((1_000, 700), Image.Resampling.BICUBIC), 8),
        (lambda image: image.convert("L"), 2),
        (lambda image: ImageEnhance.Brightness(image).enhance(1.15), THRESHOLD),
        (lambda image: ImageEnhance.Contrast(image).enhance(0.85), 8),
    ],
)
def test_changed_copies_are_near_and_other_images_far(photographs, change, limit):
    hashes = [perceptual_hash(image) for image in photographs]
    for index, image in enumerate(photographs):
        changed = perceptual_hash(change(image))
        assert distance(changed, hashes[index]) <= limit
        assert min(distance(changed, other) for other in hashes[:index] + hashes[index + 1 :]) > 2 * THRESHOLD


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 300), (64, 64), (500, 20)])
def test_images_without_structure_have_no_hash(size):
    stripes = np.tile(np.arange(size[0], dtype=np.uint8) * 40, (size[1], 1))
    for image in (Image.new("RGB", size, "red"), Image.new("L", size, 7), Image.fromarray(stripes)):
        assert perceptual_hash(image) == NO_HASH


@pytest.mark.parametrize("cell", [8, 16, 32])
def test_checkered_images_have_too_little_structure(cell):
    """One is the near-duplicate of another by accident: nearly all their coefficients are 0."""
    y, x = np.indices((64, 64)) // cell
    assert perceptual_hash(Image.fromarray(((x + y) % 2 * 255).astype(np.uint8))) == NO_HASH


def test_every_mode_has_a_hash(photographs):
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "YCbCr", "1"):
        assert len(perceptual_hash(photographs[0].convert(mode))) == 32


def test_sets_golden():
    one, other = random_hashes(2)
    near, chained = flip(one[None], 24)[0], flip(flip(one[None], 24), 20, seed=2)[0]
    far = flip(one[None], 25)[0]
    none = np.zeros(4, dtype=np.uint64)
    hashes = np.stack([other, one, none, far, near, one, none, chained])
    assert naive(hashes) == [0, 1, 2, 3, 1, 1, 6, 1]
    assert find_near_duplicates(hashes).tolist() == [0, 1, 2, 3, 1, 1, 6, 1]


def test_few_images():
    assert find_near_duplicates(np.zeros((0, 4), np.uint64)).tolist() == []
    assert find_near_duplicates(np.zeros((1, 4), np.uint64)).tolist() == [0]
    assert find_near_duplicates(random_hashes(1)).tolist() == [0]
    assert find_near_duplicates(random_hashes(1).repeat(2, axis=0)).tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=30))
def test_sets_are_those_of_all_pairs(seed, copies):
    hashes = list(random_hashes(8, seed))
    for source, bits in copies:
        hashes.append(flip(hashes[source % len(hashes)][None], bits, seed=len(hashes))[0])
    assert find_near_duplicates(np.stack(hashes)).tolist() == naive(np.stack(hashes))


@pytest.mark.parametrize(("bits", "share"), [(1, 1.0), (15, 1.0), (20, 0.99), (24, 0.98), (25, 0.0)])
def test_copies_among_many(bits, share):
    hashes = random_hashes(20_000)
    firsts = find_near_duplicates(np.concatenate([hashes, flip(hashes[:2_000], bits)]))
    assert firsts[:20_000].tolist() == list(range(20_000))
    found = firsts[20_000:] == np.arange(2_000)
    assert found.mean() >= share
    assert share or not found.any()


def test_copies_that_agree_in_16_bits_alone_are_found():
    hashes = random_hashes(20_000)
    copies = hashes[:16] ^ np.uint64(0x8000_8000_8000_8000)  # the first of each 16 bits
    for band, copy in enumerate(copies):
        copy[band // 4] ^= np.uint64(0x8000 << band % 4 * 16)
    assert find_near_duplicates(np.concatenate([hashes, copies]))[20_000:].tolist() == list(range(16))


def test_a_crowd_of_near_duplicates_is_one_set_and_does_not_fill_the_memory():
    """As from a camera that does not move: all pairs are too many to be listed."""
    scenes = random_hashes(2)
    hashes = np.concatenate([flip(scenes[k % 2][None], 10, seed=k) for k in range(8_000)])
    tracemalloc.start()
    firsts = find_near_duplicates(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert firsts.tolist() == [0, 1] * 4_000
    assert peak < 300 * len(hashes)  # bytes; all pairs that are compared in one order have 1,000 for each image


def test_order_of_images_does_not_matter():
    hashes = random_hashes(500)
    hashes = np.concatenate([hashes, flip(hashes[:200], 20), hashes[:50]])
    shuffle = np.random.default_rng(0).permutation(len(hashes))
    sets, shuffled = find_near_duplicates(hashes), find_near_duplicates(hashes[shuffle])
    assert {frozenset(np.flatnonzero(sets == k)) for k in set(sets)} == {
        frozenset(shuffle[np.flatnonzero(shuffled == k)]) for k in set(shuffled)
    }
