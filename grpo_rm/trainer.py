"""The one training loop: pretraining, control and GRPO-RM differ in the loss alone."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from grpo_rm.checkpoint import (
    State,
    epoch_directory,
    find_state,
    hash_model,
    load_model,
    remove_state,
    save_epoch,
    save_state,
)
from grpo_rm.datasets import Batches, EvaluationBatches
from grpo_rm.history import Averages, Metrics, best_epochs, epochs_without_progress
from grpo_rm.learner import Learner, NotFiniteError
from grpo_rm.losses import Loss
from grpo_rm.model import VisionModel
from grpo_rm.progress import Progress
from grpo_rm.random_state import random_state, seed_all, set_random_state
from grpo_rm.recipe import Recipe
from grpo_rm.sites import Aggregation
from grpo_rm.task import CLASSIFICATION, Task
from grpo_rm.validation import signal_warning

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
    """Trains one model, in one process or several; holds where it is.

    It goes on where an earlier one with the same `checkpoints` was interrupted, or killed: on the CPU the result is the
    same to the last bit. An earlier one that was given anything else does not count.

    Args:
        model: Trained in place.
        loss: Sites to the loss.
        train: Training batches; same seed, same images in the same order.
        val: Validation batches.
        recipe: Epochs, learning rate and the like.
        seed: Of dropout and the like. Same seed, data and machine give the same weights on the CPU.
        accelerator: Where to train, in which precision, and with which other processes.
        checkpoints: Directory that receives `last` and the best models (`epoch-N`), each complete, after every epoch,
            and the state to go on from: after every epoch, every five minutes, and when stopped. The state stays until
            `checkpoint.remove_state`. The first process alone writes.
        title: Name of the run on the progress display.
        fingerprint: What the result depends on and the trainer cannot see, as JSON: data, loss, code.
        task: What the sites of a batch are, and what is measured on validation.
        aggregation: What a site counts; see `site_weights`.
        old_policy_steps: See `Learner`.
        use_reference: See `Learner`.
        memory_size: See `Learner`. Never more than an epoch has.
        gallery: The training images as they are evaluated, for k-nearest neighbors and class prototypes.
        on_step: Receives the number of steps done and the metrics of the last one, for at most 1,000 steps of a run.
        on_epoch: Receives the number of steps done and the validation metrics. Each process calls its own.
        should_stop: Asked after every batch, of training and validation. One process that says so stops all.

    Raises:
        ValueError: The recipe asks for what there is not; the message says what.
    """

    def __init__(
        self,
        model: VisionModel,
        loss: Loss,
        train: Batches,
        val: EvaluationBatches,
        recipe: Recipe,
        *,
        seed: int,
        accelerator: Accelerator,
        checkpoints: Path,
        title: str,
        fingerprint: Mapping[str, Any],
        task: Task = CLASSIFICATION,
        aggregation: Aggregation = "per_image",
        old_policy_steps: int = 1,
        use_reference: bool = False,
        memory_size: int = 0,
        gallery: EvaluationBatches | None = None,
        on_step: Report | None = None,
        on_epoch: Report | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.train, self.recipe = train, recipe
        self.checkpoints, self.device = checkpoints, accelerator.device
        self.steps = recipe.epochs * len(train) * recipe.num_iterations
        self.learner = Learner(
            model,
            loss,
            recipe,
            accelerator,
            steps=self.steps,
            task=task,
            aggregation=aggregation,
            old_policy_steps=old_policy_steps,
            use_reference=use_reference,
            memory_size=min(memory_size, len(train) * train.batch_size * task.places_per_image),
        )
        self.processes, self.should_stop = self.learner.processes, should_stop
        self.on_step, self.on_epoch = on_step or _ignore, on_epoch or _ignore
        self.validator = task.create_validator(
            val, gallery, recipe, self.processes, device=self.device, pause=self._pause
        )
        seed_all(seed + self.processes.rank)
        self.fingerprint = {
            **fingerprint,
            **self._own_fingerprint(seed, task, aggregation, old_policy_steps, use_reference, memory_size),
        }
        self.progress = Progress(
            title,
            epochs=recipe.epochs,
            images_per_epoch=len(train) * train.batch_size * recipe.num_iterations,
            is_shown=self.processes.is_first,
        )
        self.averages = Averages()
        self.history: list[Metrics] = []
        self.is_warned = False
        self.saved = time.monotonic()
        self._resume()

    @property
    def model(self) -> VisionModel:
        """The one that is trained; its weights are those of the last step."""
        return self.learner.model

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.learner.steps

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return len(self.history) + 1

    @property
    def batch(self) -> int:
        """How many batches of it are done."""
        return self.step // self.recipe.num_iterations - len(self.history) * len(self.train)

    @property
    def best(self) -> Metrics:
        """The row of the best epoch so far."""
        return best_epochs(self.history, self.recipe.monitor)[0]

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left, or patience is."""
        has_patience = not (self.history and self.recipe.patience) or (
            epochs_without_progress(self.history, self.recipe.monitor) < self.recipe.patience
        )
        return self.epoch > self.recipe.epochs or not has_patience

    def fit(self) -> VisionModel:
        """Train all epochs; return the best model by `recipe.monitor` (ties: the lower NLL, then the earlier).

        Afterwards `history` has a row of metrics per epoch. Other processes than the first return the last model.

        Raises:
            FloatingPointError: Loss, gradient or validation is not finite. The message says the step; `checkpoints`
                keeps the last good epoch, but no state: it would only lead there again.
            Interrupted: `should_stop` said so.
        """
        with self.progress, closing(self.train), closing(self.validator):
            while not self.is_done:
                try:
                    self._train_epoch()
                except NotFiniteError as error:
                    self._stop(error.step, str(error))
                self._end_epoch(*self._validate())
        if self.epoch <= self.recipe.epochs:
            self.progress.say(f"stops early: {self.recipe.monitor} is no better than {self.recipe.patience} epochs ago")
        if not self.processes.is_first:
            return self.learner.result
        return load_model(epoch_directory(self.checkpoints, int(self.best["epoch"])))

    def _train_epoch(self) -> None:
        if self.step == 0:
            self._set_prototypes()
        self.learner.prepare()
        stride = math.ceil(self.steps / MAX_LOGGED_STEPS)
        for images, labels in self.train.epoch(self.epoch, start=self.batch):
            for stats in self.learner.learn(images, labels):
                self.averages.add(stats)
                if self.step % stride == 0:
                    metrics = Averages.of(stats).read(self.processes)
                    self.on_step(self.step, metrics | {"learning_rate": self.learner.learning_rate})
                self.progress.advance(len(images) * self.processes.count)
            self._pause()
        self.learner.finish()
        self.learner.share_statistics()

    def _set_prototypes(self) -> None:
        for model in self.learner.models:
            self.validator.set_prototypes(model)

    def _validate(self) -> tuple[Metrics, str | None]:
        self._set_prototypes()
        metrics, warning = self.validator.measure(self.learner.result, epoch=self.epoch)
        if not math.isfinite(metrics["val_nll"]):
            self._stop(self.step, f"the validation loss is {metrics['val_nll']:g}")
        return metrics, warning

    def _end_epoch(self, validation: Metrics, warning: str | None) -> None:
        self.on_epoch(self.step, validation)
        averages = self.averages.read(self.processes) | {"learning_rate": self.learner.learning_rate}
        epoch, row = self.epoch, averages | validation
        self.history.append({"epoch": epoch, "step": self.step} | row)
        self.averages = Averages()
        self.progress.end_epoch(epoch, row)
        warning = signal_warning(row) or warning
        if warning and not self.is_warned:
            self.is_warned = True
            self.progress.say(f"warning: {warning}")
        self._save()
        self._save_models()

    def _pause(self) -> None:
        """Save where it is time to, and stop where that was asked for."""
        is_late = self.processes.is_first and time.monotonic() - self.saved > SAVE_SECONDS
        is_stopping, is_late = self.processes.any(self.should_stop(), is_late)
        if is_stopping or is_late:
            self._save()
        if is_stopping:
            raise Interrupted(self.step, self.steps, self.checkpoints)

    def _save(self) -> None:
        self.learner.finish()  # nothing that is not finite is saved
        state = {
            "learner": self.learner.state(),
            "processes": self.processes.gather((random_state(self.device), self.averages.state())),
            "history": self.history,
            "is_warned": self.is_warned,
        }
        if self.processes.is_first:
            save_state(state, self.checkpoints, self.fingerprint)
        self.saved = time.monotonic()

    def _save_models(self) -> None:
        """Write them after the state: a crash between them leaves what a resumed training writes."""
        if self.processes.is_first:
            best = best_epochs(self.history, self.recipe.monitor)[: self.recipe.keep_best]
            kept = [int(row["epoch"]) for row in best]
            save_epoch(self.learner.result, self.checkpoints, epoch=self.epoch - 1, kept=kept)

    def _resume(self) -> None:
        found = find_state(self.checkpoints, self.fingerprint) if self.processes.is_first else None
        state, reason = self.processes.from_first(found)
        if reason:
            self.progress.say(f"starts anew; the state in {self.checkpoints} is not used: {reason}")
        if state is None:
            return
        self._restore(state)
        if self.history and self.batch == 0:
            self._save_models()
        self.progress.resume(epoch=min(self.epoch, self.recipe.epochs), step=self.step, steps=self.steps)

    def _restore(self, state: State) -> None:
        self.learner.restore(state["learner"])
        random_numbers, averages = state["processes"][self.processes.rank]
        set_random_state(random_numbers, self.device)
        self.averages = Averages(averages, device=self.device)
        self.history, self.is_warned = state["history"], state["is_warned"]

    def _own_fingerprint(self, seed: int, task: Task, *settings: Any) -> dict[str, Any]:
        return {
            "initial weights": hash_model(self.model),
            "recipe": asdict(self.recipe),
            "seed": seed,
            "task": str(task),
            "settings": settings,
            "batches": [len(self.train), self.train.batch_size],
            "device": self.device.type,
            "processes": self.processes.count,
            "torch": torch.__version__,
        }

    def _stop(self, step: int, reason: str) -> NoReturn:
        if self.processes.is_first:
            remove_state(self.checkpoints)
        kept = f"the model of epoch {self.epoch - 1} is kept in {self.checkpoints / 'last'}"
        raise FloatingPointError(
            f"training stopped at step {step} (epoch {self.epoch}): {reason}; "
            f"{kept if self.epoch > 1 else 'no epoch was finished yet'}. Lower learning_rate "
            f"(now {self.recipe.learning_rate:g}) or clip_grad_norm (now {self.recipe.clip_grad_norm:g})"
        )


def _ignore(step: int, metrics: Metrics) -> None:
    pass
