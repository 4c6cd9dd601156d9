"""The one trainer on a dense task: the same trajectories however it is computed, and what is measured on the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_toy import VAL, create_dense_model, create_dense_trainer, dense_split, grpo
from test_same_trajectory import assert_close
from toy_training import OBJECTIVE, are_equal, weights_of

from grpo_rm.checkpoint import load_model
from grpo_rm.dense_inference import pixel_logits, window_starts
from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_sites import site_targets, upsample
from grpo_rm.devices import create_accelerator
from grpo_rm.learner import Learner
from grpo_rm.losses import GrpoRmLoss, cross_entropy_loss
from grpo_rm.masks import VOID
from grpo_rm.model import VisionModel
from grpo_rm.recipe import Recipe
from grpo_rm.sized_batches import SizedBatches
from grpo_rm.task import CLASSIFICATION, Segmentation, balanced_weights
from grpo_rm.trainer import Interrupted
from grpo_rm.transforms import decode

neighbors = GrpoRmLoss(replace(OBJECTIVE, neighbor_weight=1.0))
BALANCED = Segmentation(4, site_stride=2, class_weights=torch.tensor([0.5, 2.0]))


def train(checkpoints, loss=grpo, **options):
    trainer = create_dense_trainer(checkpoints, loss, **options)
    trainer.fit()
    return weights_of(trainer.model), trainer.history


# trajectories


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize(
    "how", [{"accumulation": 4}, {"accumulation": 5}, {"channels_last": True}, {"workers": 2}], ids=str
)
def test_how_it_is_computed_does_not_matter(tmp_path, reference, how):
    """Every seventh mask is void as a whole: micro-batches count by the images that they have."""
    assert_close(train(tmp_path, **how), reference)


def test_that_test_can_fail(tmp_path, reference):
    with pytest.raises(AssertionError):
        assert_close(train(tmp_path, learning_rate=0.0501), reference)


@pytest.mark.parametrize("aggregation", ["per_image", "per_site", "constant"])
def test_micro_batches_add_up_whatever_a_site_counts(tmp_path, aggregation):
    options = {"aggregation": aggregation, "old_policy_steps": 2, "use_reference": True, "memory_size": 200}
    recipe = {"num_iterations": 2, "task": BALANCED, "options": options}
    cut, whole = (train(tmp_path / str(parts), neighbors, accumulation=parts, **recipe) for parts in (3, 1))
    assert_close(cut, whole)


@pytest.mark.parametrize("stops", [[1], [3], [2, 5]])
def test_resumed_equals_uninterrupted(tmp_path, stops):
    def create(checkpoints, stop=lambda trainer: False):  # noqa: ARG005
        options = {"should_stop": lambda: stop(trainer), "old_policy_steps": 2, "memory_size": 200}
        recipe = {"task": BALANCED, "options": options, "ema_decay": 0.8}
        trainer = create_dense_trainer(checkpoints, neighbors, model=create_dense_model(drop_path_rate=0.5), **recipe)
        return trainer

    whole = create(tmp_path / "whole")
    best = whole.fit()
    for step in stops:
        with pytest.raises(Interrupted, match=f"at step {step} "):
            create(tmp_path / "resumed", lambda trainer, step=step: trainer.step == step).fit()
    resumed = create(tmp_path / "resumed")
    assert are_equal(weights_of(resumed.fit()), weights_of(best))
    assert are_equal(weights_of(resumed.model), weights_of(whole.model)) and resumed.history == whole.history


def test_another_task_starts_anew(tmp_path, capsys):
    create_dense_trainer(tmp_path, epochs=1).fit()
    create_dense_trainer(tmp_path, epochs=1, task=BALANCED)
    assert "starts anew; the state in" in capsys.readouterr().out


def test_the_best_model_is_kept_by_miou(tmp_path):
    trainer = create_dense_trainer(tmp_path, epochs=3)
    best = trainer.fit()
    assert isinstance(best, DenseModel) and not best.training
    assert trainer.best["val_miou"] == max(row["val_miou"] for row in trainer.history)
    assert are_equal(weights_of(load_model(tmp_path / f"epoch-{trainer.best['epoch']}")), weights_of(best))
    assert trainer.history[-1]["val_miou"] > 0.6  # it learns


# one place is one image


class OnePlace(VisionModel):
    """Classifies images of 2 x 2 pixels by a linear layer; as a dense model, in one place of stride 2."""

    def __init__(self, *, is_dense):
        super().__init__(create_dense_model().config)
        torch.manual_seed(0)
        self.encoder, self.head, self.is_dense = torch.nn.Flatten(), torch.nn.Linear(4, 3), is_dense

    def forward(self, images):
        embedding = self.encoder(self.normalize(images))
        logits = self.head(embedding)
        return (embedding[..., None, None], logits[..., None, None]) if self.is_dense else (embedding, logits)


@pytest.mark.parametrize("loss", [cross_entropy_loss, grpo, neighbors])
@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"accumulation": 3}], ids=str)
def test_steps_on_images_of_one_place_are_those_of_classification(loss, settings):
    """Statistics and weights are equal to the last bit."""
    images = torch.randint(0, 256, (8, 2, 2, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, VOID, 2, 0, 0])
    masks = labels.view(-1, 1, 1).expand(-1, 2, 2)
    recipe = Recipe(epochs=1, optimizer="sgd", learning_rate=0.1, warmup_epochs=0, **settings)

    def learn(targets, task):
        model = OnePlace(is_dense=task is not CLASSIFICATION)
        policies = {"old_policy_steps": 2, "use_reference": True, "memory_size": 12}
        learner = Learner(model, loss, recipe, create_accelerator("fp32", cpu=True), steps=8, task=task, **policies)
        learner.prepare()
        return [step for _ in range(4) for step in learner.learn(images, targets)], model.head.weight

    (flat, flat_weight), (dense, dense_weight) = (
        learn(labels, CLASSIFICATION),
        learn(masks, Segmentation(2, site_stride=2)),
    )
    assert torch.equal(flat_weight, dense_weight)
    for one, other in zip(flat, dense, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((16, 16), [0, 1, 2, 3], [0, 1, 2, 3]),
        ((72, 128), [1, 4, 7, 10, 13, 16], [2, 6, 10, 14, 18, 22, 26, 30]),
    ],
)
def test_places_are_spread_and_have_their_labels(size, rows, columns):
    """At stride 4 there are 18 x 32 places in the larger image: every third row and every fourth column is taken."""
    masks = torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(0))
    task = Segmentation(4)
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    taken = task.place_embeddings(grid.expand(2, 2, height, width))
    targets = task.place_targets(masks)
    assert targets.shape == taken.shape[:-1]
    assert taken[0, :, 0, 0].tolist() == rows
    assert taken[0, 0, :, 1].tolist() == columns
    everywhere = site_targets(masks, 4)
    assert torch.equal(targets[1], everywhere[1][tuple(taken[1].movedim(-1, 0))])


# what is measured


def naive_metrics(model, split):
    confusion, nll = np.zeros((2, 2)), []
    for file, mask in zip(split.files, split.masks, strict=True):
        pixels = torch.from_numpy(np.array(decode(file, channels=1)))
        images, masks = pixels[None, :, :, None], torch.from_numpy(mask.astype(np.int64))[None]
        logits = upsample(model(images)[1], masks.shape[1:], model.stride)
        valid = masks != VOID
        nll += F.cross_entropy(logits, masks, ignore_index=VOID, reduction="none")[valid].tolist()
        for truth, predicted in zip(masks[valid].tolist(), logits.argmax(dim=1)[valid].tolist(), strict=True):
            confusion[truth, predicted] += 1
    hits = np.diag(confusion)
    ious = hits / (confusion.sum(axis=0) + confusion.sum(axis=1) - hits)
    return {"val_miou": ious.mean(), "val_pixel_accuracy": hits.sum() / confusion.sum(), "val_nll": np.mean(nll)}


def test_validation_is_over_every_pixel_of_whole_images(tmp_path):
    trainer = create_dense_trainer(tmp_path)
    model = trainer.model.eval()
    with torch.no_grad():
        assert trainer.validator.measure(model, epoch=1)[0] == pytest.approx(naive_metrics(model, VAL), rel=1e-5)


def test_a_collapsed_policy_is_told_of(tmp_path, capsys):
    trainer = create_dense_trainer(tmp_path, learning_rate=1e-9)
    with torch.no_grad():
        trainer.model.head.classify.weight.zero_()
        trainer.model.head.classify.bias.copy_(torch.tensor([20.0, 0.0]))
    trainer.fit()
    said = capsys.readouterr().out
    assert said.count("collapsed: it is certain of 'back' for 100% of the validation pixels") == 1


def test_batches_of_one_size_cover_the_split_once():
    split = dense_split(23, 3, sizes=[(16, 16), (13, 21), (9, 9)])
    rows = []
    for rank in range(3):
        batches = SizedBatches(split, channels=1, rank=rank, processes=3)
        images = [image for images, _ in batches.epoch(0) for image in images]
        assert len(images) == len(batches.rows) and batches.length == 23
        for image, row in zip(images, batches.rows, strict=True):
            assert image.shape[:2] == split.masks.size(row) == split.masks[row].shape
        assert sum(1 for _ in batches.epoch(0)) <= len(batches)
        rows += batches.rows
    assert sorted(rows) == list(range(23))


def test_batches_are_cut_by_their_logits(monkeypatch):
    monkeypatch.setattr("grpo_rm.sized_batches.ELEMENTS", 16 * 16 * 2 * 3)  # three images of two classes
    sizes = [len(images) for images, _ in SizedBatches(dense_split(7, 3), channels=1, workers=1).epoch(0)]
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(("size", "window"), [((16, 16), 8), ((13, 21), 9), ((13, 21), 16), ((5, 30), 8)])
def test_sliding_windows_average_what_covers_a_pixel(size, window):
    model = create_dense_model().eval()
    images = torch.randint(0, 256, (2, *size, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(2, 2, *size), torch.zeros(size)
    with torch.no_grad():
        for top in window_starts(size[0], window):
            for left in window_starts(size[1], window):
                part = images[:, top : top + window, left : left + window]
                logits = upsample(model(part)[1], part.shape[1:3], model.stride)
                total[..., top : top + window, left : left + window] += logits
                count[top : top + window, left : left + window] += 1
    assert count.min() >= 1
    torch.testing.assert_close(pixel_logits(model, images, window=window), total / count)


@pytest.mark.parametrize(("length", "window", "starts"), [(16, 8, [0, 4, 8]), (8, 8, [0]), (5, 8, [0]), (9, 8, [0, 1])])
def test_windows_overlap_by_half(length, window, starts):
    assert window_starts(length, window) == starts


def test_windows_as_large_as_the_image_are_the_image():
    model = create_dense_model().eval()
    images = torch.randint(0, 256, (2, 13, 21, 1), dtype=torch.uint8)
    assert torch.equal(pixel_logits(model, images, window=21), pixel_logits(model, images))


# weights of classes


def test_weights_balance_classes():
    pixels = torch.tensor([800, 150, 50, 0])
    shares = pixels / pixels.sum()
    assert balanced_weights(pixels, 0.0) is None
    inverse = balanced_weights(pixels, 1.0)
    torch.testing.assert_close(inverse, torch.tensor([1 / 2.4, 1 / 0.45, 1 / 0.15, 0.0]))
    between = balanced_weights(pixels, 0.5)
    torch.testing.assert_close((shares * between).sum(), torch.tensor(1.0))
    torch.testing.assert_close(between[1] / between[0], torch.tensor((800 / 150) ** 0.5))


def test_a_site_counts_by_its_class():
    weights = torch.tensor([[[0.5, 0.25], [0.0, 0.25]]])
    targets = torch.tensor([[[0, 1], [VOID, 1]]])
    assert BALANCED.weigh(weights, targets).tolist() == [[[0.25, 0.5], [0.0, 0.5]]]
    assert Segmentation(4).weigh(weights, targets) is weights


def test_statistics_stay_means_whatever_classes_weigh(tmp_path):
    trainer = create_dense_trainer(
        tmp_path, task=Segmentation(4, class_weights=torch.tensor([0.1, 9.0])), accumulation=3
    )
    trainer.fit()
    for row in trainer.history:
        assert 0 <= row["rewards/accuracy/mean"] <= 1
        assert 0 <= row["entropy"] <= np.log(2)
        assert -1 <= row["rewards/uniformity/mean"] <= 0
