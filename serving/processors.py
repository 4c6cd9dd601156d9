"""How many processors this process may use."""

import math
import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def count_processors(limit: Path = CGROUP_LIMIT) -> int:
    """Return the processors of this machine that the scheduler (taskset) and the container leave to this process.

    onnxruntime's own default is all cores of the machine: in a container with a limit of 2 on a machine of 64, its 64
    threads take turns on 2 processors.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()
        return max(1, min(available, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or "max"
        return available
