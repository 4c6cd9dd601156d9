"""Softmax regression on frozen embeddings."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_embeddings, check_labels

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

DEFAULT_CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

Split = tuple[FloatArray, IntArray]  # embeddings (N, D), labels (N,)


@dataclass(frozen=True)
class LinearProbe:
    """The probe chosen on validation, as it does on test."""

    accuracy: float  # share in [0, 1], on test
    predictions: npt.NDArray[np.int64]  # (N_test,) class indices
    best_c: float  # inverse strength of the L2 penalty (scikit-learn)
    val_accuracy: float  # share in [0, 1], what `best_c` was chosen by


def linear_probe(
    train: Split,
    val: Split,
    test: Split,
    *,
    Cs: Sequence[float] = DEFAULT_CS,  # noqa: N803 - scikit-learn's name
) -> LinearProbe:
    """Fit multinomial logistic regression on train, choose C on validation, report on test.

    Embeddings are standardised with the mean and standard deviation of train. Of several C with the same validation
    accuracy the smallest, the strongest penalty, is taken. Deterministic: L-BFGS from zero, on one BLAS thread.

    Args:
        train: embeddings (N, D) and labels (N,), NumPy; at least two classes.
        val: the same for the images that choose C.
        test: the same for the images that are reported.
        Cs: values of scikit-learn's C, above 0.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, one class only, no C or one that is not above 0.
    """
    from threadpoolctl import threadpool_limits

    _check_arguments((train, val, test), Cs)
    # One thread: these products are so small that handing them to several costs far more time than it saves,
    # and the order of the sums, hence the last digit, no longer depends on the number of cores.
    with threadpool_limits(limits=1, user_api="blas"):
        fits = [(C, _fit(train, C)) for C in sorted(set(Cs))]
        val_accuracies = [_accuracy(model.predict(val[0]), val[1]) for _, model in fits]
        best = int(np.argmax(val_accuracies))  # the first of equals, so the smallest C
        predictions = fits[best][1].predict(test[0]).astype(np.int64)
    return LinearProbe(_accuracy(predictions, test[1]), predictions, fits[best][0], val_accuracies[best])


def _fit(train: Split, inverse_penalty: float) -> "Pipeline":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # float64, because the line search of L-BFGS fails near the optimum in float32.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, tol=1e-6, max_iter=1000))
    with warnings.catch_warnings():
        # A fit that meets max_iter is a candidate like the others: it was stopped early, and validation judges it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(train[0].astype(np.float64), train[1])


def _accuracy(predictions: IntArray, labels: IntArray) -> float:
    return float((predictions == labels).mean())


def _check_arguments(splits: tuple[Split, Split, Split], grid: Sequence[float]) -> None:
    for embeddings, labels in splits:
        check_embeddings(embeddings)
        check_labels(labels, num_images=len(embeddings))
    dimensions = [embeddings.shape[1] for embeddings, _ in splits]
    if len(set(dimensions)) > 1:
        raise ValueError(
            f"got train, val and test embeddings of {dimensions} dimensions; expected the same number: "
            "embed all with one encoder"
        )
    classes = np.unique(splits[0][1])
    if len(classes) < 2:
        raise ValueError(f"got train labels of class {classes[0]} only; expected two classes or more: use more images")
    if not grid or not min(grid) > 0:
        raise ValueError(f"got Cs = {list(grid)}; expected one or more numbers above 0, such as {list(DEFAULT_CS)}")
