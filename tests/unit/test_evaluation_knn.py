"""k-nearest-neighbour accuracy against loops, a golden and its invariances."""

import math

import pytest
import torch

from grpo_rm.evaluation.knn import knn_predictions


def example(seed, num_train=60, num_test=40, dimensions=8, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dimensions, generator=generator)

    def split(num_images):
        labels = torch.randint(num_classes, (num_images,), generator=generator)
        return centers[labels] + 1.5 * torch.randn(num_images, dimensions, generator=generator), labels

    return *split(num_train), *split(num_test)


def naive_predictions(train, train_labels, test, k, temperature, num_classes):
    predictions = []
    for x in test.tolist():
        similarities = []
        for y, other in zip(train.tolist(), train_labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(x, y, strict=True))
            similarities.append((dot / math.hypot(*x) / math.hypot(*y), other))
        votes = [0.0] * num_classes
        for similarity, other in sorted(similarities, reverse=True)[:k]:
            votes[other] += math.exp(similarity / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_naive_reference(seed, temperature):
    data = example(seed)[:3]
    ks = [1, 5, 20, 60]
    predictions = knn_predictions(*data, ks=ks, temperature=temperature, num_classes=4)
    assert list(predictions) == ks
    for k in ks:
        assert predictions[k].tolist() == naive_predictions(*data, k, temperature, 4)


def test_golden_weights_decide():
    """One neighbour at cosine 1 against two at cosine 0.6: exp(0.4 / T) > 2 holds at T = 0.07 and not at T = 1."""
    train = torch.tensor([[2.0, 0.0], [3.0, 4.0], [3.0, -4.0]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[5.0, 0.0]])

    def prediction(temperature):
        return knn_predictions(train, labels, test, ks=[3], temperature=temperature, num_classes=2)[3].item()

    assert prediction(0.07) == 0
    assert prediction(1.0) == 1


@pytest.mark.parametrize("block_elements", [1, 7 * 60, 10**6])
def test_block_size_and_norm_do_not_matter(block_elements):
    train, labels, test, _ = example(5)
    arguments = {"ks": [5, 10], "temperature": 0.07, "num_classes": 4}
    expected = knn_predictions(train, labels, test, **arguments)
    train, test = train * torch.rand(len(train), 1).add(0.1), test * torch.rand(len(test), 1).add(0.1)
    actual = knn_predictions(train, labels, test, block_elements=block_elements, **arguments)
    assert all(torch.equal(actual[k], expected[k]) for k in (5, 10))


def test_own_neighbor_is_nearest():
    train, labels, _, _ = example(6)
    predictions = knn_predictions(train, labels, train, ks=[1], temperature=0.07, num_classes=4)[1]
    assert torch.equal(predictions, labels)


def test_zero_embedding_votes_like_any_other():
    """The neighbors of the zero embedding are all at similarity 0, so k = N is a majority vote and not NaN."""
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    labels, test = torch.tensor([1, 1, 0]), torch.zeros(1, 2)
    assert knn_predictions(train, labels, test, ks=[3], temperature=0.07, num_classes=2)[3].item() == 1


def test_half_precision_is_computed_in_float32():
    train, labels, test, _ = example(7)
    train, test = train.half(), test.half()
    arguments = {"ks": [5], "temperature": 0.07, "num_classes": 4}
    single = knn_predictions(train.float(), labels, test.float(), **arguments)[5]
    assert torch.equal(knn_predictions(train, labels, test, **arguments)[5], single)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": [5, 61]}, "got k = .* with 60 train images"),
        ({"ks": [0]}, "from 1 to 60"),
        ({"ks": []}, "from 1 to 60"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"num_classes": 2}, "expected 0 to 1"),
        ({"test_embeddings": torch.zeros(40, 9)}, "8 and test embeddings of 9 dimensions"),
        ({"test_embeddings": torch.zeros(0, 8)}, "at least 1 image"),
        ({"test_embeddings": torch.full((40, 8), math.nan)}, "40 of 40 images"),
        ({"train_labels": torch.zeros(59, dtype=torch.int64)}, "for 60 images"),
        ({"train_labels": torch.zeros(60)}, "expected integers"),
    ],
)
def test_bad_input_is_explained(changes, message):
    names = ["train_embeddings", "train_labels", "test_embeddings"]
    arguments = {**dict(zip(names, example(0)[:3], strict=True)), "ks": [5], "temperature": 0.07, "num_classes": 4}
    with pytest.raises(ValueError, match=message):
        knn_predictions(**{**arguments, **changes})
