"""The schema of params.yaml: every mistake is found, named, and comes with what was meant."""

import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from grpo_rm.config import TAKEN_NAMES, Config, load_config
from grpo_rm.recipe import Recipe
from pipelines.configure import configure

ROOT = Path(__file__).resolve().parents[2]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(**changes):
    """params.yaml with values at dotted keys, `__` for a dot; ... removes a key."""
    values = deepcopy(PARAMS)
    for name, value in changes.items():
        *parents, key = name.split("__")
        block = values
        for parent in parents:
            block = block[parent]
        if value is ...:
            del block[key]
        else:
            block[key] = value
    return values


@pytest.fixture
def load(tmp_path):
    def write_and_load(values):
        path = tmp_path / "params.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return load_config(path)

    return write_and_load


def segmentation(**changes):
    """params.yaml for segmentation."""
    limits = {name: {"miou": 0} for name in ("thresholds", "min_gain_over_control", "min_gain_over_champion")}
    needed = {"task": "segmentation", "pretrain__monitor": "val_miou", "finetune__monitor": "val_miou"}
    needed |= {f"register__gate__{name}": limit for name, limit in limits.items()}
    return changed(**(needed | {"evaluate__robustness__images": 0} | changes))


def message_of(load, **changes):
    return messages_of(load, changed(**changes))


def messages_of(load, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(values)
    header, *lines = str(caught.value).split("\n  ")
    assert header.endswith(f"params.yaml has {len(lines)} mistake(s):")
    return lines


def test_the_repository_s_parameters_are_valid():
    config = load_config(ROOT / "params.yaml")
    assert isinstance(config, Config)
    assert config.finetune.learning_rate == PARAMS["finetune"]["learning_rate"]
    assert config.register_.gate.thresholds == PARAMS["register"]["gate"]["thresholds"]
    assert config.model_dump(by_alias=True) == PARAMS


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("sed", "sed: unknown key; did you mean seed?"),
        ("registr", "registr: unknown key; did you mean register?"),
        ("register_", "register_: unknown key; did you mean register?"),
        ("data__sorce", "data.sorce: unknown key; did you mean source?"),
        ("encoder__image_sise", "encoder.image_sise: unknown key; did you mean image_size?"),
        ("pretrain__epoch", "pretrain.epoch: unknown key; did you mean epochs?"),
        ("finetune__lerning_rate", "finetune.lerning_rate: unknown key; did you mean learning_rate?"),
        ("finetune__augmentation__mincrop", "finetune.augmentation.mincrop: unknown key; did you mean min_crop?"),
        ("objective__epsilon", "objective.epsilon: unknown key; did you mean eps?"),
        ("objective__rewards__acuracy", "objective.rewards.acuracy: unknown reward; did you mean accuracy?"),
        ("register__gate__treshold", "register.gate.treshold: unknown key; did you mean thresholds?"),
        *(
            (
                f"register__gate__{former}",
                f"register.gate.{former}: unknown key; expected one of thresholds, min_gain_over_control, "
                "min_gain_over_champion",
            )
            for former in ("min_accuracy", "margin")
        ),
        ("tracking__zzz", "tracking.zzz: unknown key; expected one of experiment, system_metrics_interval"),
    ],
)
def test_an_unknown_key_names_the_nearest(load, key, line):
    assert message_of(load, **{key: 1}) == [line]


@pytest.mark.parametrize("key", ["seed", "objective", "finetune__epochs", "register__gate__thresholds"])
def test_a_missing_key(load, key):
    (line,) = message_of(load, **{key: ...})
    assert line.startswith(f"{key.replace('__', '.')}: missing; add it")


