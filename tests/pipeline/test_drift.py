"""How far data moved: by hand, against SciPy, and as Great Expectations' expectations."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import CLASSES, limits, make_mask_rows, make_rows, to_left_out, to_manifest, with_broken, with_values

from pipelines.validation.class_counts import find_renamed
from pipelines.validation.drift import (
    channel_table,
    count_in_bins,
    kolmogorov_smirnov,
    label_table,
    population_stability_index,
)
from pipelines.validation.previous_data import PreviousData
from pipelines.validation.report import format_table

if TYPE_CHECKING:
    from pipelines.validation.result import ExpectationResult

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")
PETS = {"task": "classification", "name": "pets", "source": "folder:pets", "classes": CLASSES}
SAMPLES = st.lists(st.integers(-4, 4).map(lambda k: k / 4), min_size=3, max_size=40).map(np.array)


def test_population_stability_index_by_hand() -> None:
    # shares 0.5, 0.5 -> 0.25, 0.75: -0.25 ln(1/2) + 0.25 ln(3/2) = 0.25 ln 3
    assert population_stability_index(np.array([5, 5]), np.array([1, 3])) == pytest.approx(0.25 * np.log(3))
    # an empty bin counts as 1e-4
    expected = (1 - 0.5) * np.log(2) + (1e-4 - 0.5) * np.log(1e-4 / 0.5)
    assert population_stability_index(np.array([5, 5]), np.array([7, 0])) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_the_index_is_symmetric_positive_and_zero_for_equal_shares(pairs: list[tuple[int, int]]) -> None:
    previous, present = np.array(pairs).T
    index = population_stability_index(previous, present)

    assert index >= 0
    assert index == pytest.approx(population_stability_index(present, previous))
    assert population_stability_index(previous, 3 * previous) == pytest.approx(0)


def test_bins_are_the_deciles_of_the_previous_values() -> None:
    previous = np.arange(100.0)
    counts, moved = count_in_bins(previous, previous + 50)

    assert counts.tolist() == [10] * 10
    assert moved.tolist() == [0, 0, 0, 0, 0, 10, 10, 10, 10, 60]


def test_equal_deciles_are_one_edge() -> None:
    counts, moved = count_in_bins(np.zeros(20), np.array([0.0, 0.0, 0.5]))

    assert counts.tolist() == [20, 0]
    assert moved.tolist() == [2, 1]


def test_nothing_before_is_one_bin() -> None:
    counts, present = count_in_bins(np.empty(0), np.ones(3))
    assert (counts.tolist(), present.tolist()) == ([0], [3])


@settings(max_examples=50)
@given(SAMPLES, SAMPLES)
def test_kolmogorov_smirnov_is_that_of_scipy(previous: np.ndarray, present: np.ndarray) -> None:
    expected = scipy.stats.ks_2samp(previous, present, method="asymp").statistic
    assert kolmogorov_smirnov(previous, present) == pytest.approx(expected)


def test_kolmogorov_smirnov_of_little_or_nothing() -> None:
    nothing, some = np.empty(0), np.ones(2)
    assert (kolmogorov_smirnov(nothing, some), kolmogorov_smirnov(some, nothing)) == (1, 1)
    assert kolmogorov_smirnov(nothing, nothing) == 0
    assert kolmogorov_smirnov(some, some[:1]) == 0
    assert kolmogorov_smirnov(some, some[:1] + 1) == 1


def test_what_cannot_be_decoded_is_in_neither_version() -> None:
    previous, present = to_manifest(with_broken(["t0"])), to_manifest(with_broken(["t0", "t1", "v2"]))

    channels = channel_table(previous, present)
    labels = label_table(previous, CLASSES, present, ["cat", "cow"])

    assert channels["is_previous"].tolist() == [True] * 11 + [False] * 9
    assert channels.notna().all(axis=None)
    assert labels.values.tolist() == [["cat", 5, True], ["dog", 6, True], ["cat", 4, False], ["cow", 5, False]]


def test_in_segmentation_pixels_are_counted() -> None:
    rows = with_values(["t0"], make_mask_rows(), mask_error="larger than its image")

    labels = label_table(to_manifest(rows), CLASSES, to_manifest(make_mask_rows()), CLASSES)

    assert labels["amount"].tolist() == [11 * 600, 11 * 320, 12 * 600, 12 * 320]


def check(
    previous: pd.DataFrame, rows: pd.DataFrame, docs: Path, *, classes: list[str] | None = None, **changes: object
) -> "list[ExpectationResult]":
    from pipelines.validation.expectations.checks import validate_manifest

    found = validate_manifest(
        to_manifest(rows),
        PETS,
        limits(**changes),
        left_out=to_left_out({}),
        previous=PreviousData("abc.dir", "abc1234, 2026-11-20", classes or CLASSES, to_manifest(previous)),
        docs_directory=docs,
        read_thumbnails=lambda _: {},
    )
    return [result for result in found if not result.success]


@pytest.mark.filterwarnings("error")
def test_a_version_without_images_has_no_mean(tmp_path: Path) -> None:
    failed = check(with_broken(list(make_rows()["id"])), make_rows(), tmp_path, decodable={"min_share": 0})
    assert "KS of mean_r 1, at most 0.2 (mean unknown before, 0.25 now)" in [result.observed for result in failed]


def spread(rows: pd.DataFrame, start: float) -> pd.DataFrame:
    return rows.assign(mean_r=np.linspace(start, start + 0.1, len(rows)))


def test_the_same_data_has_not_drifted(tmp_path: Path) -> None:
    assert check(spread(make_rows(), 0.2), spread(make_rows(), 0.2), tmp_path) == []


def test_a_channel_that_moved_is_named_with_both_distances(tmp_path: Path) -> None:
    failed = check(spread(make_rows(), 0.2), spread(make_rows(), 0.8), tmp_path)

    # all values are above the ninth decile: two of twelve were
    counts = np.array([2, 1, 1, 1, 1, 1, 1, 1, 1, 2]), np.array([0] * 9 + [12])
    index = population_stability_index(*counts)
    means = " (mean 0.25 before, 0.85 now)"
    words = [f"PSI of mean_r {round(index, 4):g}, at most 0.2{means}", f"KS of mean_r 1, at most 0.2{means}"]
    assert [(result.column, result.severity, result.name, result.observed) for result in failed] == [
        ("mean_r", "warning", "expect_column_psi_to_be_less_than", words[0]),
        ("mean_r", "warning", "expect_column_ks_to_be_less_than", words[1]),
    ]
    assert {(result.unexpected_count, result.element_count, *result.samples) for result in failed} == {(0, 0)}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(page.count(line) == format_table(failed, PETS, num_rows=12).count(line) == 1 for line in words)
    assert "Kolmogorov-Smirnov statistic of at most 0.2" in page


def test_thresholds_are_those_of_the_parameters(tmp_path: Path) -> None:
    # two of twelve values have crossed over all others: a KS statistic of 2/12
    moved = spread(make_rows(), 0.2)
    moved.loc[:1, "mean_r"] = 0.9

    drift = {"max_psi": 100, "max_ks": 0.16, "severity": "critical"}
    (failed,) = check(spread(make_rows(), 0.2), moved, tmp_path, drift=drift)

    assert (failed.severity, failed.observed) == (
        "critical",
        "KS of mean_r 0.1667, at most 0.16 (mean 0.25 before, 0.366 now)",
    )
    assert check(spread(make_rows(), 0.2), moved, tmp_path, drift={"max_psi": 100, "max_ks": 0.1667}) == []


def test_shares_of_classes_and_their_names(tmp_path: Path) -> None:
    previous = make_rows().query("label == 1 or id == 't0'")  # 1 cat and 6 foxes; now 6 cats and 6 dogs

    names, labels = check(previous, make_rows(), tmp_path, classes=["cat", "<fox>"])

    counts = np.array([1, 6, 0]), np.array([6, 0, 6])
    assert labels.observed == f"PSI of class {round(population_stability_index(*counts), 4):g}, at most 0.2"
    assert labels.samples == [
        ("<fox>", "85.7 % before, 0 % now"),
        ("dog", "0 % before, 50 % now"),
        ("cat", "14.3 % before, 50 % now"),
    ]
    assert names.samples == [
        ("<fox>", "vanished: <fox> is called dog now?"),
        ("dog", "appeared: <fox> is called dog now?"),
    ]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "85.7 % before, 0 % now" in page
    assert "&lt;fox&gt;" in page
    assert "<fox>" not in page


def changes(previous: pd.DataFrame, before: list[str], rows: pd.DataFrame, now: list[str]) -> dict[str, str]:
    return find_renamed(to_manifest(previous), before, to_manifest(rows), now)


def test_a_class_that_was_renamed_is_known_by_most_of_its_images() -> None:
    before, now = ["cat", "dog"], ["cat", "fox"]
    rows = with_values(["t1", "v1"], make_rows(), sha256="new")  # of the six dogs, four are foxes
    assert changes(make_rows(), before, rows, now) == {"dog": "fox"}

    half = with_values(["t3"], rows, sha256="new")
    assert changes(make_rows(), before, half, now) == {}
    relabeled = with_values(["t1", "t3", "v1"], make_rows(), label=0)
    assert changes(make_rows(), before, relabeled, now) == {}
    assert changes(make_rows(), before, make_rows(), before) == {}
    assert changes(make_rows(), ["cat", "dog", "emu"], make_rows(), before) == {}  # none is new
    assert changes(make_rows(), ["cat", "dog", "emu"], make_rows(), ["cat", "dog", "fox"]) == {}  # it had no images
    assert changes(make_rows(), before, make_rows(), ["dog", "cow"]) == {}  # dogs are called cow; cats are dogs
