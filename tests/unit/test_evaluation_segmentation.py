"""Metrics of dense predictions: as loops over the pixels and as torchmetrics, void left out, on resamples too."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassJaccardIndex

from grpo_rm.evaluation.boundary import TOLERANCE, boundary_f1, boundary_f1_sums, has_boundary
from grpo_rm.evaluation.comparison import compare_metrics
from grpo_rm.evaluation.metric_sums import classifier_sums
from grpo_rm.evaluation.pixels import VOID, confusion_per_image, join_sums, pixel_sums
from grpo_rm.evaluation.resampling import bootstrap_differences, swapped_differences
from grpo_rm.evaluation.segmentation import (
    class_iou_sums,
    class_ious,
    constant_iou_sums,
    mean_class_accuracy_sums,
    mean_iou_sums,
    pixel_metrics,
    pixel_reliability,
)


def truth(num_images=6, size=(13, 17), classes=4, seed=0):
    """Masks of blocks of 3 x 3 pixels; a seventh of all pixels is void."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (num_images, size[0] // 3 + 1, size[1] // 3 + 1))
    masks = blocks.repeat(3, axis=1).repeat(3, axis=2)[:, : size[0], : size[1]]
    return np.where(rng.random(masks.shape) < 1 / 7, VOID, masks)


def answers(masks, classes=4, seed=1, skill=2.0):
    """Logits (N, K, H, W) that are right more often than not."""
    rng = np.random.default_rng(seed)
    hints = np.eye(classes)[np.maximum(masks, 0)].transpose(0, 3, 1, 2)
    return torch.from_numpy((skill * hints + rng.normal(size=hints.shape)).astype(np.float32))


def measured(logits, masks):
    return {name: metric.value for name, metric in pixel_metrics(pixel_sums(logits, torch.from_numpy(masks))).items()}


def naive_confusion(predictions, mask, classes):
    counts = np.zeros((classes, classes), dtype=int)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column] != VOID:
                counts[mask[row, column], predictions[row, column]] += 1
    return counts


def naive_metrics(logits, masks):
    """The definitions by a loop over the pixels."""
    classes = logits.shape[1]
    total, nll, bins = np.zeros((classes, classes)), [], [[] for _ in range(15)]
    for image, row, column in zip(*np.nonzero(masks != VOID), strict=True):
        scores, label = logits[image, :, row, column].double(), masks[image, row, column]
        probs = scores.softmax(dim=0)
        total[label, int(probs.argmax())] += 1
        nll.append(-math.log(probs[label]))
        bins[min(int(probs.max() * 15), 14)].append((float(probs.max()), int(probs.argmax()) == label))
    hits, labeled, predicted = np.diag(total), total.sum(axis=1), total.sum(axis=0)
    ious = [h / (t + p - h) for h, t, p in zip(hits, labeled, predicted, strict=True) if t + p]
    return {
        "miou": np.mean(ious),
        "pixel_accuracy": hits.sum() / total.sum(),
        "mean_class_accuracy": np.mean([h / t for h, t in zip(hits, labeled, strict=True) if t]),
        "nll": np.mean(nll),
        "ece": sum(abs(sum(c - r for c, r in one)) for one in bins) / total.sum(),
    }


