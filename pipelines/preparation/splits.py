"""Which image is for training, validation, or test.

1. A split that the source gives is kept. One that it lacks is made from its training images: by `val_fraction` and
   `test_fraction`. An image without a split beside others that have one counts as a training image here.
2. An image that the former version of the data knew (by its content) keeps the split it had, so the split of an image
   changes neither when images are added nor when they are removed.
3. Images that belong together are one unit, and a unit is never torn apart: copies, images of one group, and
   near-duplicates, also of images that only the former version has (so an edited file stays where it was). Files that
   cannot be decoded are copies of none: those that are empty or missing would join all their groups.
4. A unit that the source or the former version has put somewhere draws its new images there. Where it is in several
   splits already, they go to the first of train, val, test that it is in: what resembles images that were trained on is
   no test, and further such images only make the training set larger. A training image of the source never goes to a
   split that the source gives: it stays, and validate reports its near-duplicates across splits.
5. Any other unit is placed by a number in [0, 1) that follows from the seed and its key: below the test fraction it is
   for test, then for val. The key is the name of its group, or else its smallest SHA-256. So classes are stratified in
   expectation, and other images have no influence. (Without a former version, a unit does change its key where an
   added near-duplicate has a smaller SHA-256: of a single image, in half the cases. Groups keep theirs.)
6. Every class has an image that can be decoded in train and in every split that is made: where it has none, its new
   unit nearest to that part of [0, 1) is moved.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.preparation.class_coverage import ClassCoverage
from pipelines.preparation.near_duplicates import NO_HASH, find_near_duplicates, first_of_equals, join
from pipelines.sources.source import SPLITS, Source

FORMER = pa.schema([(name, pa.string()) for name in ("sha256", "split", "group", "perceptual_hash")])
TRAIN, UNDECIDED = SPLITS.index("train"), len(SPLITS)  # the larger, so that a minimum is a split where there is one


@dataclass(frozen=True)
class _Rows:
    """One entry per image: those of the source, then those that only the former version has."""

    decided: NDArray[np.int64]  # the split, or UNDECIDED
    digests: list[str]
    groups: list[str]
    hashes: NDArray[np.uint64]
    is_readable: NDArray[np.bool_]


def assign_splits(
    source: Source,
    digests: Sequence[str],
    hashes: Sequence[bytes],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    former: pa.Table | None,
) -> tuple[list[str], list[str]]:
    """Return the split of each image, and the id of the first of its near-duplicates ("" where it is that or alone).

    Args:
        source: Images with or without splits and groups.
        digests: SHA-256 of each image file.
        hashes: `perceptual_hash` of each image, b"" where it cannot be decoded.
        val_fraction: Of the training images, where the source has no validation split.
        test_fraction: Of the training images, where the source has no test split.
        seed: Another seed gives another split.
        former: The manifest of the version of the data that this one replaces, with the same seed and fractions.

    Raises:
        ValueError: A class has too few units (see above) for train and the splits that are made.
    """
    count, fractions = len(source.ids), {"test": test_fraction, "val": val_fraction}
    made = {SPLITS.index(split): share for split, share in fractions.items() if split not in source.splits}
    rows = _collect_rows(source, digests, hashes, former, made)
    firsts = find_near_duplicates(rows.hashes)
    units = _find_units(rows, firsts)
    targets = _follow(source, rows.decided, units, made)
    places = _place(rows, units, targets == UNDECIDED, seed=seed)
    parts = _divide(made)
    for split, (low, high) in parts.items():
        targets[(low <= places) & (places < high)] = split
    now = np.where(rows.decided == UNDECIDED, targets[units], rows.decided)[:count]
    for unit, split in _cover(source, now, units[:count], rows.is_readable[:count], places=places, parts=parts).items():
        targets[unit] = split
    splits = np.where(rows.decided == UNDECIDED, targets[units], rows.decided)[:count]
    if len(rows.decided) > count:  # what is gone may have linked images that are not alike
        firsts = find_near_duplicates(rows.hashes[:count])
    near = [source.ids[first] if first != index else "" for index, first in enumerate(firsts.tolist())]
    return [SPLITS[split] for split in splits.tolist()], near


def _collect_rows(
    source: Source, digests: Sequence[str], hashes: Sequence[bytes], former: pa.Table | None, made: dict[int, float]
) -> _Rows:
    old = former.select(list(FORMER.names)) if former is not None else FORMER.empty_table()
    old = old.filter(pc.not_equal(old["perceptual_hash"], ""))
    gone = old.filter(pc.invert(pc.is_in(old["sha256"], pa.array(digests, pa.string())))).to_pylist()
    all_hashes = [*hashes, *(bytes.fromhex(row["perceptual_hash"]) for row in gone)]
    return _Rows(
        decided=np.array(
            _decide(source, digests, _known_splits(old["sha256"], old["split"]), made)
            + [SPLITS.index(row["split"]) for row in gone],
            dtype=np.int64,
        ),
        digests=[*digests, *(row["sha256"] for row in gone)],
        groups=[*(source.groups or [""] * len(digests)), *(row["group"] for row in gone)],
        hashes=_to_array(all_hashes),
        is_readable=np.array([bool(hash_) for hash_ in all_hashes], dtype=bool),
    )


def _known_splits(digests: pa.ChunkedArray, splits: pa.ChunkedArray) -> dict[str, int]:
    """Return the split of each SHA-256; the first of them where a source gave copies several."""
    known: dict[str, int] = {}
    for digest, split in zip(digests.to_pylist(), splits.to_pylist(), strict=True):
        known[digest] = min(SPLITS.index(split), known.get(digest, UNDECIDED))
    return known


def _decide(source: Source, digests: Sequence[str], known: dict[str, int], made: dict[int, float]) -> list[int]:
    """Return the split of each image that the source or the former version says."""
    decided = []
    for given, digest in zip(source.splits, digests, strict=True):
        former = known.get(digest, UNDECIDED)
        if given == "train":  # which splits are made from
            former = former if former in made or former == TRAIN else UNDECIDED
        decided.append(former if given in (None, "train") else SPLITS.index(given))
    return decided


def _to_array(hashes: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hash_ or NO_HASH for hash_ in hashes), dtype=np.uint64).reshape(-1, 4)


def _find_units(rows: _Rows, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each image's unit."""
    itself = np.arange(len(firsts))
    copies = np.where(rows.is_readable, first_of_equals(_number(rows.digests)), itself)  # empty files are all alike
    grouped = np.array([bool(group) for group in rows.groups], dtype=bool)
    groups = np.where(grouped, first_of_equals(_number(rows.groups)), itself)
    return join(itself, np.tile(itself, 3), np.concatenate([firsts, copies, groups]))


