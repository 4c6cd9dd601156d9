"""Softmax regression on frozen embeddings."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_embeddings, check_labels

DEFAULT_CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss: scikit-learn's own

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
    accuracy the smallest, the strongest penalty, is taken. Deterministic: L-BFGS on one BLAS thread, from zero for the
    smallest C and from the fit before for each other one. So a fit is stopped early where the gradient is small
    already, as it is for the largest C: these then hardly differ.

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
    # One thread: these products are so narrow that handing them to several costs far more time than it saves,
    # and the order of the sums, hence the last digit, no longer depends on the number of cores.
    with threadpool_limits(limits=1, user_api="blas"):
        probes = list(_probes(train, val, test, sorted(set(Cs))))
    return max(probes, key=lambda probe: probe.val_accuracy)  # the first of equals, so the smallest C


def _probes(train: Split, val: Split, test: Split, grid: Sequence[float]) -> Iterator[LinearProbe]:
    """Yield the probe of each C; each fit begins where the one before ended, which saves most of its steps."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    # float32 takes half the time, and its precision is far beyond this tolerance
    train_points, val_points, test_points = (scaler.transform(x).astype(np.float32) for x, _ in (train, val, test))
    model = LogisticRegression(tol=TOLERANCE, max_iter=1000, warm_start=True)
    for inverse_penalty in grid:
        with warnings.catch_warnings():
            # A fit that meets max_iter is a candidate like the others: it was stopped early, and validation judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=inverse_penalty).fit(train_points, train[1])
        predictions = model.predict(test_points).astype(np.int64)
        val_accuracy = _accuracy(model.predict(val_points), val[1])
        yield LinearProbe(_accuracy(predictions, test[1]), predictions, inverse_penalty, val_accuracy)


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
