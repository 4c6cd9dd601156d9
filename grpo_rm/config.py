"""The one schema of params.yaml. An unknown key is an error that names the nearest key.

`python -m grpo_rm.config params.yaml` checks a file.
"""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from grpo_rm.config_errors import explain, keys_of, nearest
from grpo_rm.evaluation.directions import is_higher_better
from grpo_rm.gate_names import check_gate
from grpo_rm.task_settings import check_task

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # strict: a stage is named by what is written

EMBEDDED = ("digits", "shapes")
SOURCES = (*EMBEDDED, "folder:PATH", "npz:PATH", "csv:PATH", "huggingface:NAME", "torchvision:NAME")
OF_COSTS = ("cost_matrix", "confusion_cost")
REWARDS = ("accuracy", "uniformity", "log_uniformity", "trusted_accuracy", "region_iou", *OF_COSTS, "class_similarity")
UNSCALED = ("trusted_accuracy", "confusion_cost")  # their size says how much an image counts
REWARD_FILES = Path("data/rewards")  # the stage depends on it
MONITORS, DENSE_MONITORS = ("val_accuracy", "val_nll"), ("val_miou", "val_pixel_accuracy", "val_nll")
TAKEN_NAMES = ("train", "val", "test", "robustness", "onnx")  # of splits, and of what metrics begin with


def _known_source(source: str) -> str:
    kind, _, rest = source.partition(":")
    if source in EMBEDDED or (rest and kind in [known.partition(":")[0] for known in SOURCES if ":" in known]):
        return source
    raise ValueError(f"expected one of {', '.join(SOURCES)}")


