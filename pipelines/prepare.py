"""Stage prepare: any source to Parquet shards, a manifest with a row per image, and dataset.json.

Preparing again keeps the split of each image that is still there, and the shards in which nothing changed.
"""

import contextlib
import errno
import functools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from grpo_rm.config import load_config
from pipelines.preparation import shard_files
from pipelines.preparation.dataset_summary import check_readable, is_usable, print_summary, summarize
from pipelines.preparation.description import IMAGE_COLUMNS, MASK_COLUMNS, describe_rows
from pipelines.preparation.replacement import replacing, sync
from pipelines.preparation.shard_files import ChangedFileError, PlannedShard
from pipelines.preparation.splits import FORMER, assign_splits
from pipelines.preparation.workers import LostProcessError, map_in_processes
from pipelines.sources.kinds import open_source
from pipelines.sources.source import SPLITS, Source
from pipelines.stage import run_stage

Task = TypeVar("Task")
Result = TypeVar("Result")

CHUNK = 128  # images that a process describes at a time
ROW_BYTES, MANIFEST_ROW_BYTES = 200, 400  # of a shard beside its files, and of the manifest: about, and rather more
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LEFT_OUT_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])


def prepare(
    source: Source,
    output: Path,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    origin: str,
    shorter_side: int | None = None,
    void_index: int | None = None,
) -> None:
    """Write the prepared data. `output` is replaced as a whole when all is written.

    Args:
        source: Images and labels, or masks.
        output: A folder; what is there is the earlier version of the data.
        val_fraction: As in `assign_splits`.
        test_fraction: As in `assign_splits`.
        seed: As in `assign_splits`.
        origin: What the source was opened by.
        shorter_side: In pixels, that larger images are resized to.
        void_index: The value in masks that is no class.

    Raises:
        ValueError: There is one class only, or a class has too few images; or a file changed meanwhile.
        OSError: A file cannot be read, or the disk is full.
    """
    if len(source.classes) < 2:
        raise ValueError(f"{source.name} has one class, {source.classes[0]!r}; expected at least 2")
    settings = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    with replacing(output) as partial:
        described = describe(source, shorter_side=shorter_side, void_index=void_index)
        check_readable(source, described["decode_error"])
        former = read_former(output, origin=origin, split=settings)
        digests, hashes = described["sha256"].to_pylist(), _to_bytes(described["perceptual_hash"])
        splits, firsts = assign_splits(
            source, digests, hashes, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, former=former
        )
        del digests, hashes, former
        manifest = to_manifest(source, described, splits, firsts)
        summary = summarize(source, manifest, origin=origin, split=settings, void_index=void_index)
        shards = shard_files.plan(
            source,
            splits,
            described["digest"].to_pylist(),
            described["stored_bytes"].to_numpy(),
            is_good=is_usable(manifest),
            former=shard_files.find_shards(output),
        )
        kept = write_all(source, partial, shards, manifest, summary, shorter_side=shorter_side)
    print_summary(source, manifest, output)
    print(f"shards  {len(shards) - kept} written, {kept} kept")


def describe(source: Source, *, shorter_side: int | None, void_index: int | None) -> pa.Table:
    """Return a row for each image: the columns of `description`."""
    count = len(source.ids)
    work = functools.partial(describe_rows, source, shorter_side=shorter_side, void_index=void_index)
    tasks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return pa.concat_tables(_map(source, work, tasks, lambda table: len(table), "read", count))


def _map(
    source: Source,
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    count_images: Callable[[Result], int],
    title: str,
    total: int,
) -> list[Result]:
    """Work in all processes, behind a progress bar."""
    results = []
    try:
        with tqdm(total=total, desc=title, unit=" images", unit_scale=True, disable=None) as bar:
            for result in map_in_processes(work, tasks):
                results.append(result)
                bar.update(count_images(result))
    except LostProcessError as error:
        names = ", ".join(repr(source.ids[place]) for place in error.places) or "none"
        raise ValueError(
            f"a process that read images crashed or was killed, at one of: {names}. If it was killed because memory "
            "ran out, free some; else remove the file that cannot be read"
        ) from None
    except ChangedFileError as error:
        raise ValueError(str(error)) from None
    return results