def naive_boundary_f1(predictions, mask, label):
    """The definition by loops: from each pixel of a boundary to each of the other."""
    height, width = mask.shape
    tolerance = TOLERANCE * math.sqrt(height**2 + width**2)

    def around(row, column, reach):
        for other in range(max(row - 1, 0), min(row + 2, height)):
            for another in range(max(column - 1, 0), min(column + 2, width)):
                if abs(other - row) + abs(another - column) <= reach:
                    yield other, another

    def outline(classes):
        return [
            (row, column)
            for row in range(height)
            for column in range(width)
            if classes[row, column] == label
            and any(classes[near] != label for near in around(row, column, 1))
            and all(mask[near] != VOID for near in around(row, column, 2))
        ]

    def share(pixels, others):
        return np.mean([any(math.dist(pixel, other) <= tolerance for other in others) for pixel in pixels])

    predicted, true = outline(predictions), outline(mask)
    if not predicted and not true:
        return math.nan
    if not predicted or not true:
        return 0.0
    precision, recall = share(predicted, true), share(true, predicted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_golden_of_the_counts():
    masks = np.array([[[0, 0, 1], [1, VOID, 2]], [[0, 1, 1], [VOID, VOID, 1]]])
    predictions = np.array([[[0, 1, 1], [1, 2, 0]], [[0, 0, 1], [99, -7, 1]]])
    confusion = confusion_per_image(predictions, masks, 4)
    assert confusion[0, :3, :3].tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert confusion[1, :3, :3].tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert confusion.sum() == 9 and confusion.shape == (2, 4, 4)
    # all images: class 0 has 2 hits of 3 true and 4 predicted, class 1 has 4 of 5 and 5, class 2 has 0 of 1 and 0
    assert mean_iou_sums(confusion).value == pytest.approx((2 / 5 + 4 / 6 + 0) / 3)  # class 3 is nowhere
    assert mean_class_accuracy_sums(confusion).value == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    rows = class_ious(confusion)
    assert [row["iou"] for row in rows] == [pytest.approx(2 / 5), pytest.approx(4 / 6), 0.0, None]
    assert [row["accuracy"] for row in rows] == [pytest.approx(2 / 3), pytest.approx(4 / 5), 0.0, None]
    assert [row["pixels"] for row in rows] == [3, 5, 1, 0]
    assert [one.value for one in class_iou_sums(confusion)] == pytest.approx([2 / 5, 4 / 6, 0, 0])


def test_a_class_that_is_only_predicted_counts_as_0_in_the_mean_iou_and_not_in_the_accuracy():
    confusion = confusion_per_image(np.array([[[0, 0, 1]]]), np.array([[[0, 0, 0]]]), 3)
    assert mean_iou_sums(confusion).value == pytest.approx((2 / 3 + 0) / 2)
    assert mean_class_accuracy_sums(confusion).value == pytest.approx(2 / 3)
    assert class_ious(confusion)[1] == {"label": 1, "iou": 0.0, "accuracy": None, "pixels": 0}


def test_golden_of_the_calibration():
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    logits = torch.from_numpy(np.log(probs).T.reshape(1, 2, 2, 2).astype(np.float32))
    sums = pixel_sums(logits, torch.tensor([[[0, 1], [1, VOID]]]))
    metrics = pixel_metrics(sums)
    assert metrics["ece"].value == pytest.approx((0.8 + 0.3) / 3)  # .9 + .9 - 1 in a bin, 1 - .7 in another
    assert metrics["nll"].value == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.7)) / 3)
    points = pixel_reliability(sums)
    assert [(point["accuracy"], point["count"]) for point in points] == [(1.0, 1), (0.5, 2)]
    assert [point["confidence"] for point in points] == pytest.approx([0.7, 0.9])


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_loops_over_the_pixels_say_the_same(classes):
    masks = truth(classes=classes)
    masks[masks == classes - 1] = 0  # a class that is never true
    logits = answers(masks, classes)
    sums = pixel_sums(logits, torch.from_numpy(masks))
    predictions = logits.argmax(dim=1).numpy()
    expected = [naive_confusion(predictions[image], masks[image], classes) for image in range(len(masks))]
    assert (sums.confusion == expected).all()
    assert measured(logits, masks) == pytest.approx(naive_metrics(logits, masks), abs=1e-6)


@pytest.mark.parametrize("absent", [None, 2])
def test_torchmetrics_and_scikit_learn_say_the_same(absent):
    masks = truth(num_images=5, size=(20, 31), classes=5)
    logits, labels = answers(masks, 5), torch.from_numpy(np.where(masks == absent, VOID, masks))
    if absent is not None:
        logits[:, absent] = -9.0  # in neither truth nor prediction
    metrics = {name: one.value for name, one in pixel_metrics(pixel_sums(logits, labels)).items()}
    confusion = pixel_sums(logits, labels).confusion
    settings = {"num_classes": 5, "ignore_index": VOID}
    assert metrics["miou"] == pytest.approx(float(MulticlassJaccardIndex(**settings)(logits, labels)), abs=1e-6)
    by_class = MulticlassJaccardIndex(**settings, average="none")(logits, labels).tolist()
    assert [one.value for one in class_iou_sums(confusion)] == pytest.approx(by_class, abs=1e-6)
    accuracy = MulticlassAccuracy(**settings, average="micro")(logits, labels)
    assert metrics["pixel_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    ece = MulticlassCalibrationError(**settings, n_bins=15)(logits, labels)
    assert metrics["ece"] == pytest.approx(float(ece), abs=1e-6)
    valid = labels != VOID
    balanced = balanced_accuracy_score(labels[valid], logits.argmax(dim=1)[valid])
    assert metrics["mean_class_accuracy"] == pytest.approx(balanced)


def test_images_of_one_pixel_are_measured_as_in_classification():
    rng = np.random.default_rng(3)
    logits, labels = (3 * rng.normal(size=(500, 5))).astype(np.float32), rng.integers(0, 5, 500)
    expected = {name: metric.value for name, metric in classifier_sums(logits, labels).items()}
    metrics = measured(torch.from_numpy(logits)[:, :, None, None], labels[:, None, None])
    assert metrics["pixel_accuracy"] == expected["accuracy"]
    assert [metrics["nll"], metrics["ece"]] == pytest.approx([expected["nll"], expected["ece"]], abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 200.0])
