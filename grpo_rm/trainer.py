"""The one training loop: pretraining, control and GRPO-RM differ in the loss alone."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.checkpoint import (
    State,
    hash_model,
    load_model,
    load_state,
    random_state,
    remove_state,
    save_model,
    save_state,
    set_random_state,
)
from grpo_rm.datasets import Batch, Batches
from grpo_rm.inference import predict
from grpo_rm.model import Model
from grpo_rm.objective import LossOutput
from grpo_rm.progress import Progress
from grpo_rm.recipe import Recipe, create_optimizer
from grpo_rm.task import Sites, classification_sites

Loss = Callable[[Tensor, Tensor, Tensor | None], LossOutput]
SitesOf = Callable[[Model, Tensor, Tensor], Sites]
Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]

MAX_LOGGED_STEPS = 1000
SAVE_SECONDS = 300  # how much of a long epoch a crash may cost


class Interrupted(KeyboardInterrupt):
    """A training stopped because it was asked to; the next one with the same `checkpoints` goes on at `step`."""

    def __init__(self, step: int, steps: int, checkpoints: Path) -> None:
        super().__init__(
            f"interrupted at step {step} of {steps}; {checkpoints} keeps it: "
            "the next run of this stage goes on from there"
        )
        self.step = step


class Trainer:
    """Trains one model; holds what changes on the way.

    It goes on where an earlier one with the same `checkpoints` was interrupted, or killed: on the CPU the result is the
    same to the last bit. An earlier one that was given anything else does not count.

    Args:
        model: Trained in place.
        loss: (log_probs, targets, valid) to the loss.
        train: Training batches; same seed, same images in the same order.
        val: Validation batches.
        recipe: Epochs, learning rate and the like.
        seed: Of dropout and the like. Same seed, data and machine give the same weights on the CPU.
        device: Where to train.
        checkpoints: Directory that receives `last` and `best`, each a complete model, after every epoch, and the state
            to go on from: after every epoch, every five minutes, and when stopped. The state stays until
            `checkpoint.remove_state`.
        title: Name of the run on the progress display.
        fingerprint: What the result depends on and the trainer cannot see, as JSON: data, loss, code.
        sites_of: What a batch asks of the policy: the task.
        on_step: Receives the number of steps done and the metrics of the last one, for at most 1,000 steps of a run.
        on_epoch: Receives the number of steps done and the validation metrics.
        should_stop: Asked after every step and every batch of the validation.
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
        fingerprint: Mapping[str, Any],
        sites_of: SitesOf = classification_sites,
        on_step: Report | None = None,
        on_epoch: Report | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        torch.manual_seed(seed)
        self.model, self.loss, self.sites_of = model.to(device), loss, sites_of
        self.train, self.val, self.recipe = train, val, recipe
        self.device, self.checkpoints = device, checkpoints
        self.on_step, self.on_epoch, self.should_stop = on_step or _ignore, on_epoch or _ignore, should_stop
        self.fingerprint = {**fingerprint, **self._own_fingerprint(seed)}
        self.optimizer, self.schedule = create_optimizer(model, recipe, steps_per_epoch=len(train))
        self.progress = Progress(title, epochs=recipe.epochs, images_per_epoch=len(train) * train.batch_size)
        self.step, self.learning_rate = 0, math.nan
        self.averages = _Averages()
        self.history: list[Metrics] = []
        self.saved = time.monotonic()
        self._resume()

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return len(self.history) + 1

    @property
    def batch(self) -> int:
        """How many batches of it are done."""
        return self.step - len(self.history) * len(self.train)

    @property
    def steps(self) -> int:
        """How many there will be in all."""
        return self.recipe.epochs * len(self.train)

    def fit(self) -> Model:
        """Train all epochs; return the model with the best validation accuracy (ties: the lower NLL, then the earlier).

        Afterwards `history` has a row of metrics per epoch.

        Raises:
            FloatingPointError: Loss, gradient or validation is not finite. The message says the step; `checkpoints`
                keeps the last good epoch, but no state: it would only lead there again.
            Interrupted: `should_stop` said so.
        """
        with self.progress, closing(self.train), closing(self.val):
            while self.epoch <= self.recipe.epochs:
                self._train_epoch()
                self._end_epoch(self._validate())
        return load_model(self.checkpoints / "best")

    def _train_epoch(self) -> None:
        self.model.train()
        if self.recipe.freeze_encoder:
            self.model.encoder.eval()
        stride = math.ceil(self.steps / MAX_LOGGED_STEPS)
        for images, targets in self.train.epoch(self.epoch, start=self.batch):
            self.learning_rate = float(self.schedule.get_last_lr()[0])
            stats = self._train_step(images, targets)
            self.averages.add(stats)
            if self.step % stride == 0:
                metrics = {name: value.item() for name, value in stats.items()}
                self.on_step(self.step, metrics | {"learning_rate": self.learning_rate})
            self.progress.advance(len(images))
            self._pause()

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
        predictions = predict(self.model, self._pausing(self.val.epoch(0)), device=self.device)
        accuracy = np.mean(predictions.logits.argmax(axis=1) == predictions.labels)
        nll = F.cross_entropy(torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels)).item()
        if not math.isfinite(nll):
            self._stop(f"the validation loss is {nll:g}")
        return {"val_accuracy": float(accuracy), "val_nll": nll}

    def _end_epoch(self, validation: Metrics) -> None:
        self.on_epoch(self.step, validation)
        epoch, row = self.epoch, self.averages.read() | {"learning_rate": self.learning_rate} | validation
        self.history.append({"epoch": epoch, "step": self.step} | row)
        self.averages = _Averages()
        self.progress.end_epoch(epoch, row)
        self._save()
        self._save_models()

    def _pausing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._pause()

    def _pause(self) -> None:
        """Save where it is time to, and stop where that was asked for."""
        is_stopping = self.should_stop()
        if is_stopping or time.monotonic() - self.saved > SAVE_SECONDS:
            self._save()
        if is_stopping:
            raise Interrupted(self.step, self.steps, self.checkpoints)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(self.device),
            "step": self.step,
            "learning_rate": self.learning_rate,
            "averages": (dict(self.averages.sums), self.averages.steps),
            "history": self.history,
        }
        save_state(state, self.checkpoints, self.fingerprint)
        self.saved = time.monotonic()

    def _save_models(self) -> None:
        """Write `last` and `best`: after the state, so a crash between them leaves what a resumed training writes."""
        save_model(self.model, self.checkpoints / "last")
        if best_epoch(self.history) is self.history[-1]:
            save_model(self.model, self.checkpoints / "best")

    def _resume(self) -> None:
        try:
            state = load_state(self.checkpoints, self.fingerprint)
        except ValueError as reason:
            remove_state(self.checkpoints)
            self.progress.say(f"starts anew; the state in {self.checkpoints} is not used: {reason}")
            return
        if state is None:
            return
        self._restore(state)
        if self.history and self.batch == 0:
            self._save_models()
        self.progress.resume(epoch=min(self.epoch, self.recipe.epochs), step=self.step, steps=self.steps)

    def _restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        set_random_state(state["random"], self.device)
        self.step, self.learning_rate, self.history = state["step"], state["learning_rate"], state["history"]
        self.averages = _Averages(*state["averages"])

    def _own_fingerprint(self, seed: int) -> dict[str, Any]:
        return {
            "initial weights": hash_model(self.model),
            "recipe": asdict(self.recipe),
            "seed": seed,
            "batches": [len(self.train), self.train.batch_size],
            "device": self.device.type,
            "torch": torch.__version__,
        }

    def _stop(self, reason: str) -> NoReturn:
        remove_state(self.checkpoints)
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


class _Averages:
    """Means over the steps of an epoch, kept on the device until they are read."""

    def __init__(self, sums: Mapping[str, Tensor] = {}, steps: int = 0) -> None:
        self.sums = defaultdict(lambda: torch.zeros(()), sums)
        self.steps = steps

    def add(self, stats: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for name, value in stats.items():
            self.sums[name] = self.sums[name].to(value.device) + value

    def read(self) -> Metrics:
        return {name: (value / self.steps).item() for name, value in self.sums.items()}
