"""What validation looks at in each image that follows from more than one row, against a search of all pairs."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from manifests import make_rows, to_manifest, with_broken

from pipelines.sources.source import SPLITS
from pipelines.validation.manifest import EXTENSIONS, count_changes, find_earlier, find_twins, image_table


def test_twins_agree_with_a_search_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    rows = pd.concat([make_rows()] * 5, ignore_index=True)
    rows["id"] = [f"i{k:02}" for k in range(len(rows))]
    rows["sha256"] = rng.integers(0, 20, len(rows)).astype(str)
    rows["group"] = rng.choice(["", "a", "b", "c"], len(rows))
    rows["near_duplicate_of"] = ["" if k < 20 else f"i{k % 20:02}" for k in range(len(rows))]
    rows = with_broken(rows["id"][::7].tolist(), rows)
    good = [row for row in rows.to_dict("records") if row["decode_error"] == ""]

    def first(row: dict[str, Any], key: str, other: str) -> str | None:
        near = row["near_duplicate_of"] or row["id"]
        same = [
            one for one in good
            if ((one["near_duplicate_of"] or one["id"]) == near if key == "near" else one[key] == row[key] != "")
        ]  # fmt: skip
        return next((one["id"] for one in same if one[other] != row[other]), None)

    def torn(group: str) -> str | None:
        splits = {one["split"] for one in good if one["group"] == group != ""}
        return f"{group}: {', '.join(it for it in SPLITS if it in splits)}" if len(splits) > 1 else None

    found = image_table(to_manifest(rows)).set_index("id")
    for row in good:
        earlier = [one["id"] for one in good if (one["sha256"], one["split"]) == (row["sha256"], row["split"])]
        copy = first(row, "sha256", "split")
        expected = {
            "copy_of": None if earlier[0] == row["id"] else earlier[0],
            "same_image_in_other_split": copy,
            "same_image_with_other_label": first(row, "sha256", "label"),
            "near_duplicate_in_other_split": None if copy else first(row, "near", "split"),
            "near_duplicate_with_other_label": None if first(row, "sha256", "label") else first(row, "near", "label"),
            "group_in_other_split": torn(row["group"]),
        }
        actual = found.loc[row["id"]]
        assert {name: None if pd.isna(actual[name]) else actual[name] for name in expected} == expected
    broken = found.loc[rows["id"][rows["decode_error"] != ""], list(expected)]
    assert len(broken) > 5
    assert broken.isna().all(axis=None)


def random_splits(rng: np.random.Generator, files: int) -> pd.DataFrame:
    rows = pd.concat([make_rows()] * 4, ignore_index=True)
    rows["sha256"] = rng.integers(0, files, len(rows)).astype(str)
    return rows.assign(id=[f"i{k:02}" for k in range(len(rows))], split=rng.choice(SPLITS, len(rows)))


def test_changed_splits_agree_with_a_search_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    previous, rows = random_splits(rng, 40), random_splits(rng, 50)
    rows = with_broken(rows["id"][::7].tolist(), rows)
    expected: list[str | None] = []
    for row in rows.itertuples():
        before = previous["split"][previous["sha256"] == row.sha256].tolist()
        has_moved = before and row.split not in before and not row.decode_error
        expected.append(f"{row.split}, before {before[0]}" if has_moved else None)

    found = image_table(to_manifest(rows), to_manifest(previous))["split_now"]

    assert [None if pd.isna(value) else value for value in found] == expected
    assert 5 < sum(map(bool, expected)) < len(rows) - 5


def test_added_and_removed_images_are_counted_by_their_bytes() -> None:
    rng = np.random.default_rng(1)
    previous, rows = random_splits(rng, 40), random_splits(rng, 50).iloc[:30]
    before, now = Counter(previous["sha256"]), Counter(rows["sha256"])

    assert count_changes(to_manifest(previous), to_manifest(rows)) == ((now - before).total(), (before - now).total())
    assert count_changes(to_manifest(rows), to_manifest(rows.assign(id="renamed"))) == (0, 0)
    assert count_changes(to_manifest(rows), to_manifest(rows.iloc[:0])) == (0, 30)


def test_rows_without_a_key_have_no_twins() -> None:
    keys, values = np.array([-1, 0, -1, 0, 1]), np.array([0, 0, 1, 1, 0])
    assert find_twins(keys, values).tolist() == [-1, 3, -1, 1, -1]
    assert find_earlier(keys).tolist() == [-1, -1, -1, 1, -1]


def test_an_extension_is_wrong_only_where_it_is_that_of_another_format() -> None:
    formats = {
        "a.jpg": "JPEG", "b.JPEG": "JPEG", "phone.jpg": "MPO", "c.png": "JPEG", "no extension": "JPEG", "x.dat": "PNG",
        "v1.2": "PNG", "dir.png/file": "GIF", "w.webp": "WEBP", "g.tif": "PNG",
    }  # fmt: skip
    rows = pd.concat([make_rows().iloc[:1]] * len(formats), ignore_index=True)

    found = image_table(to_manifest(rows.assign(id=list(formats), format=list(formats.values()))))

    assert found.set_index("id")["other_format"].dropna().to_dict() == {"c.png": "JPEG", "g.tif": "PNG"}


def test_every_format_that_is_decoded_has_its_extensions() -> None:
    from grpo_rm.transforms import FORMATS

    assert set(FORMATS) <= set(EXTENSIONS)