def test_confidence_at_both_ends(scale):
    masks = truth(classes=3)
    logits = scale * answers(masks, 3)
    assert measured(logits, masks) == pytest.approx(naive_metrics(logits, masks), rel=1e-5, abs=1e-6)


def test_what_is_predicted_on_void_pixels_never_counts():
    masks = truth()
    logits = answers(masks)
    is_void = torch.from_numpy(masks == VOID)[:, None]
    others = torch.where(is_void, 5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)), logits)
    assert (others.argmax(dim=1) != logits.argmax(dim=1)).sum() > 50
    assert measured(others, masks) == measured(logits, masks)
    scores = [boundary_f1(one.argmax(dim=1).numpy(), masks, 4) for one in (logits, others)]
    assert np.array_equal(*scores, equal_nan=True)


def test_permuting_the_classes_permutes_the_iou():
    masks = truth()
    predictions, order = answers(masks).argmax(dim=1).numpy(), np.array([2, 0, 3, 1])
    renamed = np.where(masks == VOID, VOID, order[masks])
    before, after = (confusion_per_image(*pair, 4) for pair in ((predictions, masks), (order[predictions], renamed)))
    ious = [np.array([row["iou"] for row in class_ious(one)]) for one in (before, after)]
    assert len(set(ious[0])) == 4
    assert (ious[1][order] == ious[0]).all()
    scores = boundary_f1(predictions, masks, 4), boundary_f1(order[predictions], renamed, 4)
    assert np.array_equal(scores[1][:, order], scores[0], equal_nan=True)


def test_batches_of_other_sizes_join():
    batches = [truth(num_images=1), truth(num_images=2, seed=4), truth(num_images=2, size=(20, 9), seed=5)]
    parts = [pixel_sums(answers(masks), torch.from_numpy(masks)) for masks in batches]
    joined = join_sums(parts)
    alone = join_sums(
        [pixel_sums(answers(masks)[[i]], torch.from_numpy(masks[[i]])) for masks in batches for i in range(len(masks))]
    )
    assert joined.confusion.shape == (5, 4, 4) and (joined.confusion == alone.confusion).all()
    assert (joined.count == alone.count).all() and (joined.right == alone.right).all()
    assert joined.nll == pytest.approx(alone.nll) and joined.confidence == pytest.approx(alone.confidence)
    shares = [part.count.sum() / joined.count.sum() for part in parts]
    expected = sum(share * pixel_metrics(part)["nll"].value for share, part in zip(shares, parts, strict=True))
    assert pixel_metrics(joined)["nll"].value == pytest.approx(expected)
    total = naive_confusion(
        *(
            np.concatenate([one.ravel() for one in maps])[None]
            for maps in ([answers(masks).argmax(dim=1).numpy() for masks in batches], batches)
        ),
        4,
    )
    assert (joined.confusion.sum(axis=0) == total).all()


