"""Run one stage and print how long its own work took: `python -m benchmarks.stage_time finetune@grpo_rm`."""

import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from pipelines.stage import run_stage

# Per stage: what its work imports late, so that it counts as overhead, and the functions that are its work.
WORK = {
    "prepare": (["sklearn.datasets"], ["pipelines.prepare:prepare"]),
    "validate": (["great_expectations"], ["pipelines.validation.expectations.checks:validate_manifest"]),
    "pretrain": ([], ["grpo_rm.trainer:Trainer.fit"]),
    "finetune@grpo_rm": ([], ["grpo_rm.trainer:Trainer.fit"]),
    "finetune@cross_entropy": ([], ["grpo_rm.trainer:Trainer.fit"]),
    "evaluate": (
        ["grpo_rm.evaluation.measurement", "timm", "sklearn.linear_model", "torchmetrics", "matplotlib.figure"],
        ["pipelines.evaluate:evaluate"],
    ),
    "export": (
        ["timm", "onnxscript", "onnxruntime"],
        ["grpo_rm.export:export_onnx", "grpo_rm.export:measure_parity", "pipelines.export:measure_latency"],
    ),
    "register": (
        ["timm", "sklearn.linear_model", "onnxruntime"],
        ["pipelines.tracking.registry:create_version", "pipelines.verdict:judge"],
    ),
    "report": (["matplotlib.figure", "sklearn.manifold"], ["pipelines.report:read_content"]),
}


class Stopwatch:
    """Sums the time spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    """Run the stage named on the command line."""
    stage = sys.argv[1]
    imports, functions = WORK[stage]
    for name in imports:
        importlib.import_module(name)
    stopwatch = Stopwatch()
    for path in functions:
        module, _, name = path.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, stopwatch.wrap(getattr(owner, last)))
    module, _, arm = stage.partition("@")
    sys.argv = [module, *([arm] if arm else [])]
    stage_main = importlib.import_module(f"pipelines.{module}").main

    def timed_main() -> None:
        stage_main()
        print(f"work {stopwatch.seconds:.3f}")

    run_stage(timed_main)


if __name__ == "__main__":
    main()
