"""The manifest of the prepared data: its columns, and what follows from more than one of its rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.sources.source import SPLITS

CHANNELS = tuple(f"{statistic}_{channel}" for statistic in ("mean", "std") for channel in "rgb")
COLUMNS = {
    "id": "str",
    "split": "str",
    "label": "int64",
    "group": "str",
    "width": "int32",
    "height": "int32",
    "mode": "str",
    "format": "str",
    "bytes": "int64",
    "sha256": "str",
    "perceptual_hash": "str",
    "near_duplicate_of": "str",
    "decode_error": "str",
    **dict.fromkeys(CHANNELS, "float32"),
}
MASK_COLUMNS = {"mask_error": "str", "void_share": "float32", "mask_counts": "list<int64>"}
NULLABLE = ("float32", "list<int64>")  # what is not known of an image that cannot be decoded

# The extensions that a file of each format may have. With another one of these, it is called what it is not.
EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "MPO": (".mpo", ".jpg", ".jpeg", ".jpe", ".jfif"),  # what many phones write: a JPEG file with more images behind it
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}


def expected_columns(*, is_segmentation: bool) -> dict[str, str]:
    """The columns of the manifest, and their types."""
    return COLUMNS | MASK_COLUMNS if is_segmentation else COLUMNS


def schema_table(manifest: pa.Table, *, is_segmentation: bool) -> pd.DataFrame:
    """One row per column of the contract: `id` (its name), `fault` (what is wrong with it, null where nothing is)."""
    expected = expected_columns(is_segmentation=is_segmentation)
    faults = [_column_fault(manifest, name, kind) for name, kind in expected.items()]
    return pd.DataFrame({"id": list(expected), "fault": pd.Series(faults, dtype=object)})


def _column_fault(manifest: pa.Table, name: str, kind: str) -> str | None:
    if name not in manifest.column_names:
        return f"missing, expected {kind}"
    column = manifest[name]
    if (found := _kind(column.type)) != kind:
        return f"{found}, expected {kind}"
    if column.null_count and kind not in NULLABLE:
        return f"{column.null_count:,} rows without a value"
    return None


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return f"list<{_kind(type_.value_type)}>"
    return {"string": "str", "large_string": "str", "float": "float32", "double": "float64"}.get(str(type_), str(type_))


def is_decodable(manifest: pa.Table) -> NDArray[np.bool_]:  # (N,)
    """Whether each image can be decoded."""
    return to_numpy(pc.equal(manifest["decode_error"], "")).astype(bool)


def image_table(manifest: pa.Table, previous: pa.Table | None = None) -> pd.DataFrame:
    """One row per image: what the expectations look at, with the columns that need more than one row or column.

    - `copy_of`: the id of the first image with the same bytes in the same split, null for that image itself;
    - `same_image_in_other_split`, `same_image_with_other_label`: the id of an image with the same bytes there;
    - `near_duplicate_in_other_split`: the id of an image of the same set there, for images without a copy there;
    - `near_duplicate_with_other_label`: the same for labels;
    - `group_in_other_split`: its group and the splits that have it, if there are more than one;
    - `split_now`: this and the split before, if the previous version has the same bytes and not in this split;
    - `other_format`: the format of a file whose extension says another;
    - `shorter_side`, `longer_side`, `aspect_ratio` (longer over shorter);
    - `largest_std`: the largest standard deviation of the three channels, 0 for an image of one color.

    All of these are null for images that cannot be decoded: they reach no model, and empty files are all alike.
    `split_now` is there where a previous version is.
    """
    decodable = is_decodable(manifest)
    kept = [name for name in ("id", "split", "label", "decode_error", *MASK_COLUMNS) if name in manifest.column_names]
    columns = {name: manifest[name].to_pandas() for name in kept if name != "mask_counts"}
    ids = manifest["id"].combine_chunks()
    twins = {name: _at(ids, rows).to_pandas() for name, rows in _twins(manifest, decodable).items()}
    words = {
        "group_in_other_split": _torn_groups(manifest, decodable),
        "other_format": _other_formats(manifest, decodable),
    }
    if previous is not None:
        words["split_now"] = _other_splits(manifest, decodable, previous)
    texts = {name: column.to_pandas() for name, column in words.items()}
    return pd.DataFrame(columns | twins | texts | _measures(manifest, decodable))


def _twins(manifest: pa.Table, decodable: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:  # each (N,), row or -1
    split, label = to_codes(manifest["split"]), to_numpy(manifest["label"])
    file = np.where(decodable, to_codes(manifest["sha256"]), -1)
    near = pc.if_else(pc.equal(manifest["near_duplicate_of"], ""), manifest["id"], manifest["near_duplicate_of"])
    near = np.where(decodable, to_codes(near), -1)
    file_in_split = np.where(decodable, file * (split.max(initial=0) + 1) + split, -1)
    in_other_split, with_other_label = find_twins(file, split), find_twins(file, label)
    return {  # of the near-duplicates, those that are no copies: these are told of already
        "copy_of": find_earlier(file_in_split),
        "same_image_in_other_split": in_other_split,
        "near_duplicate_in_other_split": np.where(in_other_split < 0, find_twins(near, split), -1),
        "same_image_with_other_label": with_other_label,
        "near_duplicate_with_other_label": np.where(with_other_label < 0, find_twins(near, label), -1),
    }


def _torn_groups(manifest: pa.Table, decodable: NDArray[np.bool_]) -> pa.Array:
    """Of images whose group is in several splits, the group and these, else null."""
    groups = manifest["group"].combine_chunks().dictionary_encode()
    names, group = groups.dictionary, np.asarray(groups.indices).astype(np.int64)
    is_in_group = decodable & to_numpy(pc.not_equal(manifest["group"], ""))
    has = [
        np.bincount(group[is_in_group & to_numpy(pc.equal(manifest["split"], split))], minlength=len(names)) > 0
        for split in SPLITS
    ]
    bits = range(len(SPLITS))
    sets = [", ".join(SPLITS[bit] for bit in bits if number >> bit & 1) for number in range(2 ** len(SPLITS))]
    words = pa.array(sets).take(pa.array(sum(part.astype(np.int64) << bit for bit, part in enumerate(has))))
    is_torn = is_in_group & (np.sum(has, axis=0) > 1)[group]
    return _at(pc.binary_join_element_wise(names, words, ": "), np.where(is_torn, group, -1))


def _other_splits(manifest: pa.Table, decodable: NDArray[np.bool_], previous: pa.Table) -> pa.Array:
    """Of images that the previous version has in other splits alone: the split now and the one before, else null."""
    file, split = (manifest[name].combine_chunks() for name in ("sha256", "split"))
    file_before, split_before = (previous[name].combine_chunks() for name in ("sha256", "split"))
    before = split_before.take(pc.index_in(file, value_set=file_before))
    has_moved = pc.and_(pc.fill_null(pc.not_equal(split, before), False), pa.array(decodable))
    pairs = (pc.binary_join_element_wise(*pair, " ") for pair in ((file, split), (file_before, split_before)))
    has_moved = pc.and_not(has_moved, pc.is_in(next(pairs), value_set=next(pairs)))  # a copy of it was there
    return pc.if_else(has_moved, pc.binary_join_element_wise(split, before, ", before "), None)


def count_changes(previous: pa.Table, present: pa.Table) -> tuple[int, int]:
    """How many images were added and how many removed, by their bytes; a copy counts for itself."""
    files = pa.chunked_array([*previous["sha256"].chunks, *present["sha256"].chunks], pa.string())
    change = np.repeat([-1, 1], [len(previous), len(present)])
    by_file = pa.table({"sha256": files, "change": change}).group_by("sha256").aggregate([("change", "sum")])
    changes = to_numpy(by_file["change_sum"])
    return int(changes[changes > 0].sum()), int(-changes[changes < 0].sum())


def _measures(manifest: pa.Table, decodable: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:  # each (N,)
    """In float64: Great Expectations goes through any other number one by one in Python."""

    def read(name: str) -> NDArray[np.float64]:
        return np.where(decodable, to_numpy(manifest[name]), np.nan).astype(np.float64)

    sides = np.stack([read("width"), read("height")])
    shorter, longer = sides.min(axis=0), sides.max(axis=0)
    measures = {
        "shorter_side": shorter,
        "longer_side": longer,
        "aspect_ratio": np.divide(longer, shorter, out=np.full_like(longer, np.nan), where=shorter != 0),
        "largest_std": np.max([read(f"std_{channel}") for channel in "rgb"], axis=0),
    }
    return measures | ({"void_share": read("void_share")} if "void_share" in manifest.column_names else {})


def _other_formats(manifest: pa.Table, decodable: NDArray[np.bool_]) -> pa.Array:
    """The format of each file whose extension is that of another one, else null."""
    known = {extension for extensions in EXTENSIONS.values() for extension in extensions}
    ends = pc.extract_regex(manifest["id"].combine_chunks(), r"(?P<extension>\.[^./]{1,5})$").field("extension")
    extensions, formats = pc.utf8_lower(ends).dictionary_encode(), manifest["format"].combine_chunks()
    fits = pa.array(np.ones(len(formats), dtype=bool))
    for extension in set(extensions.dictionary.to_pylist()) & known:
        its_formats = [name for name, allowed in EXTENSIONS.items() if extension in allowed]
        index = extensions.dictionary.index(extension)
        called = pc.fill_null(pc.equal(extensions.indices, index), False)
        fits = pc.and_not(fits, pc.and_not(called, pc.is_in(formats, pa.array(its_formats))))
    return pc.if_else(pc.or_(fits, pa.array(~decodable)), None, formats)


def to_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:  # (N,)
    """Number the distinct values of a column, from 0."""
    return to_numpy(column.combine_chunks().dictionary_encode().indices).astype(np.int64)


def to_numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:  # (N,)
    """The values of a column; null is NaN."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(flat.to_numpy(zero_copy_only=False))


