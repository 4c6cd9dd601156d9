"""The manifest of the prepared data: its columns, and what follows from more than one of its rows."""

import pandas as pd

from pipelines.sources import SPLITS

COLUMNS = {
    "id": "str",
    "split": "str",
    "label": "int64",
    "width": "int32",
    "height": "int32",
    "mode": "str",
    "bytes": "int64",
    "sha256": "str",
    "perceptual_hash": "str",
    "decode_error": "str",
    **{f"{statistic}_{channel}": "float32" for statistic in ("mean", "std") for channel in "rgb"},
}


def add_twins(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with the columns that need more than one row or column of it; null where all is well.

    - `copy_of`: the id of the first image with the same bytes in the same split, null for that image itself;
    - `same_image_in_other_split`, `same_image_with_other_label`: the id of an image with the same bytes there;
    - `largest_std`: the largest standard deviation of the three channels, 0 for an image of one color.

    Images that cannot be decoded have no twins: they reach no model, and empty files are all alike.
    """
    decodable = manifest[manifest["decode_error"] == ""]
    first = decodable.groupby(["sha256", "split"])["id"].transform("first")
    twins = {
        "copy_of": first[first != decodable["id"]],
        "same_image_in_other_split": _twin(decodable, differs_in="split"),
        "same_image_with_other_label": _twin(decodable, differs_in="label"),
    }
    derived = {name: twin.astype(object).reindex(manifest.index) for name, twin in twins.items()}
    return manifest.assign(**derived, largest_std=manifest[["std_r", "std_g", "std_b"]].max(axis=1))


def _twin(images: pd.DataFrame, *, differs_in: str) -> pd.Series:
    """For each image the id of the first one with the same bytes but another value in a column, else null."""
    first = images.groupby("sha256")[["id", differs_in]].transform("first")
    is_other = images[differs_in] != first[differs_in]
    first_other = images[is_other].drop_duplicates("sha256").set_index("sha256")["id"]
    return first["id"].where(is_other, images["sha256"].map(first_other))


def count_classes(manifest: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """One row per split and class: `id` (split/class), `split`, `class`, `images` (decodable ones), `times_rarer`.

    `times_rarer` is the count of the largest class over the count of this one, in train and for classes with images.
    """
    every = pd.MultiIndex.from_product([SPLITS, range(len(classes))], names=["split", "label"])
    decodable = manifest[manifest["decode_error"] == ""]
    table = decodable.groupby(["split", "label"]).size().reindex(every, fill_value=0).rename("images").reset_index()
    table["class"] = [classes[label] for label in table.pop("label")]
    in_train = table["images"].where((table["split"] == "train") & (table["images"] > 0))
    return table.assign(id=table["split"] + "/" + table["class"], times_rarer=in_train.max() / in_train)
