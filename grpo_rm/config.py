"""The one schema of params.yaml. An unknown key is an error that names the nearest key.

`python -m grpo_rm.config params.yaml` checks a file.
"""

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

SOURCES = ("digits", "folder:PATH", "npz:PATH")


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Block):
    source: str
    val_fraction: Fraction
    test_fraction: Fraction
    min_decodable: Annotated[float, Field(ge=0, le=1)]

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, path = source.partition(":")
        if source == "digits" or (kind in ("folder", "npz") and path):
            return source
        raise ValueError(f"expected one of {', '.join(SOURCES)}")

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "Data":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction add up to 1 or more: nothing is left to train on")
        return self


class Encoder(_Block):
    name: str
    pretrained: bool
    channels: Literal[1, 3]
    image_size: Count
    crop_pct: Annotated[float, Field(gt=0, le=1)]
    interpolation: Literal["bilinear", "bicubic"]
    args: dict[str, Any]


class Augmentation(_Block):
    min_crop: Annotated[float, Field(gt=0, le=1)]
    flip: bool


class Training(_Block):
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    clip_grad_norm: Positive
    freeze_encoder: bool
    augmentation: Augmentation
    workers: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "Training":
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g}, expected at most epochs ({self.epochs})")
        return self


class RewardWeights(_Block):
    accuracy: float
    uniformity: float

    @model_validator(mode="after")
    def _rewards_something(self) -> "RewardWeights":
        if not (self.accuracy or self.uniformity):
            raise ValueError("accuracy and uniformity are both 0: nothing is rewarded, so nothing would be learned")
        return self


class Objective(_Block):
    rewards: RewardWeights
    scale: Literal["group", "none"]
    statistics: Literal["uniform", "policy"]
    eps: NonNegative
    weighting: Literal["uniform", "policy"]
    clip_low: Annotated[float, Field(ge=0, le=1)]
    clip_high: NonNegative


class Evaluate(_Block):
    knn_k: Annotated[list[Count], Field(min_length=1)]
    knn_temperature: Positive
    confidence: Fraction
    bootstrap_resamples: Annotated[int, Field(ge=100)]


class Export(_Block):
    opset: Annotated[int, Field(ge=18, le=23)]
    max_abs_error: Positive
    min_cosine: Annotated[float, Field(gt=0, le=1)]
    int8: bool


class Gate(_Block):
    min_accuracy: Annotated[float, Field(ge=0, le=1)]
    margin: NonNegative


class Register(_Block):
    promote: Literal["manual", "auto"]
    gate: Gate


class Tracking(_Block):
    experiment: Annotated[str, Field(min_length=1)]
    system_metrics_interval: Positive


class Config(_Block):
    """params.yaml, a block per stage."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    task: Literal["classification"]
    data: Data
    encoder: Encoder
    pretrain: Training
    finetune: Training
    objective: Objective
    evaluate: Evaluate
    export: Export
    register_: Annotated[Register, Field(alias="register")]
    tracking: Tracking


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
        raise ValueError(f"{path} is empty, expected blocks: {', '.join(_keys([]))}; `git checkout {path}` restores it")
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected blocks: {', '.join(_keys([]))}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = _explain_all(error.errors())
        raise ValueError("\n  ".join([f"{path} has {len(lines)} mistake(s):", *lines])) from None


def _explain_all(details: list[ErrorDetails]) -> list[str]:
    """Explain each mistake; a key that is missing because it was misspelled is one mistake, not two."""
    explained = [_explain(detail) for detail in details]
    meant = {line.rpartition("did you mean ")[2].rstrip("?") for line in explained if "did you mean" in line}
    is_missing = [detail["type"] == "missing" and detail["loc"][-1] in meant for detail in details]
    return [line for line, skip in zip(explained, is_missing, strict=True) if not skip]


def _explain(detail: ErrorDetails) -> str:
    *parents, key = detail["loc"]
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown key; {_nearest(str(key), _keys(parents))}"
    if detail["type"] == "missing":
        return f"{name}: missing; add it (the repository's params.yaml shows every key with a comment)"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    got = "" if isinstance(detail["input"], dict) else f"got {detail['input']!r}, "
    expected = message if "expected" in message or not got else f"expected {message}"
    return f"{name}: {got}{expected}"


def _keys(parents: list[int | str]) -> list[str]:
    block: type[BaseModel] = Config
    for parent in parents:
        field = next(f for n, f in block.model_fields.items() if (f.alias or n) == parent)
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        block = field.annotation
    return [field.alias or name for name, field in block.model_fields.items()]


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


if __name__ == "__main__":
    try:
        load_config(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
