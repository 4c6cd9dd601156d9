"""A step of GRPO-RM beside one of cross-entropy for a dense model on the CPU, and what the loss alone takes of memory.

Run with `python -m benchmarks.segmentation`; prints a Markdown table. Steps are forward, loss, backward and optimizer,
one with each loss in turn, so that what else the machine does meets all of them. Memory is the growth of the peak of a
process of its own, in which nothing but the loss is computed, forward and backward.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loop import OBJECTIVE
from grpo_rm.dense_model import DenseConfig, DenseModel
from grpo_rm.dense_sites import dense_sites, site_targets, upsample
from grpo_rm.losses import GrpoRmLoss, cross_entropy_loss

IMAGES, SIDE = 8, 128
ENCODERS, OUTPUTS, SITE_STRIDES = ("regnetx_002", "resnet18"), (11, 150), (1, 4)
STRIDES = [4, 8, 16, 32]
ROUNDS, WARM_UP = 9, 2
LossOf = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]  # logits, masks, site stride, old logits


def ours(loss: Callable[..., object]) -> LossOf:
    """Return a loss of this library, of logits at the head's stride."""

    def of_logits(logits: Tensor, masks: Tensor, site_stride: int, old: Tensor | None) -> Tensor:
        sites = dense_sites(logits, masks, stride=STRIDES[0], site_stride=site_stride, old_logits=old)
        return loss(sites).loss  # type: ignore[attr-defined, no-any-return]

    return of_logits


def torch_cross_entropy(logits: Tensor, masks: Tensor, site_stride: int, _: Tensor | None) -> Tensor:
    """Return torch's own, on (B, K, H, W)."""
    size = (masks.shape[1], masks.shape[2])
    pixels = upsample(logits, size, STRIDES[0], site_stride=site_stride)
    return F.cross_entropy(pixels, site_targets(masks, site_stride))


LOSSES: dict[str, LossOf] = {
    "cross-entropy": ours(cross_entropy_loss),
    "GRPO-RM": ours(GrpoRmLoss(OBJECTIVE)),
    "GRPO-RM, old logits": ours(GrpoRmLoss(OBJECTIVE)),
    "torch's cross_entropy": torch_cross_entropy,
}


def main() -> None:
    """Measure and print; or, in a process of its own, the memory of one case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation")
    parser.add_argument("--memory", nargs=3, metavar=("LOSS", "OUTPUTS", "SITE_STRIDE"))
    parser.add_argument("--only", choices=("step", "memory"))
    options = parser.parse_args()
    if options.memory:
        name, outputs, site_stride = options.memory
        print(peak_bytes(name, int(outputs), int(site_stride)))
        return
    cases = [(outputs, site_stride) for outputs in OUTPUTS for site_stride in SITE_STRIDES]
    if options.only != "memory":
        for encoder in ENCODERS:
            for case in cases:
                print(step_row(encoder, *case), flush=True)
    if options.only != "step":
        for case in cases:
            print(memory_row(*case), flush=True)


def step_row(encoder: str, outputs: int, site_stride: int) -> str:
    """Return a line of the table: how much longer a step is than one with our cross-entropy."""
    seconds = measure_steps(encoder, outputs, site_stride)
    control = seconds["cross-entropy"]
    overheads = []
    for name, values in seconds.items():
        ratios = [100 * (one / other - 1) for one, other in zip(values, control, strict=True)]
        if name != "cross-entropy":
            overheads.append(f"{name} {quartiles(ratios, '+.1f')} %")
    pixels = IMAGES * SIDE**2 / statistics.median(seconds["GRPO-RM"]) / 1000
    milliseconds = f"{1000 * statistics.median(control):.0f} ms, GRPO-RM {pixels:.0f} thousand pixels/s"
    return f"| {encoder}, K = {outputs}, site_stride {site_stride} | {milliseconds} | {'; '.join(overheads)} |"


def measure_steps(encoder: str, outputs: int, site_stride: int) -> dict[str, list[float]]:
    """Return seconds of the steps with each loss, in turn."""
    torch.manual_seed(0)
    classes = [str(number) for number in range(outputs)]
    half = [0.5] * 3
    config = DenseConfig(encoder, 3, SIDE, "bilinear", half, half, classes, STRIDES, head="decoder")
    model = DenseModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8)
    masks = torch.randint(0, outputs, (IMAGES, SIDE, SIDE))
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(WARM_UP + ROUNDS):
        for name, loss in LOSSES.items():
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            logits = model(images)[1]
            old = (logits.detach() + 0.1).bfloat16() if name.endswith("old logits") else None
            loss(logits, masks, site_stride, old).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def memory_row(outputs: int, site_stride: int) -> str:
    """Return a line of the table: bytes a site of each loss, forward and backward."""
    sites = IMAGES * (SIDE // site_stride) ** 2
    texts = []
    for name in LOSSES:
        case = [name, str(outputs), str(site_stride)]
        command = [sys.executable, "-m", "benchmarks.segmentation", "--memory", *case]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        texts.append(f"{name} {peak / sites:,.0f}")
    return f"| memory of the loss, bytes a site, K = {outputs}, site_stride {site_stride} | {'; '.join(texts)} | |"


def peak_bytes(name: str, outputs: int, site_stride: int) -> int:
    """Return by how much forward and backward raise the peak of this process."""
    places = SIDE // STRIDES[0]
    warm = torch.randn(1, outputs, places, places, requires_grad=True)  # code is loaded, threads are started
    LOSSES[name](warm, torch.zeros(1, SIDE, SIDE, dtype=torch.int64), site_stride, None).backward()  # type: ignore[no-untyped-call]
    logits = torch.randn(IMAGES, outputs, places, places, requires_grad=True)
    masks = torch.randint(0, outputs, (IMAGES, SIDE, SIDE))
    old = logits.detach().bfloat16() if name.endswith("old logits") else None
    before = peak_kib()
    LOSSES[name](logits, masks, site_stride, old).backward()  # type: ignore[no-untyped-call]
    return (peak_kib() - before) * 1024


def peak_kib() -> int:
    """Return the peak of this process; what getrusage says begins with that of the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def quartiles(values: list[float], form: str) -> str:
    """Return the median (quartiles)."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
