"""The one training loop: pretraining, control and GRPO-RM differ in the loss alone."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grpo_rm.checkpoint import load_model, save_model
from grpo_rm.datasets import Batches
from grpo_rm.inference import predict
from grpo_rm.model import Model
from grpo_rm.objective import LossOutput
from grpo_rm.progress import Progress
from grpo_rm.task import Sites, classification_sites

Loss = Callable[[Tensor, Tensor, Tensor | None], LossOutput]
SitesOf = Callable[[Model, Tensor, Tensor], Sites]
Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]

MAX_LOGGED_STEPS = 1000


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the loss.

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


class Trainer:
    """Trains one model; holds what changes on the way.

    Args:
        model: Trained in place.
        loss: (log_probs, targets, valid) to the loss.
        train: Training batches; same seed, same images in the same order.
        val: Validation batches.
        recipe: Epochs, learning rate and the like.
        seed: Of dropout and the like. Same seed, data and machine give the same weights on the CPU.
        device: Where to train.
        checkpoints: Directory that receives `last` and `best`, each a complete model, after every epoch.
        title: Name of the run on the progress display.
        sites_of: What a batch asks of the policy: the task.
        on_step: Receives the number of steps done and the metrics of the last one, for at most 1,000 steps of a run.
        on_epoch: Receives the number of steps done and the validation metrics.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        train: Batches,
        val: Batches,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        checkpoints: Path,
        title: str,
        sites_of: SitesOf = classification_sites,
        on_step: Report | None = None,
        on_epoch: Report | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.model, self.loss, self.sites_of = model.to(device), loss, sites_of
        self.train, self.val, self.recipe = train, val, recipe
        self.device, self.checkpoints = device, checkpoints
        self.on_step, self.on_epoch = on_step or _ignore, on_epoch or _ignore
        self.optimizer, self.schedule = _create_optimizer(model, recipe, steps_per_epoch=len(train))
        self.progress = Progress(title, epochs=recipe.epochs, images_per_epoch=len(train) * train.batch_size)
        self.epoch, self.step = 0, 0
        self.history: list[Metrics] = []

    def fit(self) -> Model:
        """Train all epochs; return the model with the best validation accuracy (ties: the lower NLL, then the earlier).

        Afterwards `history` has a row of metrics per epoch.

        Raises:
            FloatingPointError: Loss, gradient or validation is not finite. The message says the step; `checkpoints`
                keeps the last good epoch.
        """
        with self.progress:
            for epoch in range(1, self.recipe.epochs + 1):
                self.epoch = epoch
                averages, validation = self._train_epoch(), self._validate()
                self.on_epoch(self.step, validation)
                row = averages | validation
                self.history.append({"epoch": epoch, "step": self.step} | row)
                self.progress.end_epoch(epoch, row)
                save_model(self.model, self.checkpoints / "last")
                if best_epoch(self.history) is self.history[-1]:
                    save_model(self.model, self.checkpoints / "best")
        return load_model(self.checkpoints / "best")

    def _train_epoch(self) -> Metrics:
        self.model.train()
        if self.recipe.freeze_encoder:
            self.model.encoder.eval()
        stride = math.ceil(self.recipe.epochs * len(self.train) / MAX_LOGGED_STEPS)
        averages = _Averages()
        for images, targets in self.train.epoch(self.epoch):
            learning_rate = float(self.schedule.get_last_lr()[0])
            stats = self._train_step(images, targets)
            averages.add(stats)
            if self.step % stride == 0:
                metrics = {name: value.item() for name, value in stats.items()}
                self.on_step(self.step, metrics | {"learning_rate": learning_rate})
            self.progress.advance(len(images))
        return averages.read() | {"learning_rate": learning_rate}

    def _train_step(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        images, targets = (tensor.to(self.device, non_blocking=True) for tensor in (images, targets))
        output = self.loss(*self.sites_of(self.model, images, targets))
        self.step += 1
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output.loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        if not (output.loss.isfinite() and norm.isfinite()):
            self._stop(f"the loss is {output.loss.item():g} and the norm of its gradient {norm.item():g}")
        self.optimizer.step()
        self.schedule.step()
        return {"train_loss": output.loss.detach(), "grad_norm": norm} | output.stats

    def _validate(self) -> Metrics:
        predictions = predict(self.model, self.val.epoch(0), device=self.device)
        accuracy = np.mean(predictions.logits.argmax(axis=1) == predictions.labels)
        nll = F.cross_entropy(torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels)).item()
        if not math.isfinite(nll):
            self._stop(f"the validation loss is {nll:g}")
        return {"val_accuracy": float(accuracy), "val_nll": nll}

    def _stop(self, reason: str) -> NoReturn:
        kept = f"the model of epoch {self.epoch - 1} is kept in {self.checkpoints / 'last'}"
        raise FloatingPointError(
            f"training stopped at step {self.step} (epoch {self.epoch}): {reason}; "
            f"{kept if self.epoch > 1 else 'no epoch was finished yet'}. Lower learning_rate "
            f"(now {self.recipe.learning_rate:g}) or clip_grad_norm (now {self.recipe.clip_grad_norm:g})"
        )


def best_epoch(history: list[Metrics]) -> Metrics:
    """Return the row with the best validation accuracy; ties: the lower NLL, then the earlier epoch."""
    return max(history, key=_score)


def _ignore(step: int, metrics: Metrics) -> None:
    pass


def _score(row: Mapping[str, float]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_nll"]


def _create_optimizer(model: Model, recipe: Recipe, *, steps_per_epoch: int) -> tuple[Optimizer, LambdaLR]:
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


class _Averages:
    """Means over the steps of an epoch, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.steps = 0

    def add(self, stats: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for name, value in stats.items():
            self.sums[name] = self.sums[name].to(value.device) + value

    def read(self) -> Metrics:
        return {name: (value / self.steps).item() for name, value in self.sums.items()}
