"""What a GPU does: images per second in memory and end to end from Parquet, its utilization, memory.

The floating-point operations are counted, and their rate is compared with that of a large matrix product in this run.
From Parquet every image is read, decoded and cropped in each epoch, as those of a set are that is larger than memory.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import loop, subjects
from benchmarks.loop import GPU_SUBJECT, STEPS, TURN, Clock, Subject, finished
from grpo_rm.datasets import Batch, Batches, read_split
from grpo_rm.losses import GrpoRmLoss
from grpo_rm.transforms import Pixels, training_view
from pipelines.preparation.shards import ShardRow, write_shard

SUBJECTS = [GPU_SUBJECT, replace(GPU_SUBJECT, encoder="vit_base_patch16_224")]
TURNS, WARM_UP_TURNS = 10, 2
MATRIX = 8192
FILES = 4096  # image files in the Parquet shard; those of subjects.py in turn
COUNTED = 8  # images of which the operations are counted


def measure() -> dict[str, Any]:
    """Return what was measured, or why nothing was."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    flops = matrix_rate("cuda", MATRIX)
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(Path(folder))
        rows = {str(subject): measure_subject(subject, flops, Path(folder)) for subject in SUBJECTS}
    return {"device": torch.cuda.get_device_name(), "matrix_flops": flops, "subjects": rows}


def measure_subject(subject: Subject, matrix_flops: float, prepared: Path) -> dict[str, Any]:
    """Return images/s of GRPO-RM in memory and from Parquet, the share of the matrix rate, and the peak memory."""
    if subject.is_on_gpu:
        torch.cuda.reset_peak_memory_stats()
    memory = images_per_second(subject)
    peak = torch.cuda.max_memory_allocated() / 2**30 if subject.is_on_gpu else float("nan")
    operations = flops_per_image(subject)
    with Endless(prepared, subject) as batches:
        parquet = images_per_second(subject, batches)
    return {
        "images_per_second": memory,
        "utilization": {name: value * operations / matrix_flops for name, value in memory.items()},
        "gflop_per_image": operations / 1e9,
        "peak_memory_gib": peak,
        "parquet_images_per_second": parquet,
    }


def images_per_second(subject: Subject, batches: Any = None) -> dict[str, float]:
    """Return median and quartiles."""
    clock = Clock(turns=TURNS + WARM_UP_TURNS)
    loop.train(subject, GrpoRmLoss(loop.OBJECTIVE), clock, batches)
    return loop.spread([TURN * subject.batch_size / seconds for seconds in clock.seconds[WARM_UP_TURNS:]])


def matrix_rate(device: str, size: int) -> float:
    """Return the floating-point operations a second of a product of two bf16 matrices of noise."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(TURNS + WARM_UP_TURNS):
        start = finished()
        for _ in range(TURN):
            left @ right
        seconds.append((finished() - start) / TURN)
    return 2 * size**3 / statistics.median(seconds[WARM_UP_TURNS:])


def flops_per_image(subject: Subject) -> float:
    """Return the floating-point operations of forward and backward for an image, as torch counts them."""
    model, batch, _ = loop.create(subject)
    model.to(batch.images.device).train()
    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(batch.images[:COUNTED])[1]
        F.cross_entropy(logits, batch.targets[:COUNTED]).backward()
    return counter.get_total_flops() / len(logits)


def write_parquet(prepared: Path) -> None:
    """Write a training split of JPEG files as stage prepare does."""
    files = subjects.image_files(subjects.SUBJECTS[0])
    labels = np.random.default_rng(0).integers(0, GPU_SUBJECT.num_classes, FILES).tolist()
    rows = [ShardRow(f"{number:05d}.jpg", files[number % len(files)], label) for number, label in enumerate(labels)]
    (prepared / "train").mkdir(parents=True)
    write_shard(prepared / "train/00000.parquet", rows, classes=[], key="")


@dataclass
class Endless:
    """The batches of all epochs as one."""

    prepared: Path
    subject: Subject

    def __enter__(self) -> "Endless":
        self.batches = Batches(
            read_split(self.prepared, "train"),
            self._view,
            channels=3,
            batch_size=self.subject.batch_size,
            is_training=True,
            workers=len(os.sched_getaffinity(0)),
            cache_gib=0,  # every image is decoded each time
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return STEPS

    @property
    def batch_size(self) -> int:
        """Images."""
        return self.batches.batch_size

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        """Yield batches for ever."""
        while True:
            yield from self.batches.epoch(number)
            number += 1

    def close(self) -> None:
        """End the workers."""
        self.batches.close()

    def _view(self, image: Image.Image, rng: np.random.Generator) -> Pixels:
        return training_view(image, size=self.subject.size, min_crop=0.3, flip=True, interpolation="bicubic", rng=rng)
