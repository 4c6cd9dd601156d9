"""Images that are made up, to be split: what is known of each, without a file."""

import numpy as np
import pyarrow as pa

from pipelines.preparation.splits import assign_splits
from pipelines.sources.source import Source

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2}


class Images:
    """Images that are made up: ids `i0` on, each with a content and a look of its own unless something else is said."""

    def __init__(self, labels, splits=None, groups=None):
        self.ids = [f"i{index}" for index in range(len(labels))]
        self.labels, self.splits, self.groups = list(labels), splits or [None] * len(labels), groups
        self.digests = [f"digest {id_}" for id_ in self.ids]
        self.hashes = [look(index) for index in range(len(labels))]

    def pick(self, indices):
        """Return the images at these indices alone."""
        chosen = Images([])
        for name in ("ids", "labels", "splits", "digests", "hashes", "groups"):
            values = getattr(self, name)
            setattr(chosen, name, values and [values[index] for index in indices])
        return chosen

    def source(self):
        classes = [str(k) for k in range(max(self.labels) + 1)]
        return Source("made", classes, self.ids, np.array(self.labels), self.splits, lambda _: b"", self.groups)

    def assign(self, seed=0, former=None, **fractions):
        return assign_splits(
            self.source(), self.digests, self.hashes, **(FRACTIONS | fractions), seed=seed, former=former
        )

    def split(self, **arguments):
        return self.assign(**arguments)[0]

    def manifest(self, splits):
        groups = self.groups or [""] * len(self.ids)
        hashes = [hash_.hex() for hash_ in self.hashes]
        columns = {"id": self.ids, "split": splits, "group": groups, "sha256": self.digests, "perceptual_hash": hashes}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def look(index: int, *, changed: int = 0) -> bytes:
    """A hash far from that of each other index, with as many bits changed."""
    value = int.from_bytes(np.random.default_rng(index).bytes(32))
    return (value ^ ((1 << changed) - 1)).to_bytes(32)
