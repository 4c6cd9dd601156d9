"""What all routes ask: image files or arrays in, the model's answer out, computed off the event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from serving.batcher import Batcher
from serving.deployment import Deployment, LiveModel
from serving.image_cost import PixelBudget
from serving.model import Prediction, has_gpu
from serving.preprocessing import ImageError, Pixels
from serving.processors import count_processors
from serving.settings import Batching

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
        self, deployment: Deployment, batching: Batching, *, max_pixels: int, on_batch: Callable[[int], None]
    ) -> None:
        self.pending = 0
        self._deployment, self._batching, self._max_pixels = deployment, batching, max_pixels
        threads = min(count_processors(), MAX_THREADS)
        # On a CPU several batches at once share the threads of the session, and fill the gaps where another one waits
        # for its slowest thread. A GPU wants one batch after the other.
        self._batcher = Batcher(batching, runners=1 if has_gpu() else threads, on_batch=on_batch)
        Image.init()  # else the first request of each format pays for loading its decoder
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._free = asyncio.Semaphore(threads)
        self._max_at_once, self._budget = threads, PixelBudget(max_pixels)

    def live(self) -> LiveModel:
        """Return the model a request is to be answered with: asked for once, so that a swap never meets it half way.

        Raises:
            NotReadyError: There is none yet.
        """
        if self._deployment.model is None:
            raise NotReadyError(f"no model is loaded yet: {self._deployment.error}")
        return self._deployment.model

    async def predict(self, live: LiveModel, files: Sequence[bytes]) -> Prediction:
        """Decode N image files and run the model on them.

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
            return await self._batcher.run(live, images)

    async def run(self, live: LiveModel, images: Pixels) -> Prediction:
        """Run the model on N decoded images, (N, size, size, channels).

        Raises:
            OverloadedError: The queue is full.
        """
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

    async def _decode(self, live: LiveModel, files: Sequence[bytes]) -> Pixels:
        """Decode files, no more at once than there are threads: so a long request does not hold up a short one."""
        images: list[Pixels] = []
        for start in range(0, len(files), self._max_at_once):
            jobs = [
                asyncio.create_task(self._decode_one(live, file)) for file in files[start : start + self._max_at_once]
            ]
            try:
                for number, job in enumerate(jobs, start + 1):
                    images.append(await _named(job, number, len(files)))
            finally:
                for job in jobs:
                    job.cancel()
        return np.stack(images)

    async def _decode_one(self, live: LiveModel, file: bytes) -> Pixels:
        """Wait for a thread that is free, and use it. It counts as taken until it has really ended."""
        await self._free.acquire()
        job = self._decoders.submit(live.onnx.pixels, file, self._max_pixels, self._budget)
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._free.release)

        job.add_done_callback(release)
        return await asyncio.wrap_future(job)


async def _named(job: "asyncio.Task[Pixels]", number: int, count: int) -> Pixels:
    try:
        return await job
    except ImageError as error:
        if count == 1:
            raise
        raise ImageError(f"image {number} of {count}: {error}") from error
