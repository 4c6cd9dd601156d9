"""The GRPO-RM loss in one pass: what `losses.grpo_rm_loss` computes, by a kernel that writes the gradient as well.

The plain loss is the reference; this one has the same loss, gradient and statistics, but reads the logits once and
keeps nothing of their size except the gradient, which is there before `backward` asks for it. With float16 alone it
reads them again in `backward`: before it is multiplied by the loss scale, the gradient is too small for the type.
"""

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_rm.losses import LossOutput, Objective
from grpo_rm.objective import MAX_LOG_RATIO
from grpo_rm.rewards import MatrixReward, Reward, accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 32768  # logits of a tile: what the registers of a multiprocessor hold
ROW_TILE = 1024  # of a tile of rows, if a row is not longer
WARP_TILE = 1024  # for a warp: 32 logits a thread
MAX_CHUNKS = 32  # of a tile
BLOCK = 4096  # numbers of a block in the small kernels
MAX_PROGRAMS = 1024  # of the kernel that scales: few, since as a rule it has nothing to do


class Tile(NamedTuple):
    """How the logits are cut: chunks * block_outputs is K or a little more."""

    block_outputs: int
    chunks: int
    block_sites: int
    num_warps: int


def is_fusable(sites: Sites, objective: Objective) -> bool:
    """Return whether `fused_grpo_rm_loss` can do it.

    It can where Triton runs, for the clipped surrogate over all outputs, with the rewards of this package and one label
    a site, as long as K is no more than a tile holds.
    """
    logits = _all_logits(sites, objective)
    return (
        has_triton(sites.logits.device)
        and objective.surrogate == "clipped"
        and (objective.eps > 0 or objective.scale == "none")
        and (objective.candidates is None or objective.candidates >= sites.logits.shape[1] - 1)
        and sites.targets.shape == sites.weights.shape == (sites.logits.shape[0], *sites.logits.shape[2:])
        and all(one is None or (one.dtype in DTYPES and one.shape == sites.logits.shape) for one in logits)
        and sites.weights.dtype == torch.float32
        and (objective.beta == 0 or sites.reference_logits is not None)
        and _are_built_in(list(objective.rewards.values()), sites.logits.shape[1])
        and _tile(_by_site(sites.logits)) is not None
    )


def has_triton(device: torch.device) -> bool:
    """Return whether Triton runs there: on a CPU only its interpreter does, where TRITON_INTERPRET is 1."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or is_interpreted) and find_spec("triton") is not None


def fused_grpo_rm_loss(sites: Sites, objective: Objective) -> LossOutput:
    """Return the GRPO-RM loss, weighted over the sites; see `losses.grpo_rm_loss`.

    The gradient is given away, not copied: `backward` works once.

    Raises:
        ValueError: It cannot be done; see `is_fusable`.
    """
    if not is_fusable(sites, objective):
        raise ValueError("the one-pass loss cannot do this: ask is_fusable, and take grpo_rm_loss where it says no")
    logits = _by_site(sites.logits)
    logits = _contiguous(logits, _is_rows(logits))
    is_rows = _is_rows(logits)
    old_logits, reference_logits = (
        None if one is None else _contiguous(_by_site(one.detach()), is_rows)
        for one in _all_logits(sites, objective)[1:]
    )
    rows = _row_names(objective)
    matrices = tuple(reward for reward in objective.rewards.values() if isinstance(reward, MatrixReward))
    loss, totals = _Fused.apply(
        logits,
        old_logits,
        reference_logits,
        sites.targets.reshape(-1).contiguous(),
        sites.weights.reshape(-1).contiguous(),
        _stack(matrices, logits.device) if matrices else None,
        _settings(logits, objective, rows, is_fresh=old_logits is None),
    )
    stats = dict(zip(rows, totals.unbind(), strict=True))
    return LossOutput(loss, {name: stats[name] for name in rows if name != "loss" and (name != "kl" or objective.beta)})


class _Fused(torch.autograd.Function):
    """(images, K, sites) logits to the loss and all statistics."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        logits, settings = inputs[0], inputs[-1]
        ctx.settings = settings._replace(is_logging=False)
        ctx.is_late = logits.dtype == torch.float16
        is_differentiating = ctx.needs_input_grad[0] and not ctx.is_late
        ctx.gradient = torch.empty_like(logits) if is_differentiating else None
        ctx.save_for_backward(*inputs[:-1] if ctx.is_late else ())
        totals = _run(inputs[:-1], settings._replace(is_differentiating=is_differentiating), ctx.gradient)
        loss = totals[0]
        ctx.mark_non_differentiable(totals)
        return loss, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.is_late:
            gradient = torch.empty_like(ctx.saved_tensors[0])
            _run(ctx.saved_tensors, ctx.settings, gradient, incoming)
        else:
            gradient, ctx.gradient = ctx.gradient, None
            if gradient is None:
                raise RuntimeError("the one-pass loss can go backward once; take grpo_rm_loss to do it again")
            _scale(gradient, incoming)
        return gradient, None, None, None, None, None, None