def test_every_key_is_required(load):
    def leaves(block, path=()):
        for key, value in block.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))

    for path in leaves(PARAMS):
        if path[:2] == ("objective", "rewards") and len(path) > 2:
            continue  # a reward is there or not
        assert len(message_of(load, **{"__".join(path): ...})) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 0.5),
        ("task", "detection"),
        ("data__source", "folder:"),
        ("data__source", "digit"),
        ("data__source", "huggingface:"),
        ("data__source", "digits:8"),
        ("data__source", "kaggle:mnist"),
        ("data__val_fraction", 0),
        ("data__val_fraction", 1),
        ("data__test_fraction", -0.1),
        ("data__resize_on_prepare", 0),
        ("data__void_index", 256),
        ("data__expectations__decodable__min_share", 1.1),
        ("data__expectations__copies__severity", "error"),
        ("data__expectations__class_count__min_images", 0),
        ("data__expectations__classes__names", ["cat"]),
        ("data__expectations__imbalance__max_ratio", 0.5),
        ("data__expectations__drift__max_ks", 1.1),
        ("loader__workers", -1),
        ("loader__cache", "always"),
        ("loader__cache_gib", 0),
        ("encoder__name", 5),
        ("encoder__pretrained", "maybe"),
        ("encoder__channels", 2),
        ("encoder__image_size", 0),
        ("encoder__crop_pct", 0),
        ("encoder__crop_pct", 1.1),
        ("encoder__interpolation", "nearest"),
        ("encoder__args", [1]),
        ("pretrain__epochs", 0),
        ("pretrain__epochs", 1.5),
        ("pretrain__batch_size", 1),
        ("pretrain__learning_rate", 0),
        ("pretrain__learning_rate", float("inf")),
        ("pretrain__learning_rate", float("nan")),
        ("pretrain__learning_rate", "fast"),
        ("pretrain__weight_decay", -0.1),
        ("pretrain__warmup_epochs", -1),
        ("pretrain__clip_grad_norm", 0),
        ("pretrain__freeze_encoder", 7),
        ("pretrain__schedule", "linear"),
        ("pretrain__precision", "fp8"),
        ("pretrain__layer_decay", 0),
        ("pretrain__layer_decay", 1.1),
        ("pretrain__freeze_blocks", -1),
        ("pretrain__accumulation", 0),
        ("pretrain__channels_last", 2),
        ("pretrain__compile", "maybe"),
        ("pretrain__ema_decay", 1),
        ("pretrain__ema_decay", -0.1),
        ("pretrain__monitor", "accuracy"),
        ("pretrain__patience", -1),
        ("pretrain__keep_best", 0),
        ("pretrain__knn_every", -1),
        ("finetune__num_iterations", 0),
        ("finetune__seeds", 1),
        ("finetune__seeds", [3, 1, 3]),
        ("encoder__head", "cosine"),
        ("encoder__temperature", 0),
        ("finetune__augmentation__min_crop", 0),
        ("finetune__augmentation__min_crop", 1.5),
        ("finetune__augmentation__flip", "sometimes"),
        ("finetune__augmentation", 3),
        ("objective__rewards__accuracy", "high"),
        ("objective__rewards__uniformity", float("nan")),
        ("objective__scale", "batch"),
        ("objective__statistics", "sample"),
        ("objective__eps", -1e-3),
        ("objective__weighting", "mean"),
        ("objective__clip_low", 1.1),
        ("objective__clip_low", -0.1),
        ("objective__clip_high", -0.1),
        ("objective__surrogate", "clip"),
        ("objective__candidates", 0),
        ("objective__ratio_cap", 0.9),
        ("objective__aggregation", "mean"),
        ("objective__refresh", 0),
        ("objective__refresh", 1.5),
        ("objective__refresh", True),
        ("objective__refresh", "step"),
        ("objective__beta", -1),
        ("objective__entropy_weight", -1),
        ("objective__supervised_weight", float("nan")),
        ("objective__cost_matrix", "costs.csv"),
        ("objective__cost_matrix", 3),
        ("evaluate__knn_k", []),
        ("evaluate__knn_k", 10),
        ("evaluate__knn_temperature", 0),
        ("evaluate__confidence", 95),
        ("evaluate__bootstrap_resamples", 99),
        ("evaluate__robustness__images", -1),
        ("evaluate__robustness", 2000),
        ("export__opset", 17),
        ("export__max_abs_error", 0),
        ("export__min_cosine", 1.01),
        ("export__int8", "maybe"),
        ("register__promote", "always"),
        ("register__gate__thresholds", 0.9),
        ("register__gate__thresholds__accuracy", "high"),
        ("register__gate__min_gain_over_control__accuracy", float("inf")),
        ("tracking__experiment", ""),
        ("tracking__system_metrics_interval", 0),
    ],
)
def test_a_value_out_of_range_names_key_value_and_expectation(load, key, value):
    (line,) = message_of(load, **{key: value})
    assert line.startswith(f"{key.replace('__', '.')}: got {value!r}, ")
    assert len(line) > len(f"{key}: got {value!r}, expected ")