SourceName = Annotated[str, AfterValidator(_known_source)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Expectation(_Block):
    """Severity: critical stops the pipeline, warning is told, ignore is neither."""

    severity: Literal["critical", "warning", "ignore"]


class Decodable(Expectation):
    min_share: Annotated[float, Field(ge=0, le=1)]


class Classes(Expectation):
    names: Annotated[list[str], Field(min_length=2)] | None


class ClassCount(Expectation):
    min_images: Count


class Imbalance(Expectation):
    max_ratio: Annotated[float, Field(ge=1)]


class ImageSize(Expectation):
    min_side: Count
    max_side: Count


class AspectRatio(Expectation):
    max_ratio: Annotated[float, Field(ge=1)]


class Contrast(Expectation):
    min_std: NonNegative


class Drift(Expectation):
    max_psi: Positive
    max_ks: Share


class VoidShare(Expectation):
    max_share: Annotated[float, Field(ge=0, le=1)]


class Expectations(_Block):
    """Of the data: see docs/data.md. The schema of the manifest is always expected."""

    decodable: Decodable
    file_names: Expectation
    left_out: Expectation
    copies: Expectation
    copies_across_splits: Expectation
    near_duplicates_across_splits: Expectation
    splits_kept: Expectation
    groups_across_splits: Expectation
    one_label: Expectation
    near_duplicates_one_label: Expectation
    classes: Classes
    class_count: ClassCount
    imbalance: Imbalance
    image_size: ImageSize
    aspect_ratio: AspectRatio
    contrast: Contrast
    drift: Drift
    masks: Expectation
    void_share: VoidShare


class Data(_Block):
    source: SourceName
    val_fraction: Fraction
    test_fraction: Fraction
    resize_on_prepare: Count | None
    void_index: Annotated[int, Field(ge=0, le=255)] | None
    expectations: Expectations

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "Data":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction add up to 1 or more: nothing is left to train on")
        return self


class Loader(_Block):
    """How batches are read: of no influence on any result, so no stage depends on it."""

    workers: CountOrZero
    cache: Literal["auto", "never"]
    cache_gib: Positive


class Encoder(_Block):
    name: str
    pretrained: bool
    channels: Literal[1, 3]
    image_size: Count
    crop_pct: Share
    interpolation: Literal["bilinear", "bicubic"]
    args: dict[str, Any]
    head: Literal["linear", "prototypes"]
    temperature: Positive


class Segmentation(_Block):
    """The head of a dense task and its sites; see `grpo_rm.model.DenseConfig` and `grpo_rm.task.Segmentation`."""

    strides: Annotated[list[Count], Field(min_length=1)]
    head: Literal["linear", "decoder"]
    width: Count
    site_stride: Count
    class_balance: Annotated[float, Field(ge=0, le=1)]
    window: Count | None

    @model_validator(mode="after")
    def _fits_together(self) -> "Segmentation":
        if self.strides != sorted(self.strides):
            raise ValueError(f"strides are {self.strides}, expected them ascending: the head's stride is the first")
        if self.head == "linear" and len(self.strides) > 1:
            raise ValueError(f"strides are {self.strides}, expected one with the head linear; decoder takes several")
        if self.strides[0] % self.site_stride:
            raise ValueError(f"site_stride is {self.site_stride}, expected a divisor of the first of {self.strides}")
        return self


class Augmentation(_Block):
    min_crop: Share
    flip: bool


class Training(_Block):
    """How to train. `grpo_rm.recipe.Recipe` says what each setting does; the last two are of the batches."""

    epochs: Count
    learning_rate: Positive
    optimizer: str
    weight_decay: NonNegative
    schedule: Literal["cosine", "tanh", "poly", "step", "constant"]
    warmup_epochs: NonNegative
    clip_grad_norm: Positive
    layer_decay: Share
    freeze_encoder: bool
    freeze_blocks: CountOrZero
    accumulation: Count
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    monitor: str
    patience: CountOrZero
    keep_best: Count
    knn_every: CountOrZero
    batch_size: Annotated[int, Field(ge=2)]
    augmentation: Augmentation

    @field_validator("monitor")
    @classmethod
    def _is_of_the_validation(cls, monitor: str) -> str:
        if monitor not in (*MONITORS, *DENSE_MONITORS) and not monitor.startswith("val_knn_"):
            dense = f"in segmentation {', '.join(DENSE_MONITORS)}"
            raise ValueError(f"expected {', '.join(MONITORS)}, or with knn_every val_knn_top1_k20_t0.07; {dense}")
        return monitor

    @model_validator(mode="after")
    def _fits_together(self) -> "Training":
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g}, expected at most epochs ({self.epochs})")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of accumulation ({self.accumulation})"
            )
        if self.monitor.startswith("val_knn_") and not self.knn_every:
            raise ValueError(f"monitor is {self.monitor}, but knn_every is 0: set it to 1 or more")
        if self.freeze_encoder and self.freeze_blocks:
            raise ValueError("freeze_encoder freezes all blocks: set it to false, or freeze_blocks to 0")
        return self


class Finetuning(Training):
    """Both arms take as many optimizer steps: their budget is equal. `seeds` are of further trainings like these."""

    num_iterations: Count
    seeds: list[Seed]

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: list[int]) -> list[int]:
        if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"expected each seed once: remove the second {', '.join(map(str, repeated))}")
        return seeds


def _reward_name(name: str) -> str:
    is_path = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name)
    if name in REWARDS or is_path:
        return name
    if ":" in name:
        raise ValueError("expected an import path, package.module:function")
    raise ValueError(f"unknown reward; {nearest(name, [*REWARDS, 'an import path package.module:function'])}")