def read_former(output: Path, *, origin: str, split: dict[str, float]) -> pa.Table | None:
    """Return the manifest of the earlier version of the data; None where there is none, or its splits are others."""
    try:
        summary = json.loads((output / "dataset.json").read_text(encoding="utf-8"))
        former = {"data.source": summary["source"], **summary["split"]}
        if changed := [name for name, value in {"data.source": origin, **split}.items() if former.get(name) != value]:
            told = ", ".join(f"{name} was {former.get(name)}" for name in changed)
            print(f"splits are made anew, as the earlier data had other settings: {told}")
            return None
        return pq.read_table(output / "manifest.parquet", columns=["id", *FORMER.names])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:  # of another version, or damaged; Arrow's are ValueErrors
        reason = str(error).partition("\n")[0]
        print(f"splits are made anew, as the earlier {output} cannot be read: {reason}")
        return None


def _to_bytes(hashes: pa.ChunkedArray) -> list[bytes]:
    return [bytes.fromhex(text) for chunk in hashes.chunks for text in chunk.to_pylist()]


def to_manifest(source: Source, described: pa.Table, splits: Sequence[str], firsts: Sequence[str]) -> pa.Table:
    """Return the manifest: what is known of each image."""
    given: dict[str, tuple[Any, pa.DataType]] = {
        "id": (source.ids, pa.string()),
        "split": (splits, pa.string()),
        "label": (source.labels, pa.int64()),
        "group": (source.groups if source.groups is not None else [""] * len(splits), pa.string()),
        "near_duplicate_of": (firsts, pa.string()),
    }
    names = [name for name, _ in [*IMAGE_COLUMNS, *(MASK_COLUMNS if source.read_mask else [])]]
    place = names.index("decode_error")
    order = ["id", "split", "label", "group", *names[:place], "near_duplicate_of", *names[place:]]
    return pa.table({name: pa.array(*given[name]) if name in given else described[name] for name in order})


def write_all(
    source: Source,
    partial: Path,
    shards: Sequence[PlannedShard],
    manifest: pa.Table,
    summary: dict[str, Any],
    *,
    shorter_side: int | None,
) -> int:
    """Write all files of the prepared data, and return how many shards are those of the earlier version.

    Raises:
        OSError: The disk has too little room; before anything is written, if that is known.
    """
    new = [shard for shard in shards if shard.former is None]
    needed = sum(shard.size + ROW_BYTES * len(shard.rows) for shard in new) + MANIFEST_ROW_BYTES * len(manifest)
    with _enough_room(partial, needed):
        for split in SPLITS:
            (partial / split).mkdir()
        work = functools.partial(shard_files.provide, source, output=partial, shorter_side=shorter_side)
        images = sum(len(shard.rows) for shard in shards)
        provided = _map(source, work, shards, lambda done: done.images, "write", images)
        left_out = {
            "id": [other.id for other in source.left_out],
            "reason": [other.reason for other in source.left_out],
        }
        pq.write_table(manifest, partial / "manifest.parquet")
        pq.write_table(pa.table(left_out, LEFT_OUT_SCHEMA), partial / "left_out.parquet")
        (partial / "dataset.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        for path in partial.glob("*.*"):
            sync(path)
    return sum(done.was_kept for done in provided)


@contextlib.contextmanager
def _enough_room(folder: Path, needed: int) -> Iterator[None]:
    free = shutil.disk_usage(folder).free
    numbers = f"{needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free. The earlier data are as they were"
    if free < needed:
        raise OSError(f"the disk of {folder.parent.parent} is too full: {numbers}")
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(f"the disk of {folder.parent.parent} is full: {numbers}") from error


def main() -> None:
    """Prepare the source named in params.yaml."""
    config = load_config()
    data = config.data
    source = open_source(data.source, task=config.task, void_index=data.void_index)
    prepare(
        source,
        Path("data/prepared"),
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=config.seed,
        origin=data.source,
        shorter_side=data.resize_on_prepare,
        void_index=data.void_index,
    )


if __name__ == "__main__":
    run_stage(main, description=__doc__)