def test_messages_say_what_was_expected(load):
    assert message_of(load, encoder__image_size=0) == ["encoder.image_size: got 0, expected greater than or equal to 1"]
    assert message_of(load, objective__scale="x") == ["objective.scale: got 'x', expected 'group' or 'none'"]
    assert message_of(load, data__source="x") == [
        "data.source: got 'x', expected one of digits, shapes, folder:PATH, npz:PATH, csv:PATH, huggingface:NAME, "
        "torchvision:NAME"
    ]


def test_an_element_of_a_list_is_named_by_its_place(load):
    assert message_of(load, evaluate__knn_k=[10, 0]) == ["evaluate.knn_k.1: got 0, expected greater than or equal to 1"]


def test_blocks_are_checked_as_a_whole(load):
    (line,) = message_of(load, data__val_fraction=0.5, data__test_fraction=0.5)
    assert line == "data: val_fraction and test_fraction add up to 1 or more: nothing is left to train on"
    (line,) = message_of(load, finetune__warmup_epochs=11)
    assert line == "finetune: warmup_epochs is 11, expected at most epochs (10)"
    (line,) = message_of(load, pretrain__accumulation=3)
    assert line == "pretrain: batch_size is 64, expected a multiple of accumulation (3)"
    (line,) = message_of(load, pretrain__freeze_encoder=True, pretrain__freeze_blocks=1)
    assert line == "pretrain: freeze_encoder freezes all blocks: set it to false, or freeze_blocks to 0"
    (line,) = message_of(load, objective__ratio_cap=1.1)
    assert line == "objective: ratio_cap is 1.1, expected at least 1 + clip_high, or null"
    (line,) = message_of(load, objective__surrogate="regressive", objective__eps=0)
    assert line == "objective: eps is 0, expected at least 1e-6 with the regressive surrogate, better 0.01"
    (line,) = message_of(load, finetune__monitor="val_knn_top1_k20_t0.07")
    assert line == "finetune: monitor is val_knn_top1_k20_t0.07, but knn_every is 0: set it to 1 or more"


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_a_further_seed_that_is_no_seed(load, seed):
    (line,) = message_of(load, finetune__seeds=[1, seed])
    assert line.startswith(f"finetune.seeds.1: got {seed!r}, expected ")


