"""What the settings of the engine do to a step: old policies, averages, frozen blocks, layers that learn slower."""

import copy
import math

import numpy as np
import pytest
import torch
from toy_training import TRAIN, VAL, are_equal, augmented, batches_of, create_model, create_trainer, grpo, weights_of

from grpo_rm.datasets import Split
from grpo_rm.devices import create_accelerator
from grpo_rm.losses import LossOutput, cross_entropy_loss
from grpo_rm.recipe import SCHEDULES


class Recorder:
    """A loss that remembers the sites it was given."""

    def __init__(self, loss=grpo):
        self.loss, self.sites = loss, []

    def __call__(self, sites):
        self.sites.append(sites)
        return self.loss(sites)

    @property
    def largest_log_ratios(self):
        """How far each step's policy is from its old policy."""
        return [
            0.0
            if sites.old_logits is None
            else (sites.logits.log_softmax(1) - sites.old_logits.log_softmax(1)).abs().max().item()
            for sites in self.sites
        ]


def record(tmp_path, *, options=None, model=None, **recipe):
    recorder = Recorder()
    trainer = create_trainer(tmp_path, recorder, options=options, model=model or create_model("test_vit"), **recipe)
    trainer.fit()
    return trainer, recorder


def test_a_fresh_old_policy_is_the_present_one(tmp_path):
    _, recorder = record(tmp_path)
    assert all(sites.old_logits is None and sites.reference_logits is None for sites in recorder.sites)


def test_iterations_share_a_batch_and_its_old_policy(tmp_path):
    trainer, recorder = record(tmp_path, num_iterations=3)
    assert trainer.step == len(recorder.sites) == 2 * 3 * 3
    assert [row["step"] for row in trainer.history] == [9, 18]
    ratios = recorder.largest_log_ratios
    for first in range(0, 18, 3):
        batch = recorder.sites[first : first + 3]
        assert all(torch.equal(sites.old_logits, batch[0].logits) for sites in batch)
        assert all(torch.equal(sites.targets, batch[0].targets) for sites in batch)
        assert ratios[first] == 0
        assert ratios[first + 1] > 0


def test_a_snapshot_is_renewed_every_n_batches(tmp_path):
    _, recorder = record(tmp_path, options={"old_policy_steps": 2}, learning_rate=1e-2)
    assert [ratio > 1e-4 for ratio in recorder.largest_log_ratios] == [False, True] * 3


def test_dropout_cancels_in_the_ratio(tmp_path):
    """Right after a renewal the snapshot is the policy, so it says the same, dropout or not."""
    model = create_model("test_vit", depth=2, drop_path_rate=0.7)
    _, recorder = record(tmp_path, options={"old_policy_steps": 3}, model=model)
    ratios = recorder.largest_log_ratios
    assert ratios[0] == ratios[3] == 0
    assert min(ratios[1:3]) > 0


@pytest.mark.parametrize("encoder", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("frozen", [{"freeze_encoder": True}, {"freeze_blocks": 1}])
def test_what_is_frozen_rests_in_the_snapshot_too(tmp_path, encoder, frozen):
    """Its dropout and batch statistics: else the old policy would not be the policy it was copied from."""
    model = create_model(encoder, drop_path_rate=0.7, **({"depth": 2} if encoder == "test_vit" else {}))
    _, recorder = record(tmp_path, options={"old_policy_steps": 3}, model=model, **frozen)
    ratios = recorder.largest_log_ratios
    assert max(ratios[0], ratios[3]) < 1e-5
    assert min(ratios[1], ratios[4]) > 1e-4


def test_a_snapshot_with_iterations_is_counted_in_batches(tmp_path):
    _, recorder = record(tmp_path, options={"old_policy_steps": 3}, num_iterations=2, epochs=2)
    assert [step for step, ratio in enumerate(recorder.largest_log_ratios) if ratio == 0] == [0, 6]


def test_the_reference_is_the_initial_model(tmp_path):
    model = create_model()  # with batch normalization, which the reference has in evaluation mode
    initial = copy.deepcopy(model).eval()
    seen = []
    trainer = create_trainer(tmp_path, recorder := Recorder(), model=model, options={"use_reference": True})
    model.register_forward_pre_hook(lambda module, images: seen.append(images[0]) if module.training else None)
    trainer.fit()
    with torch.no_grad():
        for images, sites in zip(seen, recorder.sites, strict=True):
            torch.testing.assert_close(sites.reference_logits, initial(images)[1])
    assert not are_equal(weights_of(initial), weights_of(model))


def test_the_moving_average_is_what_is_validated_and_saved(tmp_path):
    averaged = create_model("test_vit")
    reports = []
    trainer = create_trainer(tmp_path, model=create_model("test_vit"), ema_decay=0.6)

    def average(step, metrics):  # noqa: ARG001
        # nothing is averaged at the first step, then the decay warms up to its value
        decay = 0 if step == 1 else min(0.6, 1 - step ** (-2 / 3))
        for mine, weight in zip(averaged.state_dict().values(), trainer.model.state_dict().values(), strict=True):
            mine.lerp_(weight, 1 - decay)
        reports.append(step)

    trainer.on_step = average
    best = trainer.fit()
    assert reports == [1, 2, 3, 4, 5, 6]
    for name, value in weights_of(averaged).items():
        torch.testing.assert_close(trainer.learner.result.state_dict()[name], value)
    assert trainer.best["epoch"] in (1, 2)
    if trainer.best["epoch"] == 2:
        assert are_equal(weights_of(best), weights_of(trainer.learner.result))
    assert not are_equal(weights_of(trainer.model), weights_of(trainer.learner.result))


@pytest.mark.parametrize(("encoder", "stem", "first", "second"), [
    ("test_vit", "patch_embed", "blocks.0.", "blocks.1."),
    ("test_resnet", "conv1", "layer1.0.", "layer2.0."),
])  # fmt: skip
def test_the_first_blocks_can_be_frozen(tmp_path, encoder, stem, first, second):
    arguments = {"depth": 3} if encoder == "test_vit" else {}
    model = create_model(encoder, drop_path_rate=0.9, **arguments)
    before = weights_of(model)
    create_trainer(tmp_path, model=model, freeze_blocks=1, learning_rate=1e-2).fit()
    changed = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith((f"encoder.{stem}", f"encoder.{first}", "encoder.bn1"))}
    assert frozen and not frozen & changed  # statistics of batch normalization too
    assert any(name.startswith(f"encoder.{second}") for name in changed) and "head.weight" in changed


