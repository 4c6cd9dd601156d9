"""How well a classifier stands the corruptions of `corruptions`: 6 x 5 passes over the test images."""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grpo_rm.datasets import Batch
from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from grpo_rm.evaluation.inputs import check_logits
from grpo_rm.inference import predict
from grpo_rm.model import Model

Answers = NDArray[np.bool_]  # (corruptions, strengths, images) in the order of CORRUPTIONS and STRENGTHS: is it right?


def choose_images(ids: Sequence[str], *, limit: int, seed: int) -> list[int]:
    """Return the places of `limit` images chosen at random, in order; all where there are no more.

    Those of the smallest digests are taken, so that the choice hardly changes where images come or go.
    """

    def digest(place: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{ids[place]}".encode(), digest_size=16).digest()

    return sorted(heapq.nsmallest(limit, range(len(ids)), key=digest))


def corrupted_answers(
    models: Mapping[str, Model], batches: Iterable[Batch], ids: Sequence[str], *, seed: int, device: torch.device
) -> dict[str, Answers]:
    """Tell which corrupted images each model classifies rightly.

    Models that are given the same images are measured together: to corrupt them takes as long as a small model does.

    Args:
        models: By name, on the device.
        batches: Images (B, H, W, C) uint8 as these models are given them, and labels (B,). They are read once.
        ids: Of all these images, in their order.
        seed: Of the noise.
        device: Where the models are.

    Raises:
        ValueError: More or fewer images than ids, no image, or a model whose logits are not finite.
    """
    parts: dict[str, list[Answers]] = {name: [] for name in models}
    done = 0
    for batch in batches:
        start, done = done, done + len(batch[0])
        if done > len(ids):
            break
        for name, part in _answers_of_batch(models, batch, ids[start:done], seed=seed, device=device).items():
            parts[name].append(part)
    if done != len(ids) or not done:
        raise ValueError(f"got {len(ids)} ids for {done} images or more; expected one id per image, and an image")
    return {name: np.concatenate(answers, axis=2) for name, answers in parts.items()}


def _answers_of_batch(
    models: Mapping[str, Model], batch: Batch, ids: Sequence[str], *, seed: int, device: torch.device
) -> dict[str, Answers]:
    images, labels = batch
    answers = {name: np.zeros((len(CORRUPTIONS), len(STRENGTHS), len(ids)), np.bool_) for name in models}
    for row, corruption in enumerate(CORRUPTIONS):
        for column, strength in enumerate(STRENGTHS):
            corrupted = corrupt_batch(images, corruption, strength, seed=seed, ids=ids)
            for name, model in models.items():
                predictions = predict(model, [(corrupted, labels)], device=device)
                check_logits(predictions.logits, predictions.labels)
                answers[name][row, column] = predictions.logits.argmax(axis=1) == predictions.labels
    return answers


def corrupt_batch(images: Tensor, corruption: str, strength: int, *, seed: int, ids: Sequence[str]) -> Tensor:
    """Corrupt images (B, H, W, C) uint8, each as `corrupt` does."""
    pairs = zip(images.numpy(), ids, strict=True)
    return torch.from_numpy(
        np.stack([corrupt(image, corruption, strength, seed=seed, image_id=name) for image, name in pairs])
    )


def robustness_metrics(answers: Answers, reference: Answers) -> dict[str, float]:
    """Return `robustness/<corruption>`, the accuracy over the five strengths, their mean `robustness/accuracy`, and
    `robustness/mce`, the mean corruption error.

    Args:
        answers: Of the model.
        reference: Of the model that the errors are compared with, on the same images.

    Raises:
        ValueError: The answers are of other images.
    """
    accuracies = answers.mean(axis=(1, 2))
    metrics = {f"robustness/{name}": float(value) for name, value in zip(CORRUPTIONS, accuracies, strict=True)}
    mce = mean_corruption_error(answers, reference)
    return metrics | {"robustness/accuracy": float(accuracies.mean()), "robustness/mce": mce}


def mean_corruption_error(answers: Answers, reference: Answers) -> float:
    """Return the mean over corruptions of the wrong answers at all strengths over those of the reference.

    Hendrycks & Dietterich 2019, equation 1, as a ratio and not in percent; 1 is as good as the reference, 0 is without
    error. Ours: the reference is the pretrained model of the same run, and not AlexNet. Where it makes no error, one is
    added to both numbers, so that the ratio is finite: 1 for a model without error, 4 for one with three.

    Raises:
        ValueError: The answers are of other images.
    """
    if answers.shape != reference.shape:
        raise ValueError(
            f"got answers {answers.shape} and a reference {reference.shape}; expected both of the same corruptions, "
            "strengths and images"
        )
    wrong, expected = (np.count_nonzero(~each, axis=(1, 2)) for each in (answers, reference))
    added = expected == 0
    return float(((wrong + added) / (expected + added)).mean())


def robustness_scores(answers: Answers) -> dict[str, NDArray[np.float64]]:
    """Return (N,) scores per image for every metric of `robustness_metrics` that is a mean over images: for all but
    `robustness/mce` the share of right answers.
    """
    of_corruption = dict(zip(CORRUPTIONS, answers.mean(axis=1), strict=True))
    scores = {f"robustness/{name}": values for name, values in of_corruption.items()}
    return scores | {"robustness/accuracy": answers.mean(axis=(0, 1))}


def robustness_rows(answers: Answers) -> list[dict[str, float]]:
    """Return a row per strength with the accuracy under each corruption and their mean: DVC draws a column as a
    curve.
    """
    accuracies = answers.mean(axis=2)
    return [
        {"strength": strength}
        | dict(zip(CORRUPTIONS, map(float, accuracies[:, column]), strict=True))
        | {"mean": float(accuracies[:, column].mean())}
        for column, strength in enumerate(STRENGTHS)
    ]