def test_class_means_are_of_images(load):
    (line,) = messages_of(load, segmentation(objective__rewards={"accuracy": 1, "class_similarity": 0}))
    assert line.startswith("objective.rewards has class_similarity, expected rewards without it")
    assert load(segmentation(objective__rewards={"region_iou": 1})).objective.rewards == {"region_iou": 1}
    load(changed(objective__rewards={"class_similarity": 1}))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"pretrain__monitor": "val_accuracy"}, ["pretrain.monitor: got val_accuracy, expected val_miou, "]),
        ({"finetune__knn_every": 2}, ["finetune.knn_every: got 2, expected 0 with task segmentation"]),
        (
            {"encoder__head": "prototypes"},
            ["encoder.head: got prototypes, which is of classification: "],
        ),
        ({"export__int8": True}, ["export.int8: got true, which is of classification: expected false"]),
        (
            {"evaluate__extra_sets": {"night": "folder:night"}, "finetune__monitor": "val_accuracy"},
            [
                "finetune.monitor: got val_accuracy, expected",
                "evaluate.extra_sets: got night, which is of classification: expected {}",
            ],
        ),
        ({"register__gate__thresholds": {"accuracy": 0.9}}, ["register.gate.thresholds.accuracy: "]),
        ({"segmentation__strides": [8, 4]}, ["segmentation: strides are [8, 4], expected them ascending"]),
        ({"segmentation__head": "linear"}, ["segmentation: strides are [4, 8, 16, 32], expected one with the head"]),
        ({"segmentation__site_stride": 3}, ["segmentation: site_stride is 3, expected a divisor of the first of [4,"]),
        ({"segmentation__class_balance": 1.5}, ["segmentation.class_balance: got 1.5, expected"]),
    ],
    ids=str,
)
def test_segmentation_has_settings_of_its_own(load, changes, lines):
    load(segmentation())
    messages = messages_of(load, segmentation(**changes))
    assert len(messages) == len(lines)
    for message, line in zip(messages, lines, strict=True):
        assert message.startswith(line)


@pytest.mark.parametrize("block", ["pretrain", "finetune"])
def test_classification_has_no_miou(load, block):
    (line,) = message_of(load, **{f"{block}__monitor": "val_miou"})
    assert line == f"{block}.monitor: got val_miou, which is of task segmentation: expected val_accuracy or val_nll"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_the_repository(path, tmp_path):
    params = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", params)
    configure(path, params)
    assert load_config(params).task == "segmentation"
    assert params.read_text().count("  #") > 50  # comments stay


def test_further_seeds_differ_from_each_other_and_from_seed(load):
    (line,) = message_of(load, finetune__seeds=[3, 1, 3])
    assert line == "finetune.seeds: got [3, 1, 3], expected each seed once: remove the second 3"
    (line,) = message_of(load, seed=4, finetune__seeds=[1, 4])
    assert line == (
        "finetune.seeds: got [1, 4], expected seeds beside seed, which is 4 and trained with anyway: remove 4"
    )
    (line,) = message_of(load, pretrain__seeds=[1])
    assert line.startswith("pretrain.seeds: unknown key")


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"uniformity_reward": 1}, "objective.rewards.uniformity_reward: unknown reward; did you mean uniformity?"),
        ({"zzz": 1}, "objective.rewards.zzz: unknown reward; expected one of accuracy, uniformity, log_uniformity, "),
        ({"mine:": 1}, "objective.rewards.mine:: expected an import path, package.module:function"),
        ({"my-module:reward": 1}, "objective.rewards.my-module:reward: expected an import path"),
        ({"accuracy": 0, "uniformity": 0}, "objective.rewards: no reward has a weight other than 0: nothing is"),
        ({}, "objective.rewards: no reward has a weight other than 0"),
        (
            {"trusted_accuracy": 1},
            "objective: rewards has trusted_accuracy, whose size says how much an image counts, and scale is group",
        ),
        (
            {"cost_matrix": 0.5},
            "objective: rewards has cost_matrix, so set cost_matrix to a CSV file below data/rewards",
        ),
    ],
)
def test_rewards(load, rewards, message):
    (line,) = message_of(load, objective__rewards=rewards)
    assert line.startswith(message)