def test_golden_of_the_boundary():
    """Left and right halves of 240 x 320 pixels: the diagonal is 400, so 3 pixels are forgiven."""
    columns = np.broadcast_to(np.arange(320), (1, 240, 320))
    mask = (columns >= 160).astype(np.int64)
    for shift, expected in ((0, 1.0), (3, 1.0), (4, 0.0), (-3, 1.0), (-4, 0.0)):
        scores = boundary_f1((columns >= 160 + shift).astype(np.int64), mask, 3)[0]
        assert scores.tolist() == pytest.approx([expected, expected, math.nan], nan_ok=True), shift
    upper = mask.copy()
    upper[:, 120:] = 0  # class 1 ends at row 119, where it has a boundary that is none
    # predicted: 120 pixels down and 160 along, less the corner; near: those down, 3 along, and 3 more rows of the truth
    precision, recall = 123 / 279, 123 / 240
    assert boundary_f1(upper, mask, 2)[0, 1] == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("size", [(13, 17), (110, 90), (1, 30)])
def test_loops_find_the_same_boundaries(size):
    masks = truth(num_images=2, size=size)
    masks = masks.repeat(3, axis=2)[:, :, : size[1]] if size[0] > 50 else masks
    masks[0][masks[0] == 3] = 0
    masks[:, :, size[1] // 2 :][masks[:, :, size[1] // 2 :] == VOID] = 1  # with as much void as above little is left
    predictions = np.where(np.random.default_rng(6).random(masks.shape) < 0.02, 2, np.roll(masks, 1, axis=2))
    predictions = np.maximum(predictions, 0)
    expected = [
        [naive_boundary_f1(p, mask, label) for label in range(4)] for p, mask in zip(predictions, masks, strict=True)
    ]
    assert boundary_f1(predictions, masks, 4) == pytest.approx(np.array(expected), nan_ok=True)
    assert 0 < np.nanmean(expected) < 1


def test_boundaries_at_void_pixels_and_at_the_rim_of_the_image_do_not_count():
    mask = np.zeros((1, 9, 9), dtype=np.int64)
    mask[:, :, 5:] = 1
    mask[:, :, 4] = VOID  # the classes meet in void alone
    assert np.isnan(boundary_f1(mask, mask, 2)).all()
    mask[:, 3:, 4] = 0  # they meet in rows 3 to 8, of which the first touches void
    wrong = mask.copy()
    wrong[:, 3, 4] = 1
    assert boundary_f1(wrong, mask, 2).tolist() == [[1.0, 1.0]]
    wrong[:, 5, 4] = 1  # not beside void
    assert (boundary_f1(wrong, mask, 2) < 1).all()
    assert boundary_f1(np.zeros_like(mask), mask, 2).tolist() == [[0.0, 0.0]]


def test_mean_of_the_boundaries():
    nan = math.nan
    scores = np.array([[1.0, 0.5, nan], [nan, nan, nan], [0.2, nan, nan]])
    assert boundary_f1_sums(scores).value == pytest.approx((0.75 + 0.2) / 2)
    with pytest.raises(ValueError, match="no boundary in any image"):
        boundary_f1_sums(np.full((2, 3), nan))


@pytest.mark.parametrize("size", [(9, 11), (40, 31)])
def test_a_mask_has_a_boundary_where_a_perfect_answer_is_measured(size):
    masks = truth(12, size)
    masks[:4] = VOID
    masks[4:8] = np.where(masks[4:8] == 0, VOID, 1)
    said = [has_boundary(mask) for mask in masks]
    measured = boundary_f1(np.where(masks == VOID, 0, masks), masks, 4)
    assert said == [bool((scores == 1).any()) for scores in measured]
    assert not any(said[:4]) and all(said[8:])


def test_golden_of_the_constant():
    """Class 1 has 6 of 9 pixels; of two classes that occur, one has an IoU of 0."""
    confusion = np.zeros((2, 3, 3), dtype=np.int64)
    confusion[0, 1], confusion[1, 0] = [1, 2, 3], [1, 2, 0]
    constant = constant_iou_sums(confusion)
    assert constant.value == pytest.approx(6 / 9 / 2)
    assert constant.finish(constant.terms @ np.array([[2.0], [1.0]]))[0] == pytest.approx(12 / 15 / 2)


def all_metrics(logits, masks):
    sums = pixel_sums(logits, torch.from_numpy(masks))
    outlines = boundary_f1(logits.argmax(dim=1).numpy(), masks, logits.shape[1])
    by_class = {f"iou_{label}": metric for label, metric in enumerate(class_iou_sums(sums.confusion))}
    return pixel_metrics(sums) | by_class | {"boundary_f1": boundary_f1_sums(outlines)}


def hard_truth():
    """A class in one image alone, one that is never true, and an image of void: resamples lack all of it."""
    masks = truth(num_images=7, classes=5)
    masks[masks == 4] = 3
    masks[1:][masks[1:] == 2] = 0
    masks[3] = VOID
    masks[4, :, :] = np.where(np.arange(masks.shape[2]) < 8, 0, 1)  # boundaries that void does not hide
    return masks


def test_a_resample_measures_anew():
    masks, num_resamples = hard_truth(), 40
    models = [answers(masks, 5, seed) for seed in (1, 2)]
    metrics = [all_metrics(logits, masks) for logits in models]
    drawn = bootstrap_differences(metrics[:1], metrics[1:], num_resamples=num_resamples, seed=7)
    images = np.random.default_rng(7).integers(0, len(masks), size=(num_resamples, len(masks)))  # as drawn there
    assert any(0 not in resample for resample in images)
    for number, resample in enumerate(images):
        one, other = (all_metrics(logits[resample], masks[resample]) for logits in models)
        for name in metrics[0]:
            assert drawn[name][0, number] == pytest.approx(one[name].value - other[name].value, abs=1e-9), name


def test_swapping_models_moves_whole_images():
    masks = hard_truth()
    models = [answers(masks, 5, seed) for seed in (1, 2)]
    metrics = [all_metrics(logits, masks) for logits in models]
    drawn = swapped_differences(metrics[:1], metrics[1:], num_resamples=20, seed=8)
    swaps = np.random.default_rng(8).integers(0, 2, size=(len(masks), 20), dtype=np.int8).astype(bool)
    for number, is_swapped in enumerate(swaps.T):
        order = torch.from_numpy(is_swapped)[:, None, None, None]
        one = all_metrics(torch.where(order, models[1], models[0]), masks)
        other = all_metrics(torch.where(order, models[0], models[1]), masks)
        for name in metrics[0]:
            assert drawn[name][0, number] == pytest.approx(one[name].value - other[name].value, abs=1e-9), name


def test_a_better_model_is_found_better_and_an_equal_one_equal():
    masks = truth(num_images=40)
    good, bad, same = (
        all_metrics(answers(masks, seed=seed, skill=s), masks) for seed, s in ((1, 3.0), (2, 1.5), (1, 3.0))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared = compare_metrics([good], [bad], num_resamples=500, seed=9)
        equal = compare_metrics([good, good], [same, same], num_resamples=200, seed=9)
    assert all(compared[name].low > 0 for name in ("miou", "pixel_accuracy", "mean_class_accuracy", "iou_0"))
    assert compared["nll"].high < 0
    assert all(compared[name].p_value < 0.01 for name in ("miou", "nll", "pixel_accuracy"))
    assert all((one.difference, one.low, one.high, one.p_value) == (0, 0, 0, 1) for one in equal.values())


@pytest.mark.parametrize(
    ("logits", "masks", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=torch.int64), "scale the logits"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64), "expected \\(images, classes"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), "at least 2 classes"),
        (torch.full((2, 3, 4, 4), math.nan), torch.zeros(2, 4, 4, dtype=torch.int64), "NaN or infinite logits"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), "masks of type float32"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 3), "got masks from 0 to 3; expected 0 to 2"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), -2), "got masks from -2 to 0; expected 0 to 2"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64), "at least one pixel"),
    ],
)
def test_what_does_not_fit_is_refused(logits, masks, message):
    with pytest.raises(ValueError, match=message):
        pixel_sums(logits, masks)


def test_class_maps_that_do_not_fit_are_refused():
    masks = np.zeros((1, 2, 2), dtype=np.int64)
    for measure in (confusion_per_image, boundary_f1):
        with pytest.raises(ValueError, match="got predictions from 0 to 2; expected 0 to 1"):
            measure(masks + 2, masks, 2)
        with pytest.raises(ValueError, match="scale the predictions"):
            measure(masks[:, :1], masks, 2)


def test_void_alone_is_refused():
    sums = pixel_sums(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), VOID))
    for measure in (mean_iou_sums, mean_class_accuracy_sums, class_iou_sums, class_ious):
        with pytest.raises(ValueError, match="void pixels alone"):
            measure(sums.confusion)
    with pytest.raises(ValueError, match="void pixels alone"):
        pixel_metrics(sums)
    with pytest.raises(ValueError, match="no batch"):
        join_sums([])
