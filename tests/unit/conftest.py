"""Settings of all unit tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# the same examples in every run: a test that fails fails again
settings.register_profile("unit", derandomize=True, database=None, deadline=None)
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On tiny tensors several threads only wait for each other: on a busy machine the tests take four times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
