"""Softmax regression: against a solver of our own, on goldens, and the choice of C."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from grpo_rm.evaluation.linear_probe import DEFAULT_CS, linear_probe


def splits(seed, sizes=(120, 60, 60), dimensions=5, num_classes=3, noise=1.5):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_classes, dimensions))

    def split(num_images):
        labels = np.arange(num_images) % num_classes
        return (centers[labels] + noise * rng.normal(size=(num_images, dimensions))).astype(np.float32), labels

    return [split(size) for size in sizes]


def naive_predictions(train, test, inverse_penalty):
    """Minimise the sum of the NLL + |W|^2 / (2 C) on standardised embeddings; the intercept is not penalised."""
    (x, y), classes = train, np.unique(train[1])
    mean, std = x.mean(axis=0, dtype=float), x.std(axis=0, dtype=float)
    x = (x - mean) / std
    shape = (x.shape[1] + 1, len(classes))

    def loss(flat):
        weights = flat.reshape(shape)
        log_probs = log_softmax(x @ weights[:-1] + weights[-1], axis=1)
        return -log_probs[np.arange(len(y)), np.searchsorted(classes, y)].sum() + (weights[:-1] ** 2).sum() / (
            2 * inverse_penalty
        )

    weights = minimize(loss, np.zeros(shape).ravel(), method="BFGS", options={"gtol": 1e-3}).x.reshape(shape)
    return classes[((test[0] - mean) / std @ weights[:-1] + weights[-1]).argmax(axis=1)]


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0])
def test_naive_reference(inverse_penalty):
    train, val, test = splits(0)
    probe = linear_probe(train, val, test, Cs=[inverse_penalty])
    assert probe.predictions.tolist() == naive_predictions(train, test, inverse_penalty).tolist()
    assert probe.best_c == inverse_penalty
    assert probe.accuracy == pytest.approx((probe.predictions == test[1]).mean())
    assert 0.4 < probe.accuracy < 1.0  # better than chance and not trivial


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_warm_start_and_tolerance_cost_no_accuracy(noise):
    """Against fits from zero to a hundredth of the tolerance in float64, and the same choice of C."""
    train, val, test = splits(6, sizes=(2000, 500, 2000), dimensions=30, num_classes=10, noise=noise)
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-6, max_iter=1000)).fit(
            train[0].astype(np.float64), train[1]
        )
        for C in DEFAULT_CS
    ]
    tight = max(fits, key=lambda fit: fit.score(*val))
    probe = linear_probe(train, val, test)
    assert probe.val_accuracy >= tight.score(*val) - 2e-3
    assert (probe.predictions == tight.predict(test[0])).mean() > 0.99
    assert probe.accuracy == pytest.approx(tight.score(*test), abs=3e-3)
    assert 0.3 < probe.accuracy < 1.0


def test_c_is_chosen_on_validation_alone():
    train, val, test = splits(1, dimensions=40, sizes=(60, 300, 300))
    probes = {C: linear_probe(train, val, test, Cs=[C]) for C in DEFAULT_CS}
    chosen = linear_probe(train, val, test)
    best = max(probe.val_accuracy for probe in probes.values())
    smallest = min(C for C, probe in probes.items() if probe.val_accuracy == best)
    assert chosen.best_c == smallest
    assert len({probe.val_accuracy for probe in probes.values()}) > 1
    assert chosen.predictions.tolist() == probes[chosen.best_c].predictions.tolist()
    assert linear_probe(train, val, (test[0], (test[1] + 1) % 3)).best_c == chosen.best_c


def test_tie_takes_the_smaller_c():
    data = splits(2, noise=1e-3)
    probe = linear_probe(*data, Cs=[10.0, 0.1, 1.0])
    assert (probe.best_c, probe.accuracy, probe.val_accuracy) == (0.1, 1.0, 1.0)


def test_deterministic_and_inputs_untouched():
    data = splits(3)
    copies = [(x.copy(), y.copy()) for x, y in data]
    first, second = linear_probe(*data), linear_probe(*data)
    assert first.predictions.tolist() == second.predictions.tolist()
    assert first.best_c == second.best_c
    assert all((x == x2).all() and (y == y2).all() for (x, y), (x2, y2) in zip(data, copies, strict=True))


def test_scale_and_shift_of_a_dimension_do_not_matter():
    data = splits(4)
    moved = [(x.astype(np.float64) * [1, 10, 0.1, 5, 100] + [0, 3, -4, 100, 7], y) for x, y in data]
    assert linear_probe(*moved).predictions.tolist() == linear_probe(*data).predictions.tolist()


def test_class_absent_from_train_and_constant_dimension():
    train, val, test = splits(5, noise=0.1)
    is_seen = train[1] != 1
    train = (np.hstack([train[0], np.ones((len(train[0]), 1))])[is_seen], train[1][is_seen])
    val, test = ((np.hstack([x, np.ones((len(x), 1))]), y) for x, y in (val, test))
    probe = linear_probe(train, val, test)
    assert set(probe.predictions.tolist()) == {0, 2}
    assert probe.accuracy == pytest.approx(2 / 3)


def test_fit_that_does_not_converge_warns_nobody():
    """Nearly parallel dimensions, labels by chance, hardly a penalty: 1000 steps do not suffice."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 1)) + 1e-2 * rng.normal(size=(60, 20))
    split = (embeddings, rng.integers(0, 3, size=60))
    assert linear_probe(split, split, split, Cs=[1e6]).accuracy > 0.5  # and warnings are errors


def test_embeddings_of_usual_size():
    """10 classes, 96 dimensions, correlated: the whole grid without a warning."""
    rng = np.random.default_rng(0)
    train, val, test = splits(7, sizes=(1100, 300, 300), dimensions=96, num_classes=10)
    mixing = rng.normal(size=(96, 96)).astype(np.float32)
    probe = linear_probe(*((np.maximum(x @ mixing, 0), y) for x, y in (train, val, test)))
    assert probe.best_c in DEFAULT_CS
    assert probe.accuracy > 0.5


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, (np.zeros((4, 5)), np.zeros(4, int)), "class 0 only"),
        (0, (np.full((4, 5), np.nan), np.arange(4)), "4 of 4 images"),
        (1, (np.zeros((4, 6)), np.arange(4)), r"\[5, 6, 5\] dimensions"),
        (2, (np.zeros((0, 5)), np.zeros(0, int)), "at least 1 image"),
        (2, (np.zeros((4, 5)), np.arange(3)), "for 4 images"),
    ],
)
def test_bad_input_is_explained(position, replacement, message):
    data = splits(0)
    data[position] = replacement
    with pytest.raises(ValueError, match=message):
        linear_probe(*data)


@pytest.mark.parametrize("grid", [[], [1.0, 0.0], [-1.0]])
def test_bad_cs_are_explained(grid):
    with pytest.raises(ValueError, match="got Cs ="):
        linear_probe(*splits(0), Cs=grid)