def _run(inputs: tuple[Tensor, ...], settings: Any, gradient: Tensor | None, incoming: Tensor | None = None) -> Tensor:
    """Launch the kernel; return the statistics where the settings ask for them."""
    from grpo_rm import kernels  # needs Triton

    logits, weights = inputs[0], inputs[4]
    images, _, sites = logits.shape
    tile = _tile(logits)
    assert tile is not None
    tiles = -(-sites // tile.block_sites)
    partials = weights.new_empty(settings.rows, images * tiles) if settings.is_logging else weights
    with _on(logits):
        kernels.objective_kernel[(images * tiles,)](
            *(*inputs, gradient, incoming, partials),
            *(sites, tiles),
            settings,
            num_warps=tile.num_warps,
            enable_fp_fusion=True,
        )
        totals = weights.new_empty(settings.rows)
        if settings.is_logging:
            arguments = (partials, totals, images * tiles, settings.rows)
            kernels.totals_kernel[(settings.rows,)](*arguments, BLOCK, num_warps=8, enable_fp_fusion=True)
    return totals


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply in place, without asking the device whether there is anything to do."""
    from grpo_rm import kernels

    programs = min(-(-gradient.numel() // BLOCK), MAX_PROGRAMS)
    with _on(gradient):
        kernels.scale_kernel[(programs,)](gradient, factor, gradient.numel(), BLOCK, num_warps=8, enable_fp_fusion=True)


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, whatever its arguments are on."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _settings(logits: Tensor, objective: Objective, rows: tuple[str, ...], *, is_fresh: bool) -> Any:
    from grpo_rm.kernel_tiles import Settings

    tile = _tile(logits)
    assert tile is not None

    cap = objective.ratio_cap

    def weigh(kind: Any) -> float:
        return float(sum(objective.reward_weights[name] for name, one in objective.rewards.items() if one is kind))

    def find(kind: Any) -> int:
        names = [name for name, one in objective.rewards.items() if one is kind]
        return rows.index(f"rewards/{names[0]}/mean") if names else -1

    matrices = [name for name, one in objective.rewards.items() if isinstance(one, MatrixReward)]
    return Settings(
        outputs=logits.shape[1],
        block_outputs=tile.block_outputs,
        chunks=tile.chunks,
        block_sites=tile.block_sites,
        is_rows=_is_rows(logits),
        is_fresh=is_fresh,
        accuracy_weight=weigh(accuracy_reward),
        accuracy_row=find(accuracy_reward),
        uniformity_weight=weigh(uniformity_reward),
        uniformity_row=find(uniformity_reward),
        matrix_weights=tuple(float(objective.reward_weights[name]) for name in matrices),
        matrix_rows=tuple(rows.index(f"rewards/{name}/mean") for name in matrices),
        is_scaled=objective.scale == "group",
        eps=objective.eps,
        is_policy_statistics=objective.statistics == "policy",
        is_policy_weighting=objective.weighting == "policy",
        clip_min=1 - objective.clip_low,
        clip_max=1 + objective.clip_high,
        min_log_ratio=-MAX_LOG_RATIO,
        max_log_ratio=MAX_LOG_RATIO if cap is None else min(MAX_LOG_RATIO, math.log(cap)),
        beta=objective.beta,
        entropy_weight=objective.entropy_weight,
        supervised_weight=objective.supervised_weight,
        rows=len(rows),
    )


def _row_names(objective: Objective) -> tuple[str, ...]:
    from grpo_rm.kernels import FIXED_ROWS

    logged = [f"rewards/{name}/{what}" for name in objective.rewards for what in ("mean", "std")]
    return (*FIXED_ROWS, *logged, "max_abs_logit")


def _tile(logits: Tensor) -> Tile | None:
    """Return how (images, K, sites) logits are cut, or None where a tile would not fit."""
    _, outputs, sites = logits.shape
    block_sites, block_outputs, num_warps = _cut_rows(outputs) if _is_rows(logits) else _cut_columns(outputs)
    chunks = -(-outputs // block_outputs)
    tile = Tile(block_outputs, chunks, min(block_sites, _power_above(sites)), num_warps)
    return tile if chunks <= MAX_CHUNKS and chunks * block_outputs * block_sites <= TILE else None


def _cut_rows(outputs: int) -> tuple[int, int, int]:
    """Return (block_sites, block_outputs, num_warps) where the outputs of a site are next to each other.

    Up to 8 chunks, small ones, since only the last of them has padding.
    """
    whole = _power_above(outputs)
    sizes = [max(whole // parts, min(whole, 16)) for parts in (1, 2, 4, 8)]
    size = min(sizes, key=lambda size: (-(-outputs // size) * size, size))
    width = -(-outputs // size) * size
    block_sites = _power_below(max(ROW_TILE // width, 1))
    return block_sites, size, min(_power_above(-(-width * block_sites // WARP_TILE)), 32)


def _cut_columns(outputs: int) -> tuple[int, int, int]:
    """Return (block_sites, block_outputs, num_warps) where sites are next to each other.

    A warp takes an output of a chunk, its threads the sites: what is reduced over the outputs stays in a thread until
    the warps meet.
    """
    num_warps = min(max(_power_above(-(-outputs // 20)), 4), 32)
    return (64 if num_warps < 32 else 32), num_warps, num_warps


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _all_logits(sites: Sites, objective: Objective) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return sites.logits, sites.old_logits, sites.reference_logits if objective.beta else None


def _by_site(logits: Tensor) -> Tensor:
    """(B, K, *space) to (images, K, sites); (N, K) is one image."""
    return logits.T.unsqueeze(0) if logits.ndim == 2 else logits.flatten(2)


def _is_rows(logits: Tensor) -> bool:
    """Whether the outputs of a site are next to each other in memory, in (images, K, sites)."""
    return logits.transpose(1, 2).is_contiguous()


def _contiguous(logits: Tensor, is_rows: bool) -> Tensor:
    """Where outputs are next to each other in memory, or else sites; a copy only where neither is so."""
    return logits.transpose(1, 2).contiguous().transpose(1, 2) if is_rows else logits.contiguous()


def _are_built_in(rewards: Sequence[Reward], outputs: int) -> bool:
    """Whether there are matrices, and of the other two at most one each."""
    others = [reward for reward in rewards if not isinstance(reward, MatrixReward)]
    matrices = [reward.matrix for reward in rewards if isinstance(reward, MatrixReward)]
    is_known = all(reward in (accuracy_reward, uniformity_reward) for reward in others)
    return is_known and len(set(others)) == len(others) and all(one.shape == (outputs, outputs) for one in matrices)


@lru_cache(maxsize=1)
def _stack(rewards: tuple[MatrixReward, ...], device: torch.device) -> Tensor:
    """Return the matrices on the device, (matrices, K, K) float32: they do not change, and are large."""
    matrices = [reward.matrix.to(device, torch.float32) for reward in rewards]
    return torch.stack(matrices) if len(matrices) > 1 else matrices[0].contiguous().unsqueeze(0)
