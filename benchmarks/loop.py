"""The trainer's loop beside a bare one, and a step of GRPO-RM beside a step of cross-entropy.

Both are measured within one training: `Trainer` asks after every batch whether to stop, and the clock answers. What is
compared takes turns of `TURN` steps, so that what else the machine does meets both.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.devices import create_accelerator
from grpo_rm.losses import GrpoRmLoss, Loss, LossOutput, Objective, cross_entropy_loss
from grpo_rm.model import Model, ModelConfig
from grpo_rm.recipe import Precision, Recipe, create_optimizer
from grpo_rm.rewards import accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites
from grpo_rm.trainer import Interrupted, Trainer

TURN, ROUNDS, WARM_UP_ROUNDS = 10, 20, 2
STEPS = 100_000  # as long a training as there are: what is logged, is logged as seldom


@dataclass(frozen=True)
class Subject:
    """A model and its batch.

    Attributes:
        encoder: Name of a timm model.
        size: Side of the images in pixels.
        batch_size: Of images.
        num_classes: K.
        precision: Of autocast.
        is_on_gpu: Where it trains.
    """

    encoder: str
    size: int
    batch_size: int
    num_classes: int = 1000
    precision: Precision = "fp32"
    is_on_gpu: bool = False

    def __str__(self) -> str:
        return f"{self.encoder} at {self.size}, {self.precision}, batch {self.batch_size}, K = {self.num_classes}"


CPU_SUBJECT = Subject("test_resnet", 64, 64)
GPU_SUBJECT = Subject("vit_small_patch16_224", 224, 256, precision="bf16", is_on_gpu=True)
OBJECTIVE = Objective(
    rewards={"accuracy": accuracy_reward, "uniformity": uniformity_reward},
    reward_weights={"accuracy": 1.0, "uniformity": 1.0},
    eps=0.01,
)


def measure(subject: Subject) -> dict[str, Any]:
    """Return images per second of the trainer and of a bare loop, what GRPO-RM adds to a step, and their ratios."""
    return {
        "subject": str(subject),
        "device": "gpu" if subject.is_on_gpu else "cpu",
        "batch_size": subject.batch_size,
        "rounds": ROUNDS,
        "loop": compare_with_bare_loop(subject),
        "step": compare_losses(subject),
    }


def compare_with_bare_loop(subject: Subject) -> dict[str, Any]:
    """Return images/s of the trainer over images/s of forward, backward and step alone, with cross-entropy."""
    model, batch, recipe = create(subject)
    optimizer, accelerator = create_optimizer(model, recipe), create_accelerator(subject.precision)
    model.to(accelerator.device).train()

    def bare() -> None:
        for _ in range(TURN):
            optimizer.zero_grad(set_to_none=True)
            with accelerator.autocast():
                logits = model(batch.images)[1]
            F.cross_entropy(logits.float(), batch.targets).backward()
            optimizer.step()

    clock = Clock(turns=ROUNDS + WARM_UP_ROUNDS, in_between=bare)
    train(subject, cross_entropy_loss, clock)
    return rates(clock.seconds, clock.between, subject, names=("trainer", "bare"))


def compare_losses(subject: Subject) -> dict[str, Any]:
    """Return seconds of a step of GRPO-RM over those of a step of cross-entropy, both by the trainer."""
    loss = Alternating(GrpoRmLoss(OBJECTIVE), cross_entropy_loss)
    clock = Clock(turns=2 * (ROUNDS + WARM_UP_ROUNDS), in_between=loss.switch)
    train(subject, loss, clock)
    turns = clock.seconds
    result = rates(turns[0::2], turns[1::2], subject, names=("grpo_rm", "cross_entropy"))
    inverse = {name: 1 / value for name, value in result["ratio"].items()}
    return result | {"ratio": {"median": inverse["median"], "min": inverse["max"], "max": inverse["min"]}}


class Clock:
    """Times turns of `TURN` steps of a training that asks it whether to stop, and ends it after the last.

    Args:
        turns: How many are timed.
        in_between: Done after each turn, and timed too.
    """

    def __init__(self, *, turns: int, in_between: Callable[[], None] = lambda: None) -> None:
        self.turns, self.in_between = turns, in_between
        self.batches = 0
        self.seconds: list[float] = []
        self.between: list[float] = []

    def __call__(self) -> bool:
        """Count a batch; return whether it was the last."""
        self.batches += 1
        if self.batches % TURN:
            return False
        now = finished()
        if self.batches > TURN:  # before the first turn everything is new
            self.seconds.append(now - self.started)
        self.in_between()
        self.started = finished()
        if self.batches > TURN:
            self.between.append(self.started - now)
        return len(self.seconds) == self.turns


class Alternating:
    """A loss that is one of two, in turn. Both have the names that the trainer averages: those of the first."""

    def __init__(self, first: Loss, second: Loss) -> None:
        self.first, self.second, self.is_first = first, second, False
        self.names: list[str] = []

    def switch(self) -> None:
        """Be the other one."""
        self.is_first = not self.is_first

    def __call__(self, sites: Sites) -> LossOutput:
        """Return the loss of the one whose turn it is."""
        if not self.names:
            self.names = list(self.first(sites).stats)
        output = self.first(sites) if self.is_first else self.second(sites)
        none = output.loss.detach()
        return LossOutput(output.loss, {name: output.stats.get(name, none) for name in self.names})


@dataclass(frozen=True)
class Memory:
    """One batch on the device, again and again: what `Trainer` asks of `Batches`."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return STEPS

    @property
    def batch_size(self) -> int:
        """Images."""
        return len(self.images)

    def epoch(self, number: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """Yield it."""
        for _ in range(start, STEPS):
            yield self.images, self.targets

    def close(self) -> None:
        """Nothing is open."""


def create(subject: Subject) -> tuple[Model, Memory, Recipe]:
    """Return the model, a batch of noise, and how to train."""
    torch.manual_seed(0)
    classes = [f"class {number}" for number in range(subject.num_classes)]
    model = Model(ModelConfig(subject.encoder, 3, subject.size, 1.0, "bicubic", [0.5] * 3, [0.5] * 3, classes))
    images = torch.randint(0, 256, (subject.batch_size, subject.size, subject.size, 3), dtype=torch.uint8)
    targets = torch.randint(0, subject.num_classes, (subject.batch_size,))
    device = "cuda" if subject.is_on_gpu else "cpu"
    recipe = Recipe(epochs=1, learning_rate=1e-4, precision=subject.precision)
    return model, Memory(images.to(device), targets.to(device)), recipe


def train(subject: Subject, loss: Loss, clock: Callable[[], bool], batches: Any = None) -> None:
    """Train until the clock says that it is enough: on a batch in memory, or on `batches`."""
    model, batch, recipe = create(subject)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            loss,
            batches or batch,
            batch,
            recipe,
            seed=0,
            accelerator=create_accelerator(subject.precision, cpu=not subject.is_on_gpu),
            checkpoints=Path(folder),
            title="benchmark",
            fingerprint={},
            should_stop=clock,
        )
        try:
            trainer.fit()
        except Interrupted:
            return
    raise RuntimeError("the training ended before the clock")


def rates(
    first: list[float], second: list[float], subject: Subject, *, names: tuple[str, str]
) -> dict[str, dict[str, float]]:
    """Return images/s of both and the first over the second, round by round; warm-up rounds are left out."""
    images = TURN * subject.batch_size
    pairs = list(zip(first, second, strict=True))[-ROUNDS:]
    return {
        names[0]: spread([images / a for a, _ in pairs]),
        names[1]: spread([images / b for _, b in pairs]),
        "ratio": spread([b / a for a, b in pairs]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles: least and most of twenty say more of the machine than of what is measured."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "min": low, "max": high}


def finished() -> float:
    """Return the time when the GPU, where there is one, has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
