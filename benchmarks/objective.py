"""The objective alone, forward and backward, over the time to move the bytes it cannot avoid; prints a Markdown table.

Run with `python -m benchmarks.objective`. The bytes are the logits, and old logits where there are, read once and the
gradient written once, at the bandwidth of a large copy in this run. Times are of CUDA graphs, so that no launch from
Python is in them: warm, the same inputs again and again; cold, as many inputs and gradients in turn as no cache holds.
Beside it the plain loss, and the plain loss through torch.compile. On the CPU only these two are compared.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_rm.fused import fused_grpo_rm_loss, is_fusable
from grpo_rm.losses import LossOutput, Objective, grpo_rm_loss
from grpo_rm.rewards import accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites, site_weights, valid_sites

SHAPES = [(4096, 1000), (512, 21_841), (8, 150, 128, 128)]
CPU_SHAPE = (256, 1000)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLD_BYTES, COPY_BYTES = 1 << 29, 1 << 30
REPEATS, WARM_UP, WARM_CALLS = 20, 3, 10
GOAL = "at most 1.5; memory at most 1.1 times the gradient's"
OBJECTIVE = Objective(
    rewards={"accuracy": accuracy_reward, "uniformity": uniformity_reward},
    reward_weights={"accuracy": 1.0, "uniformity": 1.0},
)


def main() -> None:
    """Measure and print."""
    for row in table_rows(measure()):
        print("| " + " | ".join(row) + " |")


def measure() -> dict[str, Any]:
    """Return what was measured, and of what was not why."""
    cpu = measure_cpu()
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device", "cpu": cpu}
    bandwidth = copy_bandwidth()
    rows = [
        measure_case(shape, dtype, has_old, bandwidth)
        for shape in SHAPES
        for dtype in DTYPES
        for has_old in (False, True)
    ]
    packages = {"torch": torch.__version__, "cuda": torch.version.cuda}
    device = torch.cuda.get_device_name()
    return {"device": device, "packages": packages, "copy_bytes_per_second": bandwidth, "rows": rows, "cpu": cpu}


def measure_case(shape: tuple[int, ...], dtype: str, has_old: bool, bandwidth: float) -> dict[str, Any]:
    """Return the ratios of each way, cold and warm, and its peak memory over the gradient's."""
    gradient_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    seconds = gradient_bytes * (3 if has_old else 2) / bandwidth
    count = max(2, COLD_BYTES // gradient_bytes)
    batches = [draw_sites(shape, DTYPES[dtype], has_old, "cuda") for _ in range(count)]
    assert is_fusable(batches[0], OBJECTIVE)
    ways = {}
    for name, loss in _ways().items():
        peak = peak_bytes(loss, batches[0])
        ways[name] = {
            "cold": spread([value / seconds for value in graph_seconds(loss, batches)]),
            "warm": spread([value / seconds for value in graph_seconds(loss, batches[:1] * WARM_CALLS)]),
            "memory": peak / gradient_bytes,
        }
    return {"shape": shape, "dtype": dtype, "has_old": has_old, "floor_seconds": seconds, "ways": ways}


def measure_cpu() -> dict[str, Any]:
    """Return milliseconds of the plain loss and of the compiled one."""
    sites = draw_sites(CPU_SHAPE, torch.float32, False, "cpu")
    ways = _ways()
    result: dict[str, Any] = {"shape": CPU_SHAPE, "threads": torch.get_num_threads()}
    for name in ("plain", "compiled"):
        for _ in range(WARM_UP):
            gradient_of(ways[name], sites)
        result[name] = spread([1000 * seconds for seconds in _cpu_seconds(ways[name], sites)])
    return result


def _cpu_seconds(loss: Callable[[Sites], LossOutput], sites: Sites) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(WARM_CALLS):
            gradient_of(loss, sites)
        seconds.append((time.perf_counter() - start) / WARM_CALLS)
    return seconds


def _ways() -> dict[str, Callable[[Sites], LossOutput]]:
    torch.compiler.reset()  # what was compiled for other shapes
    compiled = torch.compile(lambda sites: grpo_rm_loss(sites, OBJECTIVE), dynamic=False)
    return {
        "one pass": lambda sites: fused_grpo_rm_loss(sites, OBJECTIVE),
        "plain": lambda sites: grpo_rm_loss(sites, OBJECTIVE),
        "compiled": compiled,
    }


def draw_sites(shape: tuple[int, ...], dtype: torch.dtype, has_old: bool, device: str) -> Sites:
    """Return logits of noise, old logits that differ a little, and labels."""
    logits = 2 * torch.randn(shape, device=device)
    old_logits = (logits + 0.1 * torch.randn_like(logits)).to(dtype) if has_old else None
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    return Sites(logits.to(dtype).requires_grad_(), targets, site_weights(valid_sites(targets)), old_logits)


def gradient_of(loss: Callable[[Sites], LossOutput], sites: Sites) -> tuple[Tensor, dict[str, Tensor]]:
    """Return gradient and statistics."""
    output = loss(sites)
    return torch.autograd.grad(output.loss, sites.logits)[0], output.stats


def graph_seconds(loss: Callable[[Sites], LossOutput], batches: Sequence[Sites]) -> list[float]:
    """Return seconds of forward and backward of a batch, the mean over the batches, once per repeat."""
    return [seconds / len(batches) for seconds in replay(lambda: [gradient_of(loss, sites) for sites in batches])]


def copy_bandwidth() -> float:
    """Return bytes a second, read and written, of a copy on the device."""
    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / statistics.median(replay(lambda: target.copy_(source)))


def replay(work: Callable[[], object]) -> list[float]:
    """Return the seconds that the device is at work, as a CUDA graph; what the work returns is kept until its end."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()
    seconds = []
    for _ in range(REPEATS + WARM_UP):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    del kept
    return seconds[WARM_UP:]


def peak_bytes(loss: Callable[[Sites], LossOutput], sites: Sites) -> int:
    """Return what forward and backward take beside their inputs, at most."""
    gradient_of(loss, sites)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradient_of(loss, sites)
    return torch.cuda.max_memory_allocated() - before


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what was measured, the measurement and its goal."""
    cpu = result["cpu"]
    plain, compiled = cpu["plain"]["median"], cpu["compiled"]["median"]
    what = f"objective on the CPU, {' x '.join(map(str, cpu['shape']))}, fp32, {cpu['threads']} threads"
    rows = [(what, f"plain {plain:.2f} ms, through torch.compile {compiled:.2f} ms", "")]
    if "skipped" in result:
        return [*rows, ("objective over its unavoidable bytes", f"not measured: {result['skipped']}", GOAL)]
    rows.append(("copy", f"{result['copy_bytes_per_second'] / 1e12:.2f} TB/s", ""))
    for row in result["rows"]:
        case = f"{' x '.join(map(str, row['shape']))} {row['dtype']}{', old logits' if row['has_old'] else ''}"
        for name, way in row["ways"].items():
            measured = f"{_ratio(way['cold'])}, warm {_ratio(way['warm'])}; memory {way['memory']:.2f}"
            rows.append((f"objective over its unavoidable bytes, {name}, {case}", measured, GOAL))
    return rows


def _ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


if __name__ == "__main__":
    main()
