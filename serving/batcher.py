"""Micro-batching: images of several requests go through the model together.

The model is never kept waiting for a full batch: a runner that is free takes what is there. It waits, up to
`max_wait_ms`, only while images are being decoded that could still join. So one client alone waits for nobody, and
under load batches fill by themselves while those before are computed.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.deployment import LiveModel
from serving.image_cost import PixelBudget
from serving.model import Prediction
from serving.preprocessing import Pixels
from serving.settings import Batching


@dataclass(frozen=True)
class _Entry:
    live: LiveModel
    images: Pixels  # (n, H, W, channels), n <= max_batch
    answer: "asyncio.Future[Prediction]"


class Batcher:
    """Runs models on batches in threads of its own, in the order of arrival. For one event loop.

    Attributes:
        decoding: Images that will be handed in soon: what a batch that is not full waits for.
    """

    def __init__(
        self, batching: Batching, *, runners: int, on_batch: Callable[[int], None], budget: PixelBudget
    ) -> None:
        """Start.

        Args:
            batching: How requests share the model.
            runners: Batches that are computed at the same time.
            on_batch: Is told the size of each batch.
            budget: Of the pixels that a dense model is run on at the same time, in all batches together.
        """
        self.decoding = 0
        self._batching, self._on_batch, self._budget = batching, on_batch, budget
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._idle = runners
        self._threads = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self._runners = [asyncio.create_task(self._work()) for _ in range(runners)]

    async def run(self, live: LiveModel, images: Pixels) -> Prediction:
        """Return what a model says of images, (n, H, W, channels), n >= 1."""
        loop, most = asyncio.get_running_loop(), self._batching.max_batch
        parts = [images[start : start + most] for start in range(0, len(images), most)]
        entries = [_Entry(live, part, loop.create_future()) for part in parts]
        self._queue.extend(entries)
        self.notify()
        try:
            return _joined(await asyncio.gather(*(entry.answer for entry in entries)))
        finally:
            for entry in entries:  # of a request that failed or is gone, nothing more is computed
                entry.answer.cancel()

    def notify(self) -> None:
        """Look at the queue again: something arrived, or will not arrive."""
        self._arrived.set()

    async def close(self) -> None:
        """End the threads."""
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
        self._threads.shutdown(wait=False)

    async def _work(self) -> None:
        while True:
            await self._wait_for_images()
            if batch := self._next_batch():
                self._idle -= 1
                await self._answer(batch)
                del batch  # else an idle runner keeps a model that was replaced
                self._idle += 1

    async def _wait_for_images(self) -> None:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._batching.max_wait_ms / 1000):
                while self.decoding and self._waiting() < self._batching.max_batch:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _waiting(self) -> int:
        return sum(len(entry.images) for entry in self._queue)

    def _next_batch(self) -> list[_Entry]:
        """Take what fits into a batch, of one model: while it is swapped, requests of the old one still wait.

        Of a dense one also of one size, and no more than its budget of pixels. Runners that are idle share what there
        is.
        """
        batch: list[_Entry] = []
        room = min(self._batching.max_batch, math.ceil(self._waiting() / self._idle))
        while self._queue and (not batch or len(self._queue[0].images) <= room):
            if batch and not self._fits(self._queue[0], batch):
                break
            entry = self._queue.popleft()
            if not entry.answer.done():  # the client is gone, or its time is over
                batch.append(entry)
                room -= len(entry.images)
        return batch

    def _fits(self, entry: _Entry, batch: list[_Entry]) -> bool:
        live, shape = batch[0].live, batch[0].images.shape[1:]
        if entry.live is not live or entry.images.shape[1:] != shape:
            return False
        count = len(entry.images) + sum(len(each.images) for each in batch)
        return not live.onnx.is_dense or count * math.prod(shape[:2]) <= self._budget.most

    async def _answer(self, batch: list[_Entry]) -> None:
        try:
            prediction = await self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0].answer.done():
                    batch[0].answer.set_exception(error)
                return
            for entry in batch:  # one request must not fail for what another sent
                await self._answer([entry])
            return
        start = 0
        for entry in batch:
            end = start + len(entry.images)
            if not entry.answer.done():
                entry.answer.set_result(Prediction(prediction.embedding[start:end], prediction.logits[start:end]))
            start = end

    async def _run(self, batch: list[_Entry]) -> Prediction:
        images = batch[0].images if len(batch) == 1 else np.concatenate([entry.images for entry in batch])
        self._on_batch(len(images))
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._compute, batch[0].live, images)

    def _compute(self, live: LiveModel, images: Pixels) -> Prediction:
        """Run the model, a dense one when there is memory for so many pixels."""
        pixels = math.prod(images.shape[:3])
        with self._budget.take(pixels) if live.onnx.is_dense else contextlib.nullcontext():
            return live.onnx.run(images)


def _joined(predictions: list[Prediction]) -> Prediction:
    if len(predictions) == 1:
        return predictions[0]
    return Prediction(
        np.concatenate([each.embedding for each in predictions]), np.concatenate([each.logits for each in predictions])
    )
