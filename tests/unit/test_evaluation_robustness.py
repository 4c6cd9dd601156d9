"""Accuracy under corruptions, against loops, by hand, and in any batches."""

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import CPU, TRAIN, batches_of, create_model

from grpo_rm.datasets import Split
from grpo_rm.evaluation.comparison import paired_bootstrap
from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from grpo_rm.evaluation.robustness import (
    choose_images,
    corrupted_answers,
    mean_corruption_error,
    robustness_metrics,
    robustness_rows,
    robustness_scores,
)

NAMES = [*(f"robustness/{name}" for name in CORRUPTIONS), "robustness/accuracy"]


def answers_of(wrong, images=10):
    """As many wrong answers under each corruption as said."""
    answers = np.ones((len(CORRUPTIONS), len(STRENGTHS) * images), np.bool_)
    for row, count in zip(answers, wrong, strict=True):
        row[:count] = False
    return answers.reshape(len(CORRUPTIONS), len(STRENGTHS), images)


class Parity(nn.Module):
    """Says whether the sum of all pixels is odd: one pixel that differs by one changes its mind."""

    def __init__(self, *, says=1):
        super().__init__()
        self.says = says

    def forward(self, images):
        odd = images.flatten(1).sum(dim=1, keepdim=True) % 2
        return odd.float(), self.says * torch.cat([1 - odd, odd], dim=1).float()


def measured(split=TRAIN, seed=3, batch_size=48, **models):
    batches = batches_of(split, batch_size=batch_size).epoch(0)
    return corrupted_answers(models or {"toy": Parity()}, batches, split.ids, seed=seed, device=CPU)


@pytest.fixture(scope="module")
def toy():
    return measured()["toy"]


def answers_by_hand(model, split=TRAIN, seed=3):
    """One image after the other."""
    answers = np.zeros((len(CORRUPTIONS), len(STRENGTHS), len(split.ids)), np.bool_)
    for place, (images, labels) in enumerate(batches_of(split, batch_size=1).epoch(0)):
        for row, corruption in enumerate(CORRUPTIONS):
            for column, strength in enumerate(STRENGTHS):
                image = corrupt(images[0].numpy(), corruption, strength, seed=seed, image_id=split.ids[place])
                with torch.inference_mode():
                    _, logits = model(torch.from_numpy(image)[None])
                answers[row, column, place] = logits.argmax() == labels[0]
    return answers


@pytest.mark.parametrize("batch_size", [1, 7, 48])
def test_answers_are_those_of_one_image_after_the_other(toy, batch_size):
    assert np.array_equal(toy, answers_by_hand(Parity()))
    assert np.array_equal(toy, measured(batch_size=batch_size)["toy"])
    assert 0.4 < toy.mean() < 0.6


def test_a_model_of_ours():
    split = Split(TRAIN.ids[:6], TRAIN.files[:6], TRAIN.labels[:6])
    model = create_model()
    assert np.array_equal(measured(split, model=model)["model"], answers_by_hand(model.eval(), split))


def test_the_seed_is_that_of_the_noise(toy):
    other = measured(seed=4)["toy"]
    assert not np.array_equal(other[0], toy[0])
    assert np.array_equal(other[1:], toy[1:])


def test_order_and_company_do_not_matter(toy):
    places = [40, 3, 17, 4]
    some = Split([TRAIN.ids[i] for i in places], [TRAIN.files[i] for i in places], TRAIN.labels[places])
    assert np.array_equal(measured(some)["toy"], toy[:, :, places])


def test_models_are_measured_as_if_alone_and_keep_their_mode(toy):
    contrary = Parity(says=-1).train()
    together = measured(toy=Parity().eval(), contrary=contrary)
    assert np.array_equal(together["toy"], toy) and np.array_equal(together["contrary"], ~toy)
    assert contrary.training


def test_metrics_are_means_of_the_scores(toy):
    metrics, scores = robustness_metrics(toy, toy), robustness_scores(toy)
    assert list(scores) == NAMES and list(metrics) == [*NAMES, "robustness/mce"]
    for name, values in scores.items():
        assert values.shape == (48,) and values.dtype == np.float64
        assert values.mean() == pytest.approx(metrics[name])
    assert all(type(value) is float for value in metrics.values())
    assert metrics["robustness/accuracy"] == pytest.approx(np.mean([metrics[name] for name in NAMES[:-1]]))
    same = paired_bootstrap(scores["robustness/accuracy"], scores["robustness/accuracy"], num_resamples=100, seed=0)
    assert (same.low, same.difference, same.high, same.num_samples) == (0, 0, 0, 48)