@pytest.mark.parametrize("block", ["thresholds", "min_gain_over_control", "min_gain_over_champion"])
def test_a_gate_asks_of_known_metrics_with_a_direction(load, block):
    def lines(limits):
        return message_of(load, **{f"register__gate__{block}": limits})

    start = f"register.gate.{block}"
    unknown = "unknown metric, or one without a better direction; "
    assert lines({"acuracy": 0.9}) == [f"{start}.acuracy: {unknown}did you mean accuracy?"]
    assert lines({"knn_top1": 0.9}) == [f"{start}.knn_top1: {unknown}did you mean knn_top1_k{{k}}_t{{T}}?"]
    assert lines({"temperature": 1})[0].startswith(f"{start}.temperature: {unknown}")
    assert lines({}) == [f"{start}: Dictionary should have at least 1 item after validation, not 0"]


def test_confusion_costs_are_not_divided_away(load):
    rewards = {"confusion_cost": 1.0}
    (line,) = message_of(load, objective__rewards=rewards, objective__cost_matrix="data/rewards/costs.csv")
    assert "rewards has confusion_cost, whose size says how much an image counts, and scale is group" in line


def test_costs_without_a_weight(load):
    (line,) = message_of(load, objective__cost_matrix="data/rewards/costs.csv")
    assert line.startswith(
        "objective: cost_matrix is 'data/rewards/costs.csv', but rewards has no weight for cost_matrix"
    )


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"Sketch": "digits"}, "evaluate.extra_sets.Sketch: expected a name of a-z, 0-9 and _"),
        ({"a/b": "digits"}, "evaluate.extra_sets.a/b: expected a name of a-z, 0-9 and _"),
        ({"": "digits"}, "evaluate.extra_sets.: expected a name of a-z, 0-9 and _"),
        *(({name: "digits"}, f"evaluate.extra_sets.{name}: expected another name: train, ") for name in TAKEN_NAMES),
        ({"sketch": "data/raw/sketch"}, "evaluate.extra_sets.sketch: got 'data/raw/sketch', expected one of digits, "),
    ],
)
def test_names_and_sources_of_extra_sets(load, sets, message):
    (line,) = message_of(load, evaluate__extra_sets=sets)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("train", "extra"),
    [
        ("digits", "digits"),
        ("folder:data/raw/a", "folder:data/raw/a/"),
        ("folder:data/raw/a", "folder:data/raw/b/../a/sketch"),
        ("folder:data/raw/a", "csv:data/raw/a/list.csv"),
        ("npz:data/raw/a/set.npz", "folder:data/raw"),
        ("folder:~", "folder:~/a"),
    ],
)
def test_extra_sets_within_the_training_data_and_around_them(load, train, extra):
    (line,) = message_of(load, data__source=train, evaluate__extra_sets={"far": "torchvision:MNIST", "near": extra})
    assert line.startswith(f"evaluate.extra_sets.near is {extra} and data.source is {train}: one is within the other")


