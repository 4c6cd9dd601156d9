"""A set of labeled images, as every kind of source gives it. Nothing is decoded and nothing is written here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LeftOut:
    """A file of a source that is not one of its images.

    Attributes:
        id: Its relative path, or what names it in the source.
        reason: Why, in words: what it is, and what to do where it was meant to be an image.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A named set of images. `ids`, `labels`, `splits` and `groups` have one entry per image, ordered by id.

    Attributes:
        name: Of the set; the registered model is called after it.
        classes: Names of the classes. Label k is `classes[k]`.
        ids: Unique and stable: a relative path, or a row number. Any text, with spaces and line breaks too.
        labels: (N,) int64; in segmentation -1.
        splits: "train", "val" or "test" where the source says so, else None.
        groups: What must not be torn apart by a split, such as the patient; None: each image is for itself.
        read: Gives the bytes of image file k. It is called in other processes (forked), and raises OSError.
        read_mask: The same of the masks, in segmentation.
        mask_values: In segmentation, the value that each class has in the masks.
        left_out: Files that are none of its images.
    """

    name: str
    classes: list[str]
    ids: Sequence[str]
    labels: NDArray[np.int64]
    splits: Sequence[str | None]
    read: Callable[[int], bytes]
    groups: Sequence[str] | None = None
    read_mask: Callable[[int], bytes] | None = None
    mask_values: list[int] | None = None
    left_out: list[LeftOut] = field(default_factory=list)


def make_source(
    name: str,
    classes: list[str],
    ids: Sequence[str],
    *,
    labels: NDArray[np.int64],
    splits: Sequence[str | None],
    read: Callable[[int], bytes],
    groups: Sequence[str] | None = None,
    read_mask: Callable[[int], bytes] | None = None,
    mask_values: list[int] | None = None,
    left_out: list[LeftOut] | None = None,
) -> Source:
    """Return a `Source` of images in any order. It has them by id.

    Raises:
        ValueError: Two images have the same id, or one has a label that is none of the classes.
    """
    if len(labels) and labels.max() >= len(classes):
        wrong = ids[int(labels.argmax())]
        raise ValueError(f"{wrong!r} of {name} has the label {labels.max()}, but there are {len(classes)} classes")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    for first, second in pairwise(order):
        if ids[first] == ids[second]:
            raise ValueError(f"two images of {name} have the id {ids[first]!r}, expected unique ones: rename one")
    return Source(
        name=name,
        classes=classes,
        ids=[ids[row] for row in order],
        labels=labels[order],
        splits=[splits[row] for row in order],
        read=lambda k: read(order[k]),
        groups=None if groups is None else [groups[row] for row in order],
        read_mask=None if read_mask is None else lambda k: read_mask(order[k]),
        mask_values=mask_values,
        left_out=sorted(left_out or [], key=lambda left: (left.id, left.reason)),
    )
