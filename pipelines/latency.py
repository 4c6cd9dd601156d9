"""How long a batch takes, on this machine's CPU."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCHES = (1, 32)
DENSE_BATCHES = (1, 4)  # of whole images, which are large
RUNS = 20


def onnx_latency(path: Path, images: NDArray[np.uint8], batches: Sequence[int] = BATCHES) -> dict[str, float]:
    """Return the median time of a batch in onnxruntime, in milliseconds, by the size of the batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {str(size): median_ms(session.run, None, {"images": batch_of(images, size)}) for size in batches}


def batch_of(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return `size` of the images, repeated where there are fewer."""
    return np.resize(images, (size, *images.shape[1:]))


def median_ms(action: Callable[..., Any], *arguments: Any) -> float:
    """Return the median time of a call in milliseconds, after one that is not counted."""
    action(*arguments)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        action(*arguments)
        times.append((time.perf_counter() - start) * 1000)
    return round(statistics.median(times), 3)
