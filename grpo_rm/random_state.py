"""Every generator of random numbers a training may draw from: torch's on the CPU and the GPU, NumPy's, Python's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def seed_all(seed: int) -> None:
    """Seed all of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> RandomState:
    """Return their states, as tensors on the CPU and plain values."""
    _, keys, *rest = np.random.get_state(legacy=True)
    on_device = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    numpy = (torch.from_numpy(np.array(keys, dtype=np.int64)), *rest)
    return {"cpu": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()} | on_device


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go back to a state of `random_state`."""
    torch.set_rng_state(state["cpu"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Within the block random numbers may be drawn, and afterwards it is as if none had been."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
