"""The map of the embeddings: neighbors stay neighbors, the same twice, and degenerate embeddings do no harm."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pipelines.reporting.embedding_map import MIN_IMAGES, SIDE, class_colors, map_points, tsne

LABELS = np.repeat([0, 1, 2], 20)


def clusters(spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (10 * np.eye(3, 8)[LABELS] + spread * rng.normal(size=(60, 8))).astype(np.float32)


def points_of(embeddings: dict[str, np.ndarray]) -> dict:
    return map_points(embeddings, [f"image {i}" for i in range(60)], LABELS.tolist(), ["a", "b", "c"], seed=0)


def test_classes_that_are_apart_stay_apart_on_both_maps() -> None:
    maps = points_of({"pretrain": clusters(1.0), "grpo_rm": clusters(0.3)})
    for points in maps.values():
        places = np.array([(point.x, point.y) for point in points])
        assert KNeighborsClassifier(5).fit(places[::2], LABELS[::2]).score(places[1::2], LABELS[1::2]) == 1.0
        assert places.min() >= 0 and places.max() <= SIDE
        assert points[21].text == "image 21: b" and points[21].label == 1


def test_a_class_stays_about_where_it_was() -> None:
    maps = points_of({"pretrain": clusters(1.0), "grpo_rm": clusters(1.0)})
    before, after = (np.array([(p.x, p.y) for p in maps[name]]) for name in ("pretrain", "grpo_rm"))
    centers = [np.array([places[label == LABELS].mean(axis=0) for label in range(3)]) for places in (before, after)]
    nearest = np.linalg.norm(centers[0][:, None] - centers[1][None], axis=2).argmin(axis=1)
    assert nearest.tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_map() -> None:
    assert np.array_equal(tsne(clusters(1.0), seed=3), tsne(clusters(1.0), seed=3))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_encoder_is_one_spot_and_no_error(value: float) -> None:
    collapsed = np.full((60, 8), value, np.float32)
    maps = points_of({"pretrain": collapsed, "grpo_rm": clusters(1.0)})
    assert {(point.x, point.y) for point in maps["pretrain"]} == {(SIDE / 2, SIDE / 2)}
    assert len({(point.x, point.y) for point in maps["grpo_rm"]}) > 50


def test_few_images() -> None:
    few = clusters(1.0)[:: 60 // MIN_IMAGES][:MIN_IMAGES]
    assert np.isfinite(tsne(few, seed=0)).all()
    assert map_points({"pretrain": few[:4]}, list("abcd"), [0] * 4, ["a"], seed=0) == {}


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_every_class_has_a_color_of_its_own(num_classes: int) -> None:
    assert len(set(class_colors(num_classes))) == num_classes