class Objective(_Block):
    """Of the GRPO-RM loss: see `grpo_rm.losses.Objective`; and how often the old policy is refreshed."""

    rewards: dict[Annotated[str, AfterValidator(_reward_name)], float]
    cost_matrix: str | None
    candidates: Count | None
    surrogate: Literal["clipped", "regressive"]
    scale: Literal["group", "none"]
    statistics: Literal["uniform", "policy"]
    eps: NonNegative
    weighting: Literal["uniform", "policy"]
    clip_low: Annotated[float, Field(ge=0, le=1)]
    clip_high: NonNegative
    ratio_cap: Annotated[float, Field(ge=1)] | None
    aggregation: Literal["per_image", "per_site", "constant"]
    refresh: int | Literal["epoch"]
    beta: NonNegative
    entropy_weight: NonNegative
    supervised_weight: NonNegative
    neighbor_weight: NonNegative
    neighbor_memory: Count
    neighbor_temperature: Positive

    @field_validator("rewards")
    @classmethod
    def _rewards_something(cls, rewards: dict[str, float]) -> dict[str, float]:
        if not any(rewards.values()):
            raise ValueError("no reward has a weight other than 0: nothing is rewarded, so nothing would be learned")
        return rewards

    @field_validator("cost_matrix")
    @classmethod
    def _is_watched(cls, cost_matrix: str | None) -> str | None:
        if cost_matrix is not None and REWARD_FILES not in Path(cost_matrix).parents:
            raise ValueError(f"expected a CSV file below {REWARD_FILES}: a change of it makes the stage run again")
        return cost_matrix

    @field_validator("refresh", mode="before")
    @classmethod
    def _number_or_epoch(cls, refresh: object) -> object:
        is_number = isinstance(refresh, int) and not isinstance(refresh, bool) and refresh >= 1
        if not (is_number or refresh == "epoch"):
            raise ValueError('expected a number of batches, 1 or more, or "epoch"')
        return refresh

    @model_validator(mode="after")
    def _suits_its_surrogate(self) -> "Objective":
        if self.ratio_cap is not None and self.ratio_cap < 1 + self.clip_high:
            raise ValueError(f"ratio_cap is {self.ratio_cap:g}, expected at least 1 + clip_high, or null")
        if self.surrogate == "regressive" and self.eps < 1e-6:
            raise ValueError(f"eps is {self.eps:g}, expected at least 1e-6 with the regressive surrogate, better 0.01")
        return self

    @model_validator(mode="after")
    def _has_costs_and_their_reward(self) -> "Objective":
        asking = [name for name in OF_COSTS if name in self.rewards]
        if asking and self.cost_matrix is None:
            raise ValueError(
                f"rewards has {asking[0]}, so set cost_matrix to a CSV file below {REWARD_FILES}, got null"
            )
        sized = [name for name in UNSCALED if self.rewards.get(name)]
        if sized and self.scale == "group":
            raise ValueError(
                f"rewards has {sized[0]}, whose size says how much an image counts, and scale is group, which divides "
                "the size away: set scale to none"
            )
        if not asking and self.cost_matrix is not None:
            raise ValueError(
                f"cost_matrix is {self.cost_matrix!r}, but rewards has no weight for {' or '.join(OF_COSTS)}: add one"
            )
        return self


class Robustness(_Block):
    """Test images under corruptions: this many of them, chosen at random; 0: none."""

    images: CountOrZero


def _set_name(name: str) -> str:
    if not re.fullmatch("[a-z0-9_]+", name):
        raise ValueError("expected a name of a-z, 0-9 and _: metrics and a folder are named by it")
    if name in TAKEN_NAMES:
        raise ValueError(f"expected another name: {', '.join(TAKEN_NAMES)} are taken")
    return name


class Evaluate(_Block):
    knn_k: Annotated[list[Count], Field(min_length=1)]
    knn_temperature: Positive
    confidence: Fraction
    bootstrap_resamples: Annotated[int, Field(ge=100)]
    robustness: Robustness
    extra_sets: dict[Annotated[str, AfterValidator(_set_name)], SourceName]


class Export(_Block):
    opset: Annotated[int, Field(ge=18, le=23)]
    max_abs_error: Positive
    min_cosine: Share
    int8: bool


def _metric_name(name: str) -> str:
    is_higher_better(name)
    return name


