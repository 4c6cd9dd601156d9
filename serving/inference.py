"""What all routes ask: image files or arrays in, the model's answer out."""

import os
from collections.abc import Sequence

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from serving.deployment import Deployment, LiveModel
from serving.model import Prediction


class NotReadyError(Exception):
    """No model is loaded yet."""


class Inference:
    """Decodes and runs off the event loop."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._threads = anyio.CapacityLimiter(os.cpu_count() or 1)  # more decoding at once is only more memory

    def live(self) -> LiveModel:
        """Return the model a request is to be answered with: asked for once, so that a swap never meets it half way.

        Raises:
            NotReadyError: There is none yet.
        """
        if self.deployment.model is None:
            raise NotReadyError(f"no model is loaded yet: {self.deployment.error}")
        return self.deployment.model

    async def predict(self, live: LiveModel, files: Sequence[bytes]) -> Prediction:
        """Decode N image files and run the model on them.

        Raises:
            ImageError: One of them is no image, or not one that can be used.
        """
        return await anyio.to_thread.run_sync(live.onnx.predict, files, limiter=self._threads)

    async def run(self, live: LiveModel, images: NDArray[np.uint8]) -> Prediction:
        """Run the model on decoded images: (N, size, size, channels)."""
        return await anyio.to_thread.run_sync(live.onnx.run, images, limiter=self._threads)
