"""Progress of a long run: a bar on a terminal, one line per epoch everywhere."""

import re
import sys
import time
from collections.abc import Mapping
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts images, and says how fast and how long still.

    Args:
        title: Shown in front.
        epochs: How many there will be.
        images_per_epoch: How many images each has.
        is_shown: One of several processes shows it.
    """

    def __init__(self, title: str, *, epochs: int, images_per_epoch: int, is_shown: bool = True) -> None:
        self.title, self.epochs, self.images_per_epoch = title, epochs, images_per_epoch
        self._images, self._started = 0, time.monotonic()
        self.is_shown = is_shown
        # disable=None: no bar where stderr is not a terminal
        is_disabled = None if is_shown else True
        self._bar = tqdm(
            total=epochs * images_per_epoch, desc=title, unit=" images", unit_scale=True, disable=is_disabled
        )

    def advance(self, images: int) -> None:
        """Count the images of one step."""
        self._images += images
        self._bar.update(images)

    def resume(self, *, epoch: int, step: int, steps: int) -> None:
        """Say where an earlier run stopped; speed counts what comes from here on."""
        self._bar.initial = self._bar.n = step * self.epochs * self.images_per_epoch // steps
        self._bar.refresh()
        self.say(f"resumes at epoch {epoch}, step {step} of {steps}")

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.is_shown:
            return
        tqdm.write(f"{self.title}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def end_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Print the line of an epoch; `epoch_of` reads it."""
        # with a fresh old policy the value of the clipped objective is 0 all along; this reward is the mean p(label)
        first = next(name for name in ("rewards/accuracy/mean", "reward", "train_loss") if name in metrics)
        measured = [name for name in metrics if name.startswith("val_")]
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in (first, *measured))
        self.say(f"epoch {epoch}/{self.epochs}  {values}{self._pace(epoch)}")

    def _pace(self, epoch: int) -> str:
        if not self._images:  # resumed after the last image of the epoch
            return ""
        speed = self._images / (time.monotonic() - self._started)
        left = (self.epochs - epoch) * self.images_per_epoch / speed
        return f"  {speed:,.0f} images/s  {_clock(left)} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def epoch_of(line: str) -> tuple[int, int] | None:
    """Return (epoch, epochs) from a line that ended an epoch, None from any other line."""
    found = re.search(r"  epoch (\d+)/(\d+)  ", line)
    return (int(found[1]), int(found[2])) if found else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
