"""evaluation.json against the Parquet files of predictions: all of it again by scikit-learn, without our code."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    recall_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize, normalize

MODELS = ("pretrain", "grpo_rm", "cross_entropy")
COLUMNS = ("label", "logits", "probabilities", "embedding")


@pytest.fixture(scope="module")
def evaluation(finished):
    return json.loads((finished.root / "reports/evaluation.json").read_text())


@pytest.fixture(scope="module")
def predictions(finished):
    """By model and split: labels, logits, probabilities, embeddings."""

    def read(name):
        table = pq.read_table(finished.root / f"reports/predictions/{name}.parquet").to_pandas()
        return {
            split: tuple(np.stack(rows[column].to_list()) for column in COLUMNS)
            for split, rows in table.groupby("split")
        }

    return {name: read(name) for name in MODELS}


def ece(confidences, is_right):
    """Return the expected calibration error over 15 bins of equal width."""
    bins = np.minimum((confidences * 15).astype(int), 14)
    gaps = [abs((confidences - is_right)[bins == b].sum()) for b in range(15)]
    return sum(gaps) / len(confidences)


def brier(probabilities, labels):
    return ((probabilities - label_binarize(labels, classes=range(10))) ** 2).sum(axis=1).mean()


def nll(logits, labels):
    return -log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("model", MODELS)
def test_the_head(evaluation, predictions, model):
    labels, logits, probabilities, _ = predictions[model]["test"]
    predicted, said = logits.argmax(axis=1), evaluation["models"][model]
    assert probabilities == pytest.approx(softmax(logits, axis=1), abs=1e-5)
    assert said["accuracy"] == accuracy_score(labels, predicted)
    assert said["top5_accuracy"] == top_k_accuracy_score(labels, logits, k=5)
    assert said["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert said["worst_class_accuracy"] == pytest.approx(recall_score(labels, predicted, average=None).min())
    assert said["nll"] == pytest.approx(nll(logits, labels), rel=1e-4)
    assert said["brier"] == pytest.approx(brier(probabilities, labels), abs=1e-5)
    assert said["ece"] == pytest.approx(ece(probabilities.max(axis=1), predicted == labels), abs=1e-5)
    on_validation = predictions[model]["val"]
    assert evaluation["validation"][model]["accuracy"] == accuracy_score(
        on_validation[0], on_validation[1].argmax(axis=1)
    )


@pytest.mark.parametrize("model", MODELS)
def test_temperature_scaling(evaluation, predictions, model):
    (val_labels, val_logits, *_), (labels, logits, *_) = (predictions[model][split] for split in ("val", "test"))
    said = evaluation["models"][model]

    best = minimize_scalar(lambda t: nll(val_logits / t, val_labels), bounds=(0.1, 100), method="bounded")
    assert nll(val_logits / said["temperature"], val_labels) <= best.fun + 1e-5
    scaled = softmax(logits / said["temperature"], axis=1)
    assert said["nll_calibrated"] == pytest.approx(nll(logits / said["temperature"], labels), rel=1e-4)
    assert said["brier_calibrated"] == pytest.approx(brier(scaled, labels), abs=1e-5)
    assert said["ece_calibrated"] == pytest.approx(ece(scaled.max(axis=1), scaled.argmax(axis=1) == labels), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_embedding(evaluation, predictions, model):
    (train_labels, _, _, train), (labels, _, _, test) = (predictions[model][split] for split in ("train", "test"))
    said = evaluation["models"][model]
    train, test = normalize(train), normalize(test)
    for k in (10, 20):
        knn = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        accuracy = knn.fit(train, train_labels).score(test, labels)
        assert said[f"knn_top1_k{k}_t0.07"] == pytest.approx(accuracy, abs=1 / len(labels))
    similarities = test @ test.T
    others = ~np.eye(len(test), dtype=bool)
    precision = [
        average_precision_score(labels[others[i]] == labels[i], similarities[i][others[i]]) for i in range(len(test))
    ]
    assert said["retrieval_map"] == pytest.approx(np.mean(precision), abs=1e-3)
    nearest = NearestNeighbors(metric="cosine").fit(test).kneighbors(test, 11, return_distance=False)
    for k in (1, 5, 10):
        found = [(labels[[j for j in row if j != i][:k]] == labels[i]).any() for i, row in enumerate(nearest)]
        assert said[f"retrieval_recall_k{k}"] == pytest.approx(np.mean(found), abs=1 / len(labels))
    squared = 2 - 2 * similarities
    assert said["alignment"] == pytest.approx(squared[(labels[:, None] == labels) & others].mean(), rel=1e-4)
    assert said["uniformity"] == pytest.approx(np.log(np.exp(-2 * squared[others]).mean()), rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_the_linear_probe(evaluation, predictions, model):
    train, val, test = (predictions[model][split] for split in ("train", "val", "test"))
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-6, max_iter=2000)).fit(
            train[3].astype(float), train[0]
        )
        for C in (1e-3, 1e-2, 1e-1, 1, 10, 100)
    ]
    best = max(probes, key=lambda probe: probe.score(val[3], val[0]))  # the first of equals
    said = evaluation["models"][model]["linear_probe_top1"]
    # where two penalties do equally well on validation, rounding may choose the other
    as_good = [p.score(test[3], test[0]) for p in probes if p.score(val[3], val[0]) >= best.score(val[3], val[0])]
    assert min(as_good) - 1.5 / len(test[0]) <= said <= max(as_good) + 1.5 / len(test[0])


@pytest.mark.parametrize("model", MODELS)
def test_corrupted_images(finished, evaluation, model):
    def wrong(name):
        table = pq.read_table(finished.root / f"reports/predictions/robustness/{name}.parquet").to_pandas()
        assert table.groupby(["corruption", "strength"], observed=True)["id"].nunique().eq(364).all()
        return 1 - table.groupby("corruption", observed=True)["is_right"].mean()

    said, of_model, of_pretrain = evaluation["models"][model], wrong(model), wrong("pretrain")
    assert len(of_model) == 6
    for corruption, share in of_model.items():
        assert said[f"robustness/{corruption}"] == pytest.approx(1 - share)
    assert said["robustness/accuracy"] == pytest.approx(1 - of_model.mean())
    assert said["robustness/mce"] == pytest.approx((of_model / of_pretrain).mean())


def test_the_comparison(evaluation, predictions):
    compared = evaluation["comparison"]
    labels = predictions["grpo_rm"]["test"][0]
    is_right = {name: predictions[name]["test"][1].argmax(axis=1) == labels for name in MODELS}
    candidate, control = is_right["grpo_rm"], is_right["cross_entropy"]
    only_candidate, only_control = int((candidate & ~control).sum()), int((control & ~candidate).sum())
    discordant = only_candidate + only_control
    p_value = binomtest(only_candidate, discordant).pvalue if discordant else 1.0
    assert compared["mcnemar"] == {
        "only_candidate_right": only_candidate,
        "only_control_right": only_control,
        "p_value": pytest.approx(p_value),
    }
    for metric, entry in compared.items():
        if metric != "mcnemar":
            models = evaluation["models"]
            assert entry["difference"] == pytest.approx(
                models["grpo_rm"][metric] - models["cross_entropy"][metric], abs=1e-5
            )
            assert entry["low"] <= entry["difference"] <= entry["high"]
    differences = candidate.astype(float) - control
    draws = np.random.default_rng(5).integers(len(labels), size=(4000, len(labels)))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    size = (
        len(labels) + 2
    )  # Bonett & Price: one image more on which the candidate alone is right, and one the other way
    share = differences.sum() / size
    reach = 1.959964 * np.sqrt(((discordant + 2) / size - share**2) / size)
    assert compared["accuracy"]["low"] == pytest.approx(min(low, share - reach), abs=1.5 / len(labels))
    assert compared["accuracy"]["high"] == pytest.approx(max(high, share + reach), abs=1.5 / len(labels))
