"""How to train, whatever the loss: the numbers, and the optimizer they give."""

import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import nn
from torch.optim import Optimizer

from grpo_rm.model import VisionModel

Precision = Literal["fp32", "bf16", "fp16"]

SCHEDULES = ("cosine", "tanh", "poly", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training is told.

    Attributes:
        epochs: Passes over the training data.
        learning_rate: Peak of the schedule.
        optimizer: Name of a timm optimizer.
        weight_decay: Of the optimizer. Not on norms and biases.
        schedule: Name of a timm schedule, step by step, after a linear warm-up from 0; "constant" for none.
        warmup_epochs: May be a fraction.
        clip_grad_norm: Largest norm of the whole gradient.
        layer_decay: Factor of the learning rate from a layer to the one before it; 1 for none.
        freeze_encoder: Train the head alone, with the encoder in evaluation mode.
        freeze_blocks: Leave the encoder's stem and this many of its first blocks as they are, in evaluation mode. timm
            says what a block is; a final norm may belong to the last one.
        accumulation: Micro-batches that a batch is cut into. It changes the memory, not the result.
        num_iterations: Optimizer steps per batch, with one old policy (GRPO's mu).
        precision: "fp32", or "bf16" and "fp16" for autocast.
        channels_last: Memory format of the weights.
        compile: Use torch.compile.
        ema_decay: Keep a moving average of the weights, which is validated and saved; 0 for none.
        monitor: The validation metric that says which epoch is best; of val_nll the lowest, of others the highest.
        patience: Stop after this many epochs without a better one; 0 for never.
        keep_best: How many of the best models to keep.
        knn_every: Measure k-nearest-neighbor accuracy every this many epochs, and at the end; 0 for never.

    Raises:
        ValueError: A number is out of range, or a name unknown.
    """

    epochs: int
    learning_rate: float
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_epochs: float = 0
    clip_grad_norm: float = 1.0
    layer_decay: float = 1.0
    freeze_encoder: bool = False
    freeze_blocks: int = 0
    accumulation: int = 1
    num_iterations: int = 1
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    ema_decay: float = 0.0
    monitor: str = "val_accuracy"
    patience: int = 0
    keep_best: int = 1
    knn_every: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("epochs", "accumulation", "num_iterations", "keep_best"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("weight_decay", "warmup_epochs", "freeze_blocks", "patience", "knn_every"):
            _expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "clip_grad_norm"):
            _expect(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        _expect(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "more than 0, at most 1")
        _expect(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 or more, less than 1")
        for name, choices in (("precision", get_args(Precision)), ("schedule", SCHEDULES)):
            _expect(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")


def _expect(is_so: bool, name: str, value: object, expected: str) -> None:
    if not is_so:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


class Schedule(Protocol):
    """A timm schedule: learning rates are a function of the number of steps done."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rates of the next step."""


def create_optimizer(model: VisionModel, recipe: Recipe) -> Optimizer:
    """Return timm's optimizer for the weights that the recipe trains; freeze the others.

    Raises:
        ValueError: timm has no such optimizer, or the encoder has no `freeze_blocks` blocks.
    """
    from timm import optim  # slow to import

    known = [str(name) for name in optim.list_optimizers()]
    if recipe.optimizer not in known:
        near = difflib.get_close_matches(recipe.optimizer, known, n=5, cutoff=0.4)
        raise ValueError(f"timm has no optimizer {recipe.optimizer!r}; nearest: {', '.join(near) or ', '.join(known)}")
    _freeze(model.encoder, recipe)
    undecayed: set[str] = getattr(model.encoder, "no_weight_decay", set)()
    if recipe.layer_decay == 1:
        groups = optim.param_groups_weight_decay(
            model, recipe.weight_decay, no_weight_decay_list=[f"encoder.{name}" for name in undecayed]
        )
    else:
        groups = optim.param_groups_layer_decay(
            model.encoder, recipe.weight_decay, no_weight_decay_list=undecayed, layer_decay=recipe.layer_decay
        ) + optim.param_groups_weight_decay(model.head, recipe.weight_decay)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing is left to train: freeze fewer blocks, or use a linear head")
    options: dict[str, Any] = {"fused": True} if recipe.optimizer in ("adam", "adamw") else {}  # one pass
    try:
        optimizer: Optimizer = optim.create_optimizer_v2(groups, recipe.optimizer, lr=recipe.learning_rate, **options)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer {recipe.optimizer!r} cannot be created: {str(error) or 'a package or a GPU is missing'}"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"optimizer {recipe.optimizer!r} needs second derivatives, expected one of first order")
    return optimizer


def create_schedule(optimizer: Optimizer, recipe: Recipe, *, steps: int) -> Schedule:
    """Return timm's schedule over `steps` steps: linear warm-up to the learning rate, then as its name says.

    "cosine" and "tanh" fall to 0, "poly" falls linearly to 0, "step" to a tenth after each third.
    """
    from timm.scheduler import create_scheduler_v2

    warmup = min(round(recipe.warmup_epochs * steps / recipe.epochs), steps - 1)  # rounding may reach the last step
    schedule: Schedule
    schedule, _ = create_scheduler_v2(
        optimizer,
        recipe.schedule,
        num_epochs=steps - warmup,  # timm's epochs are our steps: warm-up may take a fraction of an epoch
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=warmup,
        warmup_prefix=True,
        warmup_lr=recipe.learning_rate / (warmup + 1),
        decay_epochs=math.ceil((steps - warmup) / 3),
        decay_rate=1.0 if recipe.schedule == "poly" else 0.1,  # of poly it is the power
    )
    schedule.step_update(0)
    return schedule


def set_training_mode(model: VisionModel) -> None:
    """Switch to training, but what is frozen to evaluation: its dropout and its batch statistics rest too."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()


def _freeze(encoder: nn.Module, recipe: Recipe) -> None:
    for parameter in encoder.parameters():
        parameter.requires_grad_(not recipe.freeze_encoder)
    if not recipe.freeze_blocks:
        return
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    blocks = max(layers.values())  # 0 is the stem
    if recipe.freeze_blocks > blocks:
        raise ValueError(
            f"freeze_blocks is {recipe.freeze_blocks}, but the encoder has {blocks} blocks: use fewer, or "
            "freeze_encoder"
        )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and layers[name] > recipe.freeze_blocks)
