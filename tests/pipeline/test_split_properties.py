"""Whatever the images, no split tears apart what belongs together, and known images never move."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_images import Images, look

from pipelines.sources.source import SPLITS


@st.composite
def any_images(draw):
    """Some hundred images of a few classes, with copies, near-duplicates, groups and files that are broken."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(80, 140))
    has_groups, has_test = draw(st.booleans()), draw(st.booleans())
    groups = [f"g{k}" if k < 30 else "" for k in rng.integers(0, 60, count)] if has_groups else None
    splits = [["train", "test", None][k] for k in rng.choice(3, count, p=[0.5, 0.2, 0.3])] if has_test else None
    images = Images(rng.integers(0, 2, count).tolist(), splits, groups)
    for index in rng.choice(count, count // 4, replace=False).tolist():
        other = int(rng.integers(0, count))
        images.digests[index] = [images.digests[index], images.digests[other]][index % 2]
        images.hashes[index] = [look(other, changed=int(rng.integers(1, 25))), images.hashes[other]][index % 2]
    images.hashes[0] = b""
    return images


def units_of(images: Images) -> list[list[int]]:
    """One pair after the other."""
    units = [[index] for index in range(len(images.ids))]

    def belong_together(i: int, j: int) -> bool:
        one, other = images.hashes[i], images.hashes[j]
        is_near = any(one) and any(other) and (int.from_bytes(one) ^ int.from_bytes(other)).bit_count() <= 24
        is_grouped = images.groups and images.groups[i] and images.groups[i] == images.groups[j]
        return bool(is_near or is_grouped or images.digests[i] == images.digests[j])

    for j in range(len(images.ids)):
        linked = [unit for unit in units if any(i < j and belong_together(i, j) for i in unit) or j in unit]
        units = [unit for unit in units if unit not in linked] + [sorted(index for unit in linked for index in unit)]
    return units


def class_counts(images: Images, splits: list[str]) -> Counter:
    return Counter((images.labels[i], split) for i, split in enumerate(splits) if images.hashes[i])


def made_splits(images: Images) -> tuple[str, ...]:
    return ("train", "val") if "test" in images.splits else SPLITS


@settings(max_examples=30, deadline=None)
@given(any_images(), st.integers(0, 3))
def test_no_unit_is_torn_and_no_class_is_missing(images, seed):
    splits = images.split(seed=seed)
    assert all(split == "test" for split, said in zip(splits, images.splits, strict=True) if said == "test")
    for unit in units_of(images):
        where = {splits[index] for index in unit}
        if all(images.splits[index] != "test" for index in unit):
            assert len(where) == 1
        else:  # the source itself may have torn it apart, but nothing made is in it
            assert where <= {"train", "test"}
    counts = class_counts(images, splits)
    assert all(counts[label, split] for label in (0, 1) for split in made_splits(images))


@settings(max_examples=20, deadline=None)
@given(any_images(), st.floats(0.6, 1))
def test_known_images_never_move(images, share):
    known = images.pick(range(int(len(images.ids) * share)))
    splits = known.split()
    assert images.split(former=known.manifest(splits))[: len(splits)] == splits
    all_splits = images.split()
    former, kept = images.manifest(all_splits), all_splits[: len(splits)]
    counts = class_counts(known, kept)
    if all(counts[label, split] for label in (0, 1) for split in made_splits(known)):
        assert known.split(former=former) == kept
    else:  # a split has lost the last image of a class
        with pytest.raises(ValueError, match="delete data/prepared to make all splits anew"):
            known.split(former=former)