Limits = Annotated[dict[Annotated[str, AfterValidator(_metric_name)], float], Field(min_length=1)]  # by metric


class Gate(_Block):
    """See `grpo_rm.evaluation.gate`."""

    thresholds: Limits
    min_gain_over_control: Limits
    min_gain_over_champion: Limits


class Register(_Block):
    promote: Literal["manual", "auto"]
    gate: Gate


class Tracking(_Block):
    experiment: Annotated[str, Field(min_length=1)]
    system_metrics_interval: Positive


class Config(_Block):
    """params.yaml, a block per stage."""

    seed: Seed
    task: Literal["classification", "segmentation"]
    data: Data
    loader: Loader
    encoder: Encoder
    segmentation: Segmentation
    pretrain: Training
    finetune: Finetuning
    objective: Objective
    evaluate: Evaluate
    export: Export
    register_: Annotated[Register, Field(alias="register")]
    tracking: Tracking

    @model_validator(mode="after")
    def _suits_the_task(self) -> "Config":
        check_task(self)
        return self

    @model_validator(mode="after")
    def _leaves_weights_to_train(self) -> "Config":
        for name, block in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if self.encoder.head == "prototypes" and block.freeze_encoder:
                raise ValueError(
                    f"{name}.freeze_encoder leaves nothing to train: encoder.head is prototypes, which are the "
                    "encoder's class means. Set one of the two to something else"
                )
        return self

    @model_validator(mode="after")
    def _adds_seeds(self) -> "Config":
        if self.seed in self.finetune.seeds:
            raise ValueError(
                f"finetune.seeds: got {self.finetune.seeds}, expected seeds beside seed, which is {self.seed} and "
                f"trained with anyway: remove {self.seed}"
            )
        return self

    @model_validator(mode="after")
    def _keeps_extra_sets_apart(self) -> "Config":
        for name, source in self.evaluate.extra_sets.items():
            if source == self.data.source or _overlap(source, self.data.source):
                raise ValueError(
                    f"evaluate.extra_sets.{name} is {source} and data.source is {self.data.source}: one is within the "
                    "other, so models would be trained on images of the test. Move one of them elsewhere"
                )
        return self

    @model_validator(mode="after")
    def _has_class_means(self) -> "Config":
        if self.task == "segmentation" and "class_similarity" in self.objective.rewards:
            raise ValueError(
                "objective.rewards has class_similarity, expected rewards without it: the mean embedding of a class is "
                "that of whole images, and task is segmentation. A cost_matrix says what is alike; remove it"
            )
        return self

    @model_validator(mode="after")
    def _measures_what_the_gate_asks_for(self) -> "Config":
        check_gate(self)
        return self


def _overlap(source: str, other: str) -> bool:
    """Whether both are paths, and one is the other or is in it."""
    parts = [text.partition(":") for text in (source, other)]
    if any(kind not in ("folder", "npz", "csv") for kind, _, _ in parts):
        return False
    one, two = (Path(path).expanduser().resolve() for _, _, path in parts)
    return one == two or one in two.parents or two in one.parents


def load_config(path: Path = Path("params.yaml")) -> Config:
    """Read and check the parameters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML, or a key is unknown or missing, or a value is out of range. The message has a line
            for each mistake: the key, what was got, what was expected, and the nearest key of an unknown one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found in {Path.cwd()}: run in the root of the repository")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        raise ValueError(
            f"{path} is empty, expected blocks: {', '.join(keys_of(Config))}; `git checkout {path}` restores it"
        )
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected blocks: {', '.join(keys_of(Config))}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = explain(error, Config)
        raise ValueError("\n  ".join([f"{path} has {len(lines)} mistake(s):", *lines])) from None


def task_blocks(config: Config) -> set[str]:
    """Return the blocks of params.yaml that a training depends on because of its task."""
    return {"segmentation"} if config.task == "segmentation" else set()


if __name__ == "__main__":
    try:
        load_config(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