def find_earlier(keys: NDArray[np.int64]) -> NDArray[np.int64]:  # (N,) -> (N,)
    """For each row the first one with its key, -1 where it is that itself or its key is -1."""
    first = _first_rows(keys)[keys]
    return np.where((keys < 0) | (first == np.arange(len(keys))), -1, first)


def find_twins(keys: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.int64]:  # (N,), (N,) -> (N,)
    """For each row the first one with its key but another value, -1 where there is none or its key is -1."""
    if not len(keys):
        return keys
    first = _first_rows(keys)[keys]
    is_other = (values != values[first]) & (keys >= 0)
    first_other = _first_rows(np.where(is_other, keys, -1), num_keys=keys.max() + 1)[keys]
    return np.where(keys < 0, -1, np.where(is_other, first, first_other))


def _first_rows(keys: NDArray[np.int64], *, num_keys: int | None = None) -> NDArray[np.int64]:  # (N,) -> (K + 1,)
    """The first row of each key, -1 where there is none; the last entry is that of the key -1."""
    first = np.full((keys.max(initial=-1) + 1 if num_keys is None else num_keys) + 1, -1)
    rows = np.flatnonzero(keys >= 0)[::-1]  # of several values for one entry, the last is kept
    first[keys[rows]] = rows
    return first


def _at(values: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    return values.take(pa.array(rows, mask=rows < 0))