@pytest.mark.parametrize(
    ("train", "extra"),
    [
        ("folder:data/raw/a", "folder:data/raw/ab"),
        ("csv:data/raw/train.csv", "csv:data/raw/test.csv"),
        ("digits", "folder:digits"),
    ],
)
def test_extra_sets_beside_the_training_data(load, train, extra):
    assert load(changed(data__source=train, evaluate__extra_sets={"near_2": extra})).evaluate.extra_sets


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_prototypes_and_a_frozen_encoder_leave_nothing_to_train(load, stage):
    (line,) = message_of(load, **{"encoder__head": "prototypes", f"{stage}__freeze_encoder": True})
    assert line.startswith(f"{stage}.freeze_encoder leaves nothing to train: encoder.head is prototypes")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data__source", "folder:/some/where"),
        ("data__source", "npz:C:/data.npz"),
        ("data__val_fraction", 1e-9),
        ("data__source", "csv:images.csv"),
        ("data__source", "huggingface:user/set:config"),
        ("data__source", "torchvision:MNIST"),
        ("data__source", "shapes"),
        ("data__resize_on_prepare", 256),
        ("data__void_index", 255),
        ("data__expectations__decodable__min_share", 0),
        ("data__expectations__classes__names", ["cat", "dog"]),
        ("data__expectations__contrast__min_std", 0),
        ("encoder__crop_pct", 1),
        ("encoder__args", {"anything": [1, {"goes": True}]}),
        ("pretrain__batch_size", 2),
        ("pretrain__warmup_epochs", 0),
        ("objective__eps", 0),
        ("objective__clip_low", 1),
        ("objective__rewards__uniformity", -1),
        ("objective__rewards", {"data.rewards.example:ordinal_reward": 1, "accuracy": 0}),
        ("objective__rewards", {"class_similarity": 1}),
        ("objective__rewards", {"region_iou": 1}),
        ("objective__refresh", "epoch"),
        ("objective__refresh", 30),
        ("objective__candidates", 1),
        ("objective__ratio_cap", 1.2),
        ("pretrain__accumulation", 64),
        ("pretrain__ema_decay", 0.999),
        ("pretrain__monitor", "val_nll"),
        ("register__gate__thresholds", {"ece": 0.1, "onnx/size_mb": 5, "knn_top1_k20_t0.07": 0}),
        ("register__gate__min_gain_over_control", {"robustness/noise": -0.5, "f1_macro": 0.01}),
        ("seed", 2**32 - 1),
        ("finetune__seeds", [2**32 - 1, 1]),
    ],
)
def test_values_at_the_edge_are_accepted(load, key, value):
    load(changed(**{key: value}))


def test_several_mistakes_are_listed_together(load):
    lines = message_of(load, seed=-1, finetune__epochs=0, objective__epss=1, tracking__experiment=...)
    assert [line.split(":")[0] for line in lines] == [
        "seed",
        "finetune.epochs",
        "objective.epss",
        "tracking.experiment",
    ]


def test_numbers_that_yaml_1_1_reads_as_text(load):
    """`1e-3` without a point is a string to PyYAML."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load("1e-3") == "1e-3"
    assert text.count("learning_rate: 3.0e-3") == 1
    config = load(text.replace("learning_rate: 3.0e-3", "learning_rate: 2e-3"))
    assert config.pretrain.learning_rate == 0.002
    assert isinstance(config.pretrain.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, expected blocks: seed, task, data, .*register, tracking; `git checkout"),
        ("- 1", "holds list, expected blocks: seed"),
        ("just text", "holds str, expected blocks"),
        ("a: [1", "is not valid YAML"),
        ("{1: 2}", "mistake"),
    ],
)
def test_a_file_that_holds_no_blocks(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"params\.yaml not found in .*: run in the root of the repository"):
        load_config()


def test_blocks_have_every_setting_of_the_recipe_and_its_value_where_there_is_a_default():
    """What changes the result by default would be a surprise."""
    of_batches, of_others = {"batch_size", "augmentation"}, {"seeds"}
    settings = {field.name: field.default for field in fields(Recipe)}
    assert set(PARAMS["finetune"]) - of_batches - of_others == set(settings)
    assert set(PARAMS["pretrain"]) - of_batches == set(settings) - {"num_iterations"}
    tuned = {"epochs", "learning_rate", "warmup_epochs"}
    for block in ("pretrain", "finetune"):
        given = {name: PARAMS[block][name] for name in settings.keys() & PARAMS[block].keys() - tuned}
        assert given == {name: settings[name] for name in given}


def test_the_configuration_cannot_be_changed():
    config = load_config(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_command_line(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(changed(sed=1)), encoding="utf-8")
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "grpo_rm.config", *arguments],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for arguments in ([], ["params.yaml"], [str(bad)], [str(tmp_path / "absent.yaml")])
    ]
    errors = [process.communicate()[1] for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 1, 1]
    assert errors[:2] == ["", ""]
    assert errors[2].startswith(f"error: {bad} has 1 mistake(s):\n  sed: unknown key; did you mean seed?")
    assert "absent.yaml not found" in errors[3]
    assert "Traceback" not in "".join(errors)
