"""A further labeled set for tests alone: the same classes in another domain, such as sketches of what was photographed.

It is prepared beside the data that models are trained on and not among them: what changes here trains nothing anew.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from grpo_rm.config_errors import nearest
from pipelines.preparation import shard_files
from pipelines.preparation.dataset_summary import check_readable, is_usable
from pipelines.preparation.description import describe_rows
from pipelines.preparation.near_duplicates import NO_HASH, find_near_duplicates
from pipelines.preparation.replacement import sync
from pipelines.preparation.workers import map_in_processes
from pipelines.sources.source import Source

CHUNK = 128  # images that a process describes at a time
SPLIT = "test"


def prepare_extra_set(source: Source, output: Path, *, prepared: Path, origin: str, shorter_side: int | None) -> None:
    """Write test shards, a manifest and extra.json into `output`, a new folder; `read_split` reads its "test".

    All images are for the test, also those that the source gives another split. The manifest has `copy_of` and
    `near_duplicate_of`: the id of a training or validation image that each one is, or is nearly ("" where there is
    none). Such an image stays in the shards, and models are not measured on it.

    Args:
        source: Its classes are some of those of the training data, by name.
        output: A folder that is not there yet, in one that is replaced as a whole.
        prepared: The training data, as stage prepare writes them.
        origin: What the source was opened by.
        shorter_side: In pixels, that larger images are resized to.

    Raises:
        ValueError: It has a class that the training data have not, or no image that can be decoded; or it has masks.
    """
    classes = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))["classes"]
    source = with_classes(source, classes)
    described = _describe(source, shorter_side)
    check_readable(source, described["decode_error"])
    known = pq.read_table(prepared / "manifest.parquet", columns=["id", "split", "sha256", "perceptual_hash"])
    leaks = find_leaks(described, known.filter(pc.not_equal(known["split"], "test")))
    manifest = pa.table({"id": source.ids, "label": source.labels, **_columns(described), **leaks})
    (output / SPLIT).mkdir(parents=True)
    _write_shards(source, described, manifest, output, shorter_side)
    pq.write_table(manifest, output / "manifest.parquet")
    summary = json.dumps(summarize_extra_set(source, manifest, origin), indent=2) + "\n"
    (output / "extra.json").write_text(summary, encoding="utf-8")
    for path in output.glob("*.*"):
        sync(path)


def with_classes(source: Source, classes: list[str]) -> Source:
    """Return the source with the labels of the training data. Classes are matched by name; it may lack some.

    Raises:
        ValueError: It has a class of another name, or masks in place of classes.
    """
    if source.read_mask is not None:
        raise ValueError(f"the extra set {source.name} has masks; expected images with classes")
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        listed = ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise ValueError(
            f"the extra set {source.name} has {len(unknown)} class(es) that the training data have not: {listed}; "
            f"{nearest(unknown[0], classes)} Rename them, or take them out"
        )
    places = np.array([classes.index(name) for name in source.classes], dtype=np.int64)
    return replace(source, classes=classes, labels=places[source.labels])


def _describe(source: Source, shorter_side: int | None) -> pa.Table:
    work = functools.partial(describe_rows, source, shorter_side=shorter_side, void_index=None)
    count = len(source.ids)
    tasks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return pa.concat_tables(map_in_processes(work, tasks))


def _columns(described: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return what the manifest says of each file; the others are of shards."""
    return {name: described[name] for name in ("sha256", "perceptual_hash", "decode_error")}


def find_leaks(described: pa.Table, known: pa.Table) -> dict[str, list[str]]:
    """Return for each image the known one that it is (`copy_of`) or nearly is (`near_duplicate_of`), or "".

    Args:
        described: Images with `sha256` and `perceptual_hash`.
        known: The same of what models have seen, with their `id`: training images, and validation images, by which
            epoch and temperature are chosen.
    """
    ids, digests = known["id"].to_pylist(), described["sha256"].to_pylist()
    owners = dict(zip(known["sha256"].to_pylist(), ids, strict=True))
    hashes = np.concatenate([_hashes(known), _hashes(described)])
    firsts = find_near_duplicates(hashes)[len(ids) :].tolist()
    near = [ids[first] if first < len(ids) else "" for first in firsts]  # known images come first
    copies = [owners.get(digest, "") if digest else "" for digest in digests]
    return {
        "copy_of": copies,
        "near_duplicate_of": ["" if copy else other for copy, other in zip(copies, near, strict=True)],
    }


def _hashes(images: pa.Table) -> NDArray[np.uint64]:
    texts = images["perceptual_hash"].to_pylist()
    return np.frombuffer(b"".join(bytes.fromhex(text) or NO_HASH for text in texts), dtype=np.uint64).reshape(-1, 4)


def _write_shards(
    source: Source, described: pa.Table, manifest: pa.Table, output: Path, shorter_side: int | None
) -> None:
    shards = shard_files.plan(
        source,
        [SPLIT] * len(source.ids),
        described["digest"].to_pylist(),
        described["stored_bytes"].to_numpy(),
        is_good=is_usable(manifest),
        former={},
    )
    work = functools.partial(shard_files.provide, source, output=output, shorter_side=shorter_side)
    for _ in map_in_processes(work, shards):
        pass


def summarize_extra_set(source: Source, manifest: pa.Table, origin: str) -> dict[str, Any]:
    """Return extra.json: images per class that are measured, classes without any, and how many images are left out."""
    good = manifest.filter(is_usable(manifest))
    copies, near = (pc.not_equal(good[name], "").to_numpy() for name in ("copy_of", "near_duplicate_of"))
    counts = np.bincount(good["label"].to_numpy()[~(copies | near)], minlength=len(source.classes)).tolist()
    counted = dict(zip(source.classes, counts, strict=True))
    return {
        "name": source.name,
        "source": origin,
        "classes": source.classes,
        "counts": counted,
        "missing_classes": [name for name, count in counted.items() if not count],
        "undecodable": len(manifest) - len(good),
        "copies": int(copies.sum()),
        "near_duplicates": int(near.sum()),
    }
