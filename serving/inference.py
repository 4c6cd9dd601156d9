"""What all routes ask: image files or arrays in, the model's answer out, computed off the event loop."""

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from serving.batcher import Batcher
from serving.deployment import Deployment, LiveModel
from serving.image_cost import PixelBudget
from serving.masks import Size
from serving.model import Prediction, has_gpu
from serving.preprocessing import ImageError, Pixels, decode
from serving.processors import count_processors
from serving.settings import Batching, Limits

MAX_THREADS = 8


class NotReadyError(Exception):
    """No model is loaded yet."""


class OverloadedError(Exception):
    """There is no place for more at the moment."""


class Inference:
    """Answers requests. For one event loop.

    Attributes:
        pending: Images that were accepted and are not answered yet.
    """

    def __init__(
        self, deployment: Deployment, batching: Batching, *, limits: Limits, on_batch: Callable[[int], None]
    ) -> None:
        self.pending = 0
        self._deployment, self._batching, self._limits = deployment, batching, limits
        threads = min(count_processors(), MAX_THREADS)
        # On a CPU several batches at once share the threads of the session, and fill the gaps where another one waits
        # for its slowest thread. A GPU wants one batch after the other.
        self._batcher = Batcher(
            batching,
            runners=1 if has_gpu() else threads,
            on_batch=on_batch,
            budget=PixelBudget(limits.dense_pixels),
        )
        Image.init()  # else the first request of each format pays for loading its decoder
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._free = asyncio.Semaphore(threads)
        self._max_at_once, self._budget = threads, PixelBudget(limits.pixels)

    def live(self) -> LiveModel:
        """Return the model a request is to be answered with: asked for once, so that a swap never meets it half way.

        Raises:
            NotReadyError: There is none yet.
        """
        if self._deployment.model is None:
            raise NotReadyError(f"no model is loaded yet: {self._deployment.error}")
        return self._deployment.model

    async def predict(self, live: LiveModel, files: Sequence[bytes]) -> list[Prediction]:
        """Decode N image files and run the model on them.

        Returns:
            What it says, in their order. Images of one size that follow each other are together: of a model that is
            no dense one, all.

        Raises:
            ImageError: One of them is no image, or not one that can be used.
            OverloadedError: The queue is full.
        """
        with self._place(len(files)):
            self._batcher.decoding += len(files)
            try:
                images = await self._decode(live, files)
            finally:
                self._batcher.decoding -= len(files)
                self._batcher.notify()
            groups = [list(group) for _, group in itertools.groupby(images, key=lambda each: each.group(live))]
            return list(await asyncio.gather(*(self._run_group(live, group) for group in groups)))

    async def run(self, live: LiveModel, images: Pixels) -> Prediction:
        """Run the model on N decoded images, (N, H, W, channels).

        Raises:
            ImageError: A dense model does not take images so large.
            OverloadedError: The queue is full.
        """
        if live.onnx.is_dense:
            _check_pixels(math.prod(images.shape[:3]), self._limits)
            most = live.onnx.preprocessing["fixed_size"]
            if most is not None and max(images.shape[1:3]) > most:
                raise ImageError(
                    f"the images are {images.shape[1]} x {images.shape[2]}, expected at most {most} x {most}: shrink "
                    "them, or send the files, which are shrunk here"
                )
        with self._place(len(images)):
            return await self._batcher.run(live, images)

    async def close(self) -> None:
        """End the threads."""
        await self._batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)  # what nobody waits for may take long

    @contextlib.contextmanager
    def _place(self, count: int) -> Iterator[None]:
        if self.pending and self.pending + count > self._batching.queue:  # a request alone always finds a place
            raise OverloadedError(f"{self.pending} images are waiting: try again later")
        self.pending += count
        try:
            yield
        finally:
            self.pending -= count

    async def _run_group(self, live: LiveModel, group: "list[_Decoded]") -> Prediction:
        prediction = await self._batcher.run(live, np.stack([image.pixels for image in group]))
        return replace(prediction, size=group[0].group(live))

    async def _decode(self, live: LiveModel, files: Sequence[bytes]) -> "list[_Decoded]":
        """Decode files, no more at once than there are threads: so a long request does not hold up a short one."""
        images: list[_Decoded] = []
        for start in range(0, len(files), self._max_at_once):
            jobs = [
                asyncio.create_task(self._decode_one(live, file)) for file in files[start : start + self._max_at_once]
            ]
            try:
                for number, job in enumerate(jobs, start + 1):
                    images.append(await _named(job, number, len(files)))
                    if live.onnx.is_dense:
                        _check_pixels(sum(image.count for image in images), self._limits)
            finally:
                for job in jobs:
                    job.cancel()
        return images

    async def _decode_one(self, live: LiveModel, file: bytes) -> "_Decoded":
        """Wait for a thread that is free, and use it. It counts as taken until it has really ended."""
        await self._free.acquire()
        job = self._decoders.submit(_view, live, file, self._limits, self._budget)
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._free.release)

        job.add_done_callback(release)
        return await asyncio.wrap_future(job)


@dataclass(frozen=True)
class _Decoded:
    """An image as the model sees it, and (H, W) of the image itself."""

    pixels: Pixels
    size: Size

    @property
    def count(self) -> int:
        return self.size[0] * self.size[1]

    def group(self, live: LiveModel) -> Size | None:
        """Return what images of one run have in common."""
        return self.size if live.onnx.is_dense else None


def _view(live: LiveModel, file: bytes, limits: Limits, budget: PixelBudget) -> _Decoded:
    onnx = live.onnx
    image = decode(file, channels=onnx.preprocessing["channels"], max_pixels=limits.pixels, budget=budget)
    if onnx.is_dense:
        _check_pixels(image.height * image.width, limits)
    return _Decoded(onnx.view(image), (image.height, image.width))


def _check_pixels(count: int, limits: Limits) -> None:
    """Refuse what a dense model is not run on: its cost and its answer grow with the image."""
    if count > limits.dense_pixels:
        raise ImageError(
            f"there are {count:,} pixels, expected at most {limits.dense_pixels:,} in all images of a request to a "
            "dense model: shrink them, send them one by one, or start the server with a larger "
            "GRPO_RM_MAX_DENSE_PIXELS"
        )


async def _named(job: "asyncio.Task[_Decoded]", number: int, count: int) -> _Decoded:
    try:
        return await job
    except ImageError as error:
        if count == 1:
            raise
        raise ImageError(f"image {number} of {count}: {error}") from error
