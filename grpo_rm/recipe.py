"""How to train, whatever the loss: the numbers, and the optimizer they give."""

import math
from dataclasses import dataclass

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grpo_rm.model import Model


@dataclass(frozen=True)
class Recipe:
    """What a training is told.

    Attributes:
        epochs: Passes over the training data.
        learning_rate: Peak of the schedule: linear warm-up, then cosine to 0, step by step.
        weight_decay: Of AdamW. Not on norms and biases.
        warmup_epochs: May be a fraction.
        clip_grad_norm: Largest norm of the whole gradient.
        freeze_encoder: Train the head alone, with the encoder in evaluation mode.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    clip_grad_norm: float
    freeze_encoder: bool = False


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
