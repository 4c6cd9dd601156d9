"""How to train, whatever the loss: the numbers, and the optimizer they give."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grpo_rm.model import Model


Precision = Literal["fp32", "bf16", "fp16"]


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
        freeze_blocks: Leave the encoder's stem and this many of its first blocks as they are, in evaluation mode.
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


def create_optimizer(model: Model, recipe: Recipe, *, steps_per_epoch: int) -> tuple[Optimizer, LambdaLR]:
    """Return AdamW and its schedule for the weights that the recipe trains; freeze the others."""
    from timm import optim  # slow to import

    for parameter in model.encoder.parameters():
        parameter.requires_grad_(not recipe.freeze_encoder)
    undecayed: set[str] = getattr(model.encoder, "no_weight_decay", set)()
    groups = optim.param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=[f"encoder.{name}" for name in undecayed]
    )
    optimizer = AdamW(groups, lr=recipe.learning_rate)
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)  # rounding may reach the last step

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return optimizer, LambdaLR(optimizer, factor)