def test_metrics_and_rows_by_hand():
    answers = answers_of([10, 0, 5, 25, 50, 1])  # of 50 each; the first ten are all images of strength 1
    metrics = robustness_metrics(answers, answers)
    assert [metrics[name] for name in NAMES[:-1]] == pytest.approx([0.8, 1, 0.9, 0.5, 0, 0.98])
    assert metrics["robustness/accuracy"] == pytest.approx(4.18 / 6)
    rows = robustness_rows(answers)
    assert [row["strength"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["noise"] for row in rows] == [0, 1, 1, 1, 1]
    assert [row["contrast"] for row in rows] == [0, 0, 0.5, 1, 1]
    assert list(rows[0]) == ["strength", *CORRUPTIONS, "mean"]
    assert robustness_scores(answers)["robustness/brightness"].tolist() == [0.8] * 5 + [1.0] * 5


def test_corruption_error_by_hand():
    reference = answers_of([10, 20, 5, 4, 50, 2])
    assert mean_corruption_error(reference, reference) == 1
    assert mean_corruption_error(answers_of([0] * 6), reference) == 0
    ratios = [0.5, 2, 1, 0, 0.1, 25]
    assert mean_corruption_error(answers_of([5, 40, 5, 0, 5, 50]), reference) == pytest.approx(sum(ratios) / 6)


def test_corruption_error_where_the_reference_makes_none():
    reference = answers_of([0, 10, 10, 10, 10, 10])
    assert mean_corruption_error(reference, reference) == 1
    assert mean_corruption_error(answers_of([3, 10, 10, 10, 10, 10]), reference) == pytest.approx((4 + 5) / 6)
    perfect = answers_of([0] * 6)
    assert mean_corruption_error(perfect, perfect) == 1
    assert mean_corruption_error(answers_of([1] * 6), perfect) == 2


def test_another_mistake_never_lowers_the_corruption_error():
    reference, wrong = answers_of([0, 1, 2, 3, 50, 7]), [0, 0, 1, 3, 20, 9]
    before = mean_corruption_error(answers_of(wrong), reference)
    for place in range(6):
        more = [count + (i == place) for i, count in enumerate(wrong)]
        assert mean_corruption_error(answers_of(more), reference) > before


def test_answers_of_other_images_are_not_compared():
    with pytest.raises(ValueError, match=r"got answers \(6, 5, 9\) and a reference \(6, 5, 10\)"):
        robustness_metrics(answers_of([1] * 6, images=9), answers_of([1] * 6))


@pytest.mark.parametrize("ids", [TRAIN.ids[:-1], [*TRAIN.ids, "one more"]])
def test_ids_fit_the_images(ids):
    batches = batches_of(TRAIN, batch_size=20).epoch(0)
    with pytest.raises(ValueError, match=f"got {len(ids)} ids for 48 images or more; expected one id per image"):
        corrupted_answers({"toy": Parity()}, batches, ids, seed=0, device=CPU)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="expected one id per image, and an image"):
        corrupted_answers({"toy": Parity()}, [], [], seed=0, device=CPU)


def test_a_model_that_diverged_has_no_accuracy():
    model = create_model()
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("nan"))  # the arg-max of NaN would be right for class 0
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        measured(toy=model)


def test_chosen_images_are_few_fixed_and_in_order():
    ids = [f"class/{i}.png" for i in range(1000)]
    chosen = choose_images(ids, limit=100, seed=0)
    assert len(set(chosen)) == 100 and chosen == sorted(chosen)
    assert chosen == choose_images(ids, limit=100, seed=0) != choose_images(ids, limit=100, seed=1)
    assert set(chosen) < set(choose_images(ids, limit=101, seed=0))
    assert choose_images(ids, limit=1000, seed=0) == choose_images(ids, limit=2000, seed=0) == list(range(1000))
    assert 400 < np.mean(chosen) < 600  # 3.5 standard errors


def test_the_choice_depends_on_the_ids_and_not_on_their_order():
    ids = [f"class/{i}.png" for i in range(200)]
    chosen = {ids[i] for i in choose_images(ids, limit=50, seed=0)}
    assert {ids[::-1][i] for i in choose_images(ids[::-1], limit=50, seed=0)} == chosen
    fewer = [name for name in ids if name != min(chosen)]
    assert len({fewer[i] for i in choose_images(fewer, limit=50, seed=0)} - chosen) == 1
