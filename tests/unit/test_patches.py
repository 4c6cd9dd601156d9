"""Places of dense embeddings: which are taken, what is kept of them, and how images are compared by them."""

import numpy as np
import pytest
import torch

from grpo_rm.evaluation.comparison import compare_metrics
from grpo_rm.inference import Predictions
from pipelines.patches import (
    PLACES,
    TRAIN_PLACES,
    choose_places,
    middle_window,
    patch_sums,
    places_per_image,
    sample_places,
    take_places,
)


def test_how_many_places():
    ids = [f"{row}.png" for row in range(30)]
    assert places_per_image(ids, "test", seed=0) == places_per_image(ids, "val", seed=3) == dict.fromkeys(range(30), 10)
    assert places_per_image(ids, "train", seed=0) == dict.fromkeys(range(30), TRAIN_PLACES // 30)
    many = [f"{row}.png" for row in range(TRAIN_PLACES + 500)]
    chosen = places_per_image(many, "train", seed=0)
    assert len(chosen) == TRAIN_PLACES and set(chosen.values()) == {1}
    assert chosen.keys() != places_per_image(many, "train", seed=1).keys()


def test_valid_places_alone_each_once_and_the_same_again():
    targets = torch.tensor([[0, -1, 2], [-1, 1, 1]])
    assert choose_places(targets, "a", count=99, seed=0).tolist() == [0, 2, 4, 5]
    assert choose_places(torch.full((3, 3), -1), "a", count=5, seed=0).tolist() == []
    large = torch.zeros(20, 30)
    taken = choose_places(large, "a", count=PLACES, seed=0)
    assert len(set(taken.tolist())) == PLACES and taken.max() > 100
    np.testing.assert_array_equal(taken, choose_places(large, "a", count=PLACES, seed=0))
    for id_, seed in (("b", 0), ("a", 1)):
        assert taken.tolist() != choose_places(large, id_, count=PLACES, seed=seed).tolist()


def test_an_image_has_the_same_places_in_any_batch():
    targets = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, (3, 8, 9)))
    ids, counts = {4: "a", 7: "b", 5: "c"}, {4: 3, 7: 99}
    together = sample_places(targets, ids, counts, seed=2)
    assert [len(rows) for rows in together] == [3, int((targets[1] >= 0).sum()), 0]
    (alone,) = sample_places(targets[:1], {4: "a"}, counts, seed=2)
    np.testing.assert_array_equal(alone, together[0])


def test_what_is_taken_is_what_is_there():
    generator = torch.Generator().manual_seed(0)
    embedding, logits = (torch.randn(2, depth, 3, 4, generator=generator) for depth in (5, 3))
    targets = torch.arange(24).reshape(2, 3, 4) % 3
    said = take_places(embedding, logits, targets, [np.array([1, 6]), np.array([11])])
    for row, (image, y, x) in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3)]):
        np.testing.assert_array_equal(said.embeddings[row], embedding[image, :, y, x])
        np.testing.assert_array_equal(said.logits[row], logits[image, :, y, x])
        assert said.labels[row] == targets[image, y, x]
    assert said.labels.dtype == np.int64


@pytest.mark.parametrize(("window", "expected"), [(2, (slice(1, 3), slice(2, 4))), (5, (slice(0, 4), slice(0, 5)))])
def test_the_middle(window, expected):
    images = torch.arange(24).reshape(1, 4, 6)
    assert middle_window(images, window).equal(images[(slice(None), *expected)])


def test_where_no_side_is_larger_nothing_is_cut():
    images = torch.zeros(1, 4, 6, 3)
    assert middle_window(images, None) is images and middle_window(images, 6) is images


def places_of(num_images, seed, skill):
    """Places of three images each, whose embedding tells the class with some skill."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_images * 3)
    embeddings = rng.normal(size=(len(labels), 4)).astype(np.float32)
    embeddings[:, 0] += skill * (2 * labels - 1)
    return Predictions(embeddings, np.zeros((len(labels), 2), dtype=np.float32), labels)


def test_images_are_compared_and_not_places():
    rows = np.repeat(np.arange(1, 41), 3)  # the first image and the last have no place

    def measured(skill):
        outputs = {split: places_of(40, seed, skill) for seed, split in enumerate(("train", "val", "test"))}
        return outputs, patch_sums(outputs, rows, num_images=42, ks=[3], knn_temperature=0.07)

    (_, good), (outputs, poor) = measured(2.0), measured(0.1)
    assert set(good) == {"knn_top1_k3_t0.07", "linear_probe_top1"}
    compared = compare_metrics([good], [poor], num_resamples=300, seed=0)
    for name, interval in compared.items():
        assert interval.num_samples == 42 and interval.low > 0
        assert 0.4 < poor[name].value < good[name].value <= 1
    train, test = outputs["train"], outputs["test"]
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (train.embeddings, test.embeddings)]
    similar = unit[1] @ unit[0].T
    nearest = np.argsort(-similar, axis=1)[:, :3]
    weights = np.exp(np.take_along_axis(similar, nearest, axis=1) / 0.07)
    votes = (weights * (2 * train.labels[nearest] - 1)).sum(axis=1) > 0
    assert poor["knn_top1_k3_t0.07"].value == pytest.approx((votes == test.labels).mean())
