"""Retrieval against torchmetrics, against loops, on a golden, and its invariances."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from grpo_rm.evaluation.retrieval import retrieve


def example(seed, num_images=60, dimensions=8, num_classes=4, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    embeddings = rng.normal(size=(num_classes, dimensions))[labels] + noise * rng.normal(size=(num_images, dimensions))
    return embeddings.astype(np.float32), labels


def others(embeddings, labels):
    """Yield for each image the float64 cosine similarities of the others, and which are of its class."""
    points = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    for query, label in enumerate(labels):
        is_other = np.arange(len(labels)) != query
        yield (points @ points[query])[is_other], (labels == label)[is_other]


def naive_scores(similarities, is_relevant, k):
    order = sorted(range(len(similarities)), key=lambda index: -similarities[index])
    found, precisions = 0, []
    for rank, index in enumerate(order, start=1):
        if is_relevant[index]:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / max(found, 1), float(any(is_relevant[index] for index in order[:k]))


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_and_naive_reference(seed):
    embeddings, labels = example(seed)
    labels[0] = 9  # the only one of its class
    retrieval = retrieve(embeddings, labels)
    assert list(retrieval.recall) == [1, 5, 10]
    assert not retrieval.recall[1].all()
    for query, (similarities, is_relevant) in enumerate(others(embeddings, labels)):
        preds = torch.tensor((1 + similarities) / 2)  # torchmetrics takes what is scored 0 or less as not relevant
        target = torch.tensor(is_relevant)
        expected = float(retrieval_average_precision(preds, target))
        assert retrieval.average_precision[query] == pytest.approx(expected, abs=1e-6)
        for k, values in retrieval.recall.items():
            naive = naive_scores(similarities, is_relevant, k)
            assert (retrieval.average_precision[query], values[query]) == pytest.approx(naive, abs=1e-6)
            assert values[query] == float(retrieval_hit_rate(preds, target, top_k=k))


def test_golden():
    """From 0 degrees the others lie at 10 (another class), 20 (same), 30 (another) and 40 (same): AP 1/2, then 2/4."""
    angles, labels = np.radians([0, 10, 20, 30, 40]), np.array([0, 1, 0, 2, 0])
    retrieval = retrieve(np.stack([np.cos(angles), np.sin(angles)], axis=1), labels, ks=[1, 2])
    assert retrieval.average_precision[0] == (1 / 2 + 2 / 4) / 2
    assert (retrieval.recall[1][0], retrieval.recall[2][0]) == (0, 1)
    assert retrieval.average_precision[[1, 3]].tolist() == [0, 0]  # nothing to find
    assert retrieval.recall[2][[1, 3]].tolist() == [0, 0]


def test_separated_classes_are_found_perfectly():
    embeddings, labels = example(1, noise=1e-3)
    retrieval = retrieve(embeddings, labels)
    assert retrieval.average_precision == pytest.approx(np.ones(60))
    assert retrieval.recall[1].all()


@pytest.mark.parametrize("block_elements", [1, 7 * 60, 10**6])
def test_blocks_and_norm_do_not_matter(block_elements):
    embeddings, labels = example(2)
    expected = retrieve(embeddings, labels)
    scaled = embeddings * np.random.default_rng(0).uniform(0.1, 10, size=(60, 1))
    actual = retrieve(scaled, labels, block_elements=block_elements)
    assert actual.average_precision == pytest.approx(expected.average_precision, abs=1e-6)
    assert all((actual.recall[k] == expected.recall[k]).all() for k in (1, 5, 10))


def test_order_of_images_does_not_matter_even_with_ties():
    embeddings, labels = example(3)
    embeddings, labels = (
        np.repeat(embeddings, 2, axis=0),
        np.append(labels, (labels + 1) % 4),
    )  # duplicates of any class
    order = np.random.default_rng(0).permutation(120)
    there, here = retrieve(embeddings[order], labels[order]), retrieve(embeddings, labels)
    assert there.average_precision == pytest.approx(here.average_precision[order], abs=1e-6)
    assert (there.recall[5] == here.recall[5][order]).all()


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_constant_embedding_gains_nothing(constant):
    """All are equally near: the others of the class come last, though sorted by class they are neighbors in the set."""
    labels = np.repeat(np.arange(3), 20)
    retrieval = retrieve(np.full((60, 37), constant, dtype=np.float32), labels)
    worst = np.mean([found / (40 + found) for found in range(1, 20)])
    assert retrieval.average_precision == pytest.approx(np.full(60, worst))
    assert not retrieval.recall[10].any()


def test_k_beyond_the_set_means_all_others():
    embeddings, labels = example(4, num_images=5, num_classes=2)
    labels[:] = [0, 0, 1, 1, 2]
    assert retrieve(embeddings, labels, ks=[100]).recall[100].tolist() == [1, 1, 1, 1, 0]


def test_inputs_are_untouched():
    embeddings, labels = example(5)
    copies = embeddings.copy(), labels.copy()
    embeddings.flags.writeable = labels.flags.writeable = False
    retrieve(embeddings, labels)
    assert (embeddings == copies[0]).all()
    assert (labels == copies[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": []}, "from 1"),
        ({"ks": [0]}, "from 1"),
        ({"embeddings": np.zeros((1, 3)), "labels": np.zeros(1, int)}, "at least 2 image"),
        ({"embeddings": np.full((60, 3), np.nan)}, "60 of 60 images"),
        ({"labels": np.zeros(59, int)}, "for 60 images"),
        ({"labels": np.zeros(60)}, "expected integers"),
    ],
)
def test_bad_input_is_explained(changes, message):
    arguments = dict(zip(("embeddings", "labels"), example(0), strict=True)) | {"ks": [1]}
    with pytest.raises(ValueError, match=message):
        retrieve(**(arguments | changes))
