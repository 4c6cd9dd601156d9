"""Which images are nearly the same: a perceptual hash, and the sets of images whose hashes are close."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# Distances measured, 50 % and 99 % of the copies of 1,000 images of Tiny-ImageNet (64 x 64), and the same of 234 frames
# of CamVid (240 x 180): JPEG quality 75: 0, 4; 2, 4. Quality 50: 6, 18; 2, 6. Half the size: 4, 8; 2, 4. Half the size
# and quality 75: 10, 30; 2, 6. Brightness x 1.15: 4, 18; 8, 20. (2 % cut off each edge: 30, 50; 30, 44: not found.)
# The nearest other image is at 56 or more in Tiny-ImageNet (n = 4,583, of 27,493), at 26 or more in digits (n = 1,797).
# Largest sets at 24: 23 of 70,000 in Fashion-MNIST (118 sets), 34 of 701 frames in CamVid (20 sets, no one across
# its published splits); at 32 they would be 86 and 61.
THRESHOLD = 24
NO_HASH = bytes(32)
_SIDE, _FREQUENCIES, _BITS, _BAND = 64, 16, 256, 16
_MIN_ONES = 64  # see perceptual_hash
_WINDOW = 64  # neighbors that each hash is compared with, in each order
_BLOCK = 2**16  # hashes compared at a time: they fit into the processor's cache


def _cosines() -> NDArray[np.float64]:
    """Rows 1 to 16 of the discrete cosine transform (II), as whole numbers: sums of their products are exact."""
    angles = np.pi / _SIDE * np.outer(np.arange(1, _FREQUENCIES + 1), np.arange(_SIDE) + 0.5)
    return np.round(np.cos(angles) * 4096)


_ROWS = _cosines()
_COLUMNS = np.ascontiguousarray(_ROWS.T)


def perceptual_hash(image: Image.Image) -> bytes:
    """Return 256 bits that stay nearly the same when an image is stored again, resized, or made a little brighter.

    The image is made gray and 64 x 64. Bit (u, v), for u and v from 1 to 16, says whether the coefficient of that
    frequency in its discrete cosine transform is above their median. (After PDQ, Facebook 2019; its filter, its
    dihedral variants and its quality are left out.) All arithmetic is exact, so the bits depend on no machine.

    An image without structure in both directions has no coefficients to compare: of one color, of stripes, a plain
    gradient. Where fewer than 64 bits are above the median (128 are in photographs) the hash is `NO_HASH`, all zeros,
    which is near to none, so that plain images of different colors do not become near-duplicates.

    Args:
        image: As `decode` gives it: upright, 8 bits a channel.
    """
    gray = image if image.mode == "L" else image.convert("L")
    if gray.size != (_SIDE, _SIDE):
        gray = gray.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    coefficients = (_ROWS @ np.asarray(gray, dtype=np.float64) @ _COLUMNS).ravel()
    bits = coefficients > np.partition(coefficients, _BITS // 2 - 1)[_BITS // 2 - 1]
    return np.packbits(bits).tobytes() if np.count_nonzero(bits) >= _MIN_ONES else NO_HASH


def find_near_duplicates(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the first image (smallest index) of each image's set of near-duplicates; itself where it is alone.

    Two images are linked where their hashes differ in at most 24 of 256 bits, and a set is all that links connect:
    its ends can be further apart, but two images that are linked are never in two sets, so no split tears them apart.

    Images are sorted 16 times, each time from another 16 bits on, and compared with the 64 next ones. Two hashes that
    differ in at most 15 bits agree in one of the 16 parts: they are found for sure unless more than 64 others share
    it. Of those that differ in 24, 99.9 % were found among 1,000,000, in 11 s and 0.3 GB; of the 179 pairs in
    Fashion-MNIST all.

    Args:
        hashes: (N, 4): 256 bits each. All zeros is no hash: near to none.
    """
    order = np.lexsort(hashes.T)
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    distinct = np.empty(len(hashes), dtype=np.int64)
    distinct[order] = np.cumsum(is_new) - 1
    sets = _link(hashes[order[is_new]])[distinct]
    without = np.flatnonzero(~hashes.any(axis=1))
    sets[without] = len(hashes) + without
    return first_of_equals(sets)


def first_of_equals(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest index at which each value occurs."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def join(sets: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the set of each index after the sets of `left[k]` and `right[k]` became one, for every k.

    Args:
        sets: Numbers from 0 to N - 1.
        left: Indices.
        right: Indices.
    """
    edges = np.ones(len(left), dtype=bool), (sets[left], sets[right])
    _, joined = connected_components(coo_matrix(edges, (len(sets), len(sets))), directed=False)
    return np.asarray(joined[sets], dtype=np.int64)


def _link(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of the set of each of the distinct hashes."""
    sets = np.arange(len(hashes), dtype=np.int64)
    for band in range(_BITS // _BAND):
        order = _sort_from(hashes, band)
        first_word = band * _BAND // 64 + 2  # those that differ most from neighbor to neighbor come first
        words = np.ascontiguousarray(hashes[order].T[np.arange(first_word, first_word + 4) % 4])
        sets = _link_neighbors(words, sets[order])[np.argsort(order)]
    return sets


def _link_neighbors(words: NDArray[np.uint64], sets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the sets of near-duplicates that are at most 64 places apart."""
    links, waiting = [np.empty((2, 0), dtype=np.int64)], 0
    for offset in range(1, min(_WINDOW, len(sets) - 1) + 1):
        left = _close_pairs(words, sets, offset)
        links.append(np.stack([left, left + offset]))
        waiting += len(left)
        if waiting > len(sets):  # joined early, so that a crowd of near-duplicates does not fill the memory
            sets, links, waiting = join(sets, *np.concatenate(links, axis=1)), links[:1], 0
    return join(sets, *np.concatenate(links, axis=1)) if waiting else sets


def _sort_from(hashes: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    """Sort by the 64 bits from a band on, as in a ring."""
    word, shift = divmod(band * _BAND, 64)
    keys = hashes[:, word] << np.uint64(shift)
    if shift:
        keys |= hashes[:, (word + 1) % 4] >> np.uint64(64 - shift)
    return np.argsort(keys, kind="stable")


def _close_pairs(words: NDArray[np.uint64], sets: NDArray[np.int64], offset: int) -> NDArray[np.int64]:
    """Return each k such that hashes k and k + offset are near-duplicates, and not yet in one set.

    Args:
        words: (4, N), those by which the order was made last.
        sets: (N,)
        offset: From 1 to N - 1.
    """
    found = []
    for start in range(0, words.shape[1] - offset, _BLOCK):
        end = min(start + _BLOCK, words.shape[1] - offset)
        here, there = slice(start, end), slice(start + offset, end + offset)
        distance = np.bitwise_count(words[0, here] ^ words[0, there])
        distance += np.bitwise_count(words[1, here] ^ words[1, there])
        left = start + np.flatnonzero((distance <= THRESHOLD) & (sets[here] != sets[there]))
        distance = np.bitwise_count(words[:, left] ^ words[:, left + offset]).sum(axis=0, dtype=np.int64)
        found.append(left[distance <= THRESHOLD])
    return np.concatenate(found)
