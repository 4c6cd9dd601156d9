"""Which image is for training, validation, or test."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence

from pipelines.sources import Source


def assign_splits(
    source: Source, digests: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Return the split of each item. What the source gives is kept; a split it lacks is taken from training images.

    An image's place depends on its content and the seed alone, so adding images moves none, and copies of an image
    stay together. Only where a class would have no image in a split, its nearest one is moved there.

    Args:
        source: Items with or without a split.
        digests: A hash of each item's content.
        val_fraction: Of the training images, where the source has no validation split.
        test_fraction: Of the training images, where the source has no test split.
        seed: Another seed gives another split.

    Raises:
        ValueError: A class has fewer images than there are splits to fill.
    """
    splits = [item.split or "train" for item in source.items]
    fractions = {"test": test_fraction, "val": val_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in splits}
    by_class: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for index, (item, digest) in enumerate(zip(source.items, digests, strict=True)):
        if splits[index] == "train":
            by_class[item.label].append((_place(digest, seed), index))
    _check_sizes(source, {label: len(members) for label, members in by_class.items()}, missing)
    for members in by_class.values():
        for split, index in _divide(sorted(members), missing):
            splits[index] = split
    return splits


def _place(digest: str, seed: int) -> float:
    """A number in [0, 1) that looks random."""
    return int(hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()[:13], 16) / 16**13


def _divide(members: list[tuple[float, int]], missing: dict[str, float]) -> list[tuple[str, int]]:
    """Give each missing split the members below its threshold, but at least one, and leave one for training."""
    divided: list[tuple[str, int]] = []
    start, threshold = 0, 0.0
    for position, (split, fraction) in enumerate(missing.items()):
        threshold += fraction
        below = sum(place < threshold for place, _ in members)
        later = len(missing) - position  # images still needed by the splits after this one, and by training
        end = min(max(below, start + 1), len(members) - later)
        divided += [(split, index) for _, index in members[start:end]]
        start = end
    return divided


def _check_sizes(source: Source, sizes: dict[int, int], made: Collection[str]) -> None:
    needed = len(made) + 1
    small = {name: sizes.get(label, 0) for label, name in enumerate(source.classes) if sizes.get(label, 0) < needed}
    if small:
        listed = ", ".join(f"{name!r} has {size}" for name, size in list(small.items())[:10])
        raise ValueError(
            f"{len(small)} class(es) of {source.name} have too few images: {listed}; expected at least {needed}, one "
            f"for each of {', '.join(['train', *made])}. Add images, or remove the class"
        )
