"""Where a training runs: in one process, or in several that torchrun started; on the CPU or on GPUs."""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from grpo_rm.recipe import Precision


def create_accelerator(precision: Precision = "fp32", *, cpu: bool = False) -> Accelerator:
    """Return Accelerate's view of the processes and devices; a GPU is used where there is one.

    Args:
        precision: Of autocast; "fp32" is none.
        cpu: Leave GPUs alone.

    Raises:
        ValueError: fp16 without a GPU.
    """
    cpu = cpu or not torch.cuda.is_available()  # if not told so, Accelerate takes each of several processes for alone
    if precision == "fp16" and cpu:
        raise ValueError('precision is "fp16", which needs a GPU, and there is none: use "bf16" or "fp32"')
    AcceleratorState._reset_state()  # an earlier training may have had another
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)


class Processes:
    """What the processes of a training tell each other. With one process all of it is free.

    Args:
        accelerator: Its processes are meant.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.count, self.rank = accelerator.num_processes, accelerator.process_index
        # signs that the CPU waits for must not wait for the GPU
        self._signs = self._sign_group() if self.count > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return bool(self.rank == 0)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the processes."""
        return self._reduced(values, dist.ReduceOp.SUM) / self.count if self.count > 1 else values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the processes."""
        return self._reduced(values, dist.ReduceOp.SUM) if self.count > 1 else values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Return the greatest over the processes, element by element."""
        return self._reduced(values, dist.ReduceOp.MAX) if self.count > 1 else values

    def join(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes, in their order; each has the same number."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def share(self, values: torch.Tensor) -> None:
        """Replace the values by the first process's."""
        if self.count > 1:
            dist.broadcast(values, src=0)

    def any(self, *signs: bool) -> tuple[bool, ...]:
        """Return for each sign whether a process gives it."""
        if self.count == 1:
            return signs
        given = torch.tensor([int(sign) for sign in signs])
        dist.all_reduce(given, dist.ReduceOp.MAX, group=self._signs)
        return tuple(bool(sign) for sign in given)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in their order."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self._signs)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the first process's value."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._signs)
        return values[0]

    @staticmethod
    def _sign_group() -> dist.ProcessGroup:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)  # and not NON_GROUP_MEMBER
        return group

    def _reduced(self, values: torch.Tensor, how: Any) -> torch.Tensor:
        reduced = values.clone()
        dist.all_reduce(reduced, how)
        return reduced