def _number(names: list[str]) -> NDArray[np.int64]:
    return np.asarray(pa.array(names, pa.string()).dictionary_encode().indices, dtype=np.int64)


def _follow(
    source: Source, decided: NDArray[np.int64], units: NDArray[np.int64], made: dict[int, float]
) -> NDArray[np.int64]:
    """Return the split that draws the undecided images of each unit there, or UNDECIDED."""
    targets = np.full(units.max(initial=-1) + 1, UNDECIDED)
    np.minimum.at(targets, units, decided)
    given = [split for split in range(len(SPLITS)) if split != TRAIN and split not in made]
    from_train = np.array([split == "train" for split in source.splits], dtype=bool)
    stay = units[: len(from_train)][from_train & (decided[: len(from_train)] == UNDECIDED)]
    targets[stay[np.isin(targets[stay], given)]] = TRAIN
    return targets


def _place(rows: _Rows, units: NDArray[np.int64], is_new: NDArray[np.bool_], *, seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each new unit that looks random, and NaN for the others."""
    keys: dict[int, tuple[bool, str]] = {}
    for index in np.flatnonzero(is_new[units]).tolist():
        unit, group = int(units[index]), rows.groups[index]
        key = (not group, group or rows.digests[index])
        keys[unit] = min(key, keys.get(unit, key))
    places = np.full(len(is_new), np.nan)
    for unit, (_, name) in keys.items():
        places[unit] = int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:13], 16) / 16**13
    return places


def _divide(made: dict[int, float]) -> dict[int, tuple[float, float]]:
    """Return the part of [0, 1) of train, and of each split that is made."""
    bounds = np.cumsum([0.0, *made.values()]).tolist()
    return {TRAIN: (bounds[-1], 1.0)} | dict(zip(made, pairwise(bounds), strict=True))


def _cover(
    source: Source, splits: NDArray[np.int64], units: NDArray[np.int64], readable: NDArray[np.bool_], **placing: Any
) -> dict[int, int]:
    """Return the units that are moved so that every class is everywhere, and where to."""
    classes, labels = source.classes, source.labels
    if (labels < 0).all():  # segmentation: one class, as it were
        classes, labels = ["images"], np.zeros_like(labels)
    coverage = ClassCoverage(units[readable], labels[readable], splits[readable], classes=len(classes), **placing)
    coverage.fill()
    if coverage.missing:
        raise ValueError(_too_few(source.name, classes, coverage.missing, list(placing["parts"])))
    return coverage.moved


def _too_few(name: str, classes: list[str], missing: dict[int, tuple[int, int]], splits: list[int]) -> str:
    counts = [
        f"{classes[label]!r} has {units}{f' (of {images} images)' if images != units else ''}"
        for label, (images, units) in missing.items()
    ]
    remedy = "Add images that belong to none of these, or remove the class"
    if all(units >= len(splits) for _, units in missing.values()):
        remedy = "They are all in some splits from before: add images, or delete data/prepared to make all splits anew"
    return (
        f"{len(missing)} class(es) of {name} cannot be in each of {', '.join(SPLITS[split] for split in splits)}: "
        f"{', '.join(counts[:10])}; expected at least {len(splits)} images that can be decoded, where copies, "
        f"near-duplicates and images of one group count once. {remedy}"
    )
