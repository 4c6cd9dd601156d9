"""The loader beside a bare loop: the same images, decoded and cropped by as many processes, in turn.

In the bare loop each process goes through its part of the files, and keeps nothing.
"""

import io
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import loop, subjects
from grpo_rm.datasets import Batches, Split, read_split
from grpo_rm.transforms import Pixels, decode, training_view
from pipelines.preparation.shards import ShardRow, write_shard

ROUNDS, BATCH = 11, 64
WORKERS = (1, 2)


@dataclass(frozen=True)
class Images:
    """What is read: `count` JPEG files, and the side of the square they are cropped and resized to.

    They are `side` pixels wide and high, or like photographs of ImageNet where it is None.
    """

    name: str
    side: int | None
    size: int
    count: int


IMAGES = [Images("64 x 64 JPEG", 64, 64, 4096), Images("500 x 375 JPEG to 224", None, 224, 320)]


def measure() -> list[dict[str, Any]]:
    """Return the rates of both, and their ratio within a round, for each kind of image and number of workers."""
    return [measure_images(images, workers) for images in IMAGES for workers in WORKERS]


def measure_images(images: Images, workers: int) -> dict[str, Any]:
    """Return the rates in images/s."""
    view = partial(crop, size=images.size)
    with tempfile.TemporaryDirectory() as folder:
        write(images, Path(folder))
        split = read_split(Path(folder), "train")
        batches = Batches(split, view, channels=3, batch_size=BATCH, is_training=True, workers=workers, cache_gib=0)
        with closing(batches), bare_loop(split, view, workers) as bare:
            loader = partial(read_all, batches)
            pairs = [(clock(loader), clock(bare)) for _ in range(ROUNDS + 1)][1:]  # the first starts the workers
    rates = {"loader": [images.count / pair[0] for pair in pairs], "bare": [images.count / pair[1] for pair in pairs]}
    ratios = [bare_s / loader_s for loader_s, bare_s in pairs]
    return {
        "images": images.name,
        "workers": workers,
        "rounds": ROUNDS,
        "ratio": loop.spread(ratios),
        **{name: loop.spread(values) for name, values in rates.items()},
    }


def crop(image: Image.Image, rng: np.random.Generator, *, size: int) -> Pixels:
    """The view of a training."""
    return training_view(image, size=size, min_crop=0.3, flip=True, interpolation="bicubic", rng=rng)


def write(images: Images, prepared: Path) -> None:
    """Write the files as stage prepare does."""
    files = subjects.image_files(subjects.SUBJECTS[0])
    if images.side:
        files = [resized(file, images.side) for file in files]
    rows = [ShardRow(f"{number:05d}.jpg", files[number % len(files)], 0) for number in range(images.count)]
    (prepared / "train").mkdir()
    write_shard(prepared / "train/00000.parquet", rows, classes=["any"], key="")


def resized(file: bytes, side: int) -> bytes:
    """Return a smaller image file."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(file)).resize((side, side)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def clock(work: Any) -> float:
    """Return how many seconds it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_all(batches: Batches) -> None:
    """Take all batches of an epoch, as a training does that needs no time for them."""
    for _ in batches.epoch(1):
        pass


@contextmanager
def bare_loop(split: Split, view: Any, workers: int) -> Iterator[Any]:
    """Start the processes of the bare loop; yield the function that lets each decode its part, and waits for all."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(workers)]
    parts = np.array_split(np.random.default_rng(0).permutation(len(split.files)), workers)
    processes = [
        context.Process(target=_decode_part, args=(split, view, part.tolist(), theirs), daemon=True)
        for part, (_, theirs) in zip(parts, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    yield partial(_decode_all, [ours for ours, _ in pipes])
    for process in processes:
        process.kill()
        process.join()


def _decode_all(pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.send("begin")
    for pipe in pipes:
        pipe.recv()


def _decode_part(split: Split, view: Any, part: list[int], pipe: Connection) -> None:
    rng = np.random.default_rng(0)
    while True:
        pipe.recv()
        for index in part:
            view(decode(split.files[index], channels=3), rng)
        pipe.send("done")
