"""What all routes ask: image files or arrays in, the model's answer out, computed off the event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from serving.batcher import Batcher
from serving.deployment import Deployment, LiveModel
from serving.model import Prediction, has_gpu
from serving.preprocessing import ImageError, Pixels
from serving.processors import count_processors
from serving.settings import Batching

MAX_THREADS = 8  # an image takes up to 400 MB while it is decoded


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
        self._decoders.shutdown(cancel_futures=True)

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
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, live.onnx.pixels, file, self._max_pixels) for file in files]
        images = []
        try:
            for number, job in enumerate(jobs, 1):
                try:
                    images.append(await job)
                except ImageError as error:
                    raise (
                        ImageError(f"image {number} of {len(files)}: {error}") if len(files) > 1 else error
                    ) from error
        finally:
            for job in jobs:
                job.cancel()
        return np.stack(images)