def test_too_many_frozen_blocks(tmp_path):
    with pytest.raises(ValueError, match="freeze_blocks is 9, but the encoder has 1 blocks"):
        create_trainer(tmp_path, model=create_model("test_vit"), freeze_blocks=9)


def test_nothing_left_to_train(tmp_path):
    model = create_model("test_vit")
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is left to train: freeze fewer blocks"):
        create_trainer(tmp_path, model=model, freeze_encoder=True)


def test_earlier_layers_learn_slower(tmp_path):
    model = create_model("test_vit", depth=3)
    trainer = create_trainer(tmp_path, model=model, layer_decay=0.5, warmup_epochs=0, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"] / 3e-3, group["weight_decay"])
        for group in trainer.learner.optimizer.param_groups
        for p in group["params"]
    }
    assert set(rates) == set(names.values())
    assert rates["head.weight"] == rates["encoder.blocks.2.mlp.fc1.weight"] == (1, 0.3)
    assert rates["encoder.blocks.1.mlp.fc1.weight"] == (0.5, 0.3)
    assert rates["encoder.blocks.0.mlp.fc1.weight"] == (0.25, 0.3)
    assert rates["encoder.patch_embed.proj.weight"] == (0.125, 0.3)
    assert rates["encoder.pos_embed"] == (0.125, 0)
    assert rates["encoder.norm.weight"] == rates["head.bias"] == (1, 0)
    trainer.fit()
    assert trainer.history[0]["learning_rate"] == pytest.approx(3e-3 * (1 + math.cos(math.pi * 2 / 6)) / 2)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [0.5, 1, 1, *[(1 + math.cos(math.pi * step / 7)) / 2 for step in range(1, 7)]]),
        ("poly", [0.5, 1, 1, *[1 - step / 7 for step in range(1, 7)]]),
        ("step", [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_schedules(tmp_path, schedule, factors):
    """Nine steps, of which a half epoch (1.5, rounded to 2) warms up."""
    rates = []
    options = {"on_step": lambda step, metrics: rates.append(metrics["learning_rate"] / 3e-3)}  # noqa: ARG005
    create_trainer(tmp_path, schedule=schedule, epochs=3, warmup_epochs=0.5, options=options).fit()
    assert rates == pytest.approx([1 / 3, 2 / 3, *factors[2:]])


def test_every_schedule_and_an_unknown_one(tmp_path):
    for schedule in SCHEDULES:
        create_trainer(tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="schedule is 'cosin', expected one of cosine, tanh"):
        create_trainer(tmp_path, schedule="cosin")


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "lion"])
def test_optimizers_of_timm_by_name(tmp_path, optimizer):
    trainer = create_trainer(tmp_path, optimizer=optimizer)
    before = weights_of(trainer.model)
    trainer.fit()
    assert not are_equal(before, weights_of(trainer.model))


def test_an_unknown_optimizer(tmp_path):
    with pytest.raises(ValueError, match=r"timm has no optimizer 'adamv'; nearest: .*adamw"):
        create_trainer(tmp_path, optimizer="adamv")


@pytest.mark.parametrize("name", ["adahessian", "fusedadam", "bnbadam"])
def test_optimizers_that_cannot_be_had(tmp_path, name):
    with pytest.raises(ValueError, match=f"optimizer '{name}' (cannot be created|needs second derivatives)"):
        create_trainer(tmp_path, optimizer=name)


def test_patience_counts_epochs_that_measure(tmp_path):
    name = "val_knn_top1_k20_t0.07"
    trainer = create_trainer(tmp_path, epochs=9, knn_every=3, patience=2, monitor=name, learning_rate=1e-9)
    trainer.fit()
    assert [row["epoch"] for row in trainer.history if name in row] == [3, 6, 9]


def test_several_labels_an_image(tmp_path):
    """Memberships instead of labels, from the batch to the validation; every image is of the second class as well."""
    trainer = create_trainer(tmp_path, grpo, model=create_model("test_vit"), epochs=4)

    def with_members(split):
        return Split(split.ids, split.files, np.stack([split.labels == 0, np.full(len(split.labels), True)], axis=1))

    trainer.train = batches_of(with_members(TRAIN), augmented, is_training=True)
    trainer.validator.val = batches_of(with_members(VAL))
    trainer.fit()
    assert trainer.history[-1]["val_accuracy"] == 1
    assert trainer.history[-1]["rewards/accuracy/mean"] > 0.7


def test_patience_ends_a_training_without_progress(tmp_path, capsys):
    def still(sites):
        return LossOutput(0 * sites.logits.sum(), {})

    trainer = create_trainer(tmp_path, still, epochs=9, patience=2, weight_decay=0.0, model=create_model("test_vit"))
    trainer.fit()
    assert len(trainer.history) == 3
    assert trainer.best["epoch"] == 1
    assert "stops early: val_accuracy is no better than 2 epochs ago" in capsys.readouterr().out


def test_the_best_models_are_kept(tmp_path):
    trainer = create_trainer(tmp_path, epochs=5, keep_best=2, monitor="val_nll", learning_rate=1e-2)
    trainer.fit()
    ranked = sorted(trainer.history, key=lambda row: row["val_nll"])
    kept = {f"epoch-{row['epoch']}" for row in ranked[:2]}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"last", "state.pt"}
    assert trainer.best is ranked[0]


def test_nearest_neighbors_are_measured_every_n_epochs(tmp_path):
    name = "val_knn_top1_k20_t0.07"
    trainer = create_trainer(tmp_path, epochs=5, knn_every=2, monitor=name)
    trainer.fit()
    assert [name in row for row in trainer.history] == [False, True, False, True, True]
    assert all(0 <= row[name] <= 1 for row in trainer.history if name in row)
    assert trainer.best["epoch"] in (2, 4, 5)


@pytest.mark.parametrize(("recipe", "said"), [
    ({"monitor": "val_f1"}, "monitor is 'val_f1', expected a .*: val_accuracy, val_nll; with knn_every also"),
    ({"monitor": "val_f1", "knn_every": 1}, "val_nll, val_knn_top1_k20_t0.07$"),
])  # fmt: skip
def test_an_unknown_monitor(tmp_path, recipe, said):
    with pytest.raises(ValueError, match=said):
        create_trainer(tmp_path, **recipe)


def test_neighbors_need_a_gallery(tmp_path):
    with pytest.raises(ValueError, match="need the training images: give `gallery`"):
        create_trainer(tmp_path, knn_every=1, options={"gallery": None})


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match=r'precision is "fp16", which needs a GPU.*use "bf16" or "fp32"'):
        create_accelerator("fp16", cpu=True)


def constant(sites):
    """A loss that makes the first output certain, whatever the image."""
    return LossOutput((sites.weights * (sites.logits[:, 1] - sites.logits[:, 0])).sum(), {})


def test_a_collapsed_policy_is_told_of_once(tmp_path, capsys):
    create_trainer(tmp_path, constant, epochs=4, learning_rate=0.1).fit()
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "the policy has collapsed: it is certain of 'left' for 100% of the validation images" in said[0]


def test_rewards_without_a_signal_are_told_of_once(tmp_path, capsys):
    def silent(sites):
        output = cross_entropy_loss(sites)
        return LossOutput(output.loss, output.stats | {"frac_reward_zero_std": torch.ones(())})

    create_trainer(tmp_path, silent, epochs=3).fit()
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "the rewards carry no signal: at 100% of the sites every output is rewarded the same" in said[0]


def test_the_largest_of_an_epoch_is_reported(tmp_path):
    steps = []
    options = {"on_step": lambda step, metrics: steps.append(metrics["max_abs_logit"])}  # noqa: ARG005
    trainer = create_trainer(tmp_path, accumulation=2, options=options)
    trainer.fit()
    assert [row["max_abs_logit"] for row in trainer.history] == [max(steps[:3]), max(steps[3:])]


def test_the_parts_of_the_gallery_cover_it():
    parts = [batches_of(TRAIN, rank=rank, processes=5) for rank in range(5)]
    labels = torch.cat([targets for part in parts for _, targets in part.epoch(0)])
    assert labels.tolist() == TRAIN.labels.tolist()
