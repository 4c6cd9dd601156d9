"""Arithmetic on a tile of sites inside a Triton kernel.

A tile is a tuple of chunks, (block_sites, block_outputs) each: powers of two that sum to little more than K. What is
reduced is reduced over the outputs, to (block_sites,).
"""
# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton adds tuples, it does not unpack them)

from typing import NamedTuple

import triton
import triton.language as tl

PADDING = tl.constexpr(-1e30)  # of a logit that does not exist: probability 0, and 0 times its logarithm is 0


class Settings(NamedTuple):
    """What is fixed at compile time.

    Attributes:
        outputs: K.
        block_outputs: Outputs in a chunk.
        chunks: Chunks in a tile.
        block_sites: Sites in a tile.
        is_fresh: Whether pi_old is pi.
        accuracy_weight: Of the accuracy reward.
        accuracy_row: Where its mean and standard deviation are logged, below 0 for nowhere.
        uniformity_weight: Of the uniformity reward.
        uniformity_row: As `accuracy_row`.
        matrix_weights: Of the matrix rewards.
        matrix_rows: Where they are logged.
        is_scaled: Whether advantages are divided by the group's standard deviation.
        eps: Added to it.
        is_policy_statistics: Whether pi_old weighs the group statistics.
        is_policy_weighting: Whether pi_old weighs the surrogate.
        clip_min: Lower end of the clip.
        clip_max: Upper end of the clip.
        ratio_cap: Greatest ratio.
        beta: Weight of the KL divergence; above 0 there are reference logits.
        entropy_weight: Weight of the entropy.
        supervised_weight: Weight of cross-entropy.
        rows: Number of the statistics; the last is a maximum.
        is_logging: Whether to write the statistics.
        is_differentiating: Whether to write the gradient.
    """

    outputs: int
    block_outputs: int
    chunks: int
    block_sites: int
    is_fresh: bool
    accuracy_weight: float
    accuracy_row: int
    uniformity_weight: float
    uniformity_row: int
    matrix_weights: tuple[float, ...]
    matrix_rows: tuple[int, ...]
    is_scaled: bool
    eps: float
    is_policy_statistics: bool
    is_policy_weighting: bool
    clip_min: float
    clip_max: float
    ratio_cap: float
    beta: float
    entropy_weight: float
    supervised_weight: float
    rows: int
    is_logging: bool = True
    is_differentiating: bool = True


@triton.jit
def indices(i: tl.constexpr, settings: tl.constexpr):
    return (i * settings.block_outputs + tl.arange(0, settings.block_outputs))[None, :]


@triton.jit
def masked(values, i: tl.constexpr, padding: tl.constexpr, settings: tl.constexpr):
    """Put `padding` where there is no output: only the last chunk has such places."""
    if (i + 1) * settings.block_outputs > settings.outputs:
        values = tl.where(indices(i, settings) < settings.outputs, values, padding)
    return values


@triton.jit
def load(logits, first, class_stride, counts, settings: tl.constexpr):
    chunks = ()
    for i in tl.static_range(settings.chunks):
        outputs = indices(i, settings)
        mask = counts & (outputs < settings.outputs)
        values = tl.load(logits + first[:, None] + outputs * class_stride, mask=mask, other=0.0)
        chunks = chunks + (masked(values.to(tl.float32), i, PADDING, settings),)
    return chunks


@triton.jit
def log_softmax(z, settings: tl.constexpr):
    top = z[0]
    for i in tl.static_range(1, settings.chunks):
        top = tl.maximum(top, z[i])
    top = tl.max(top, 1)[:, None]
    total = tl.zeros_like(z[0])
    for i in tl.static_range(settings.chunks):
        total += tl.exp(z[i] - top)
    log_total = tl.log(tl.sum(total, 1))[:, None]
    log_p = ()
    for i in tl.static_range(settings.chunks):
        log_p = log_p + (z[i] - top - log_total,)  # not top + log_total: at a logit of 1e4 that costs three digits
    return log_p


@triton.jit
def exp(log_p, settings: tl.constexpr):
    p = ()
    for i in tl.static_range(settings.chunks):
        p = p + (tl.exp(log_p[i]),)
    return p


@triton.jit
def sum(values, settings: tl.constexpr):
    total = values[0]
    for i in tl.static_range(1, settings.chunks):
        total += values[i]
    return tl.sum(total, 1)


@triton.jit
def dot(p, values, settings: tl.constexpr):
    total = p[0] * values[0]
    for i in tl.static_range(1, settings.chunks):
        total += p[i] * values[i]
    return tl.sum(total, 1)


@triton.jit
def weighted_squares(values, p, settings: tl.constexpr):
    total = tl.zeros_like(p[0])
    for i in tl.static_range(settings.chunks):
        total += p[i] * values[i] * values[i]
    return tl.sum(total, 1)


@triton.jit
def divergence(p, log_p, other_log_p, settings: tl.constexpr):
    total = tl.zeros_like(p[0])
    for i in tl.static_range(settings.chunks):
        total += p[i] * (log_p[i] - other_log_p[i])
    return tl.sum(total, 1)


@triton.jit
def minus(values, mean, settings: tl.constexpr):
    """Subtract a number of each site; the padding stays out of it."""
    centered = ()
    for i in tl.static_range(settings.chunks):
        centered = centered + (masked(values[i] - mean[:, None], i, 0.0, settings),)
    return centered


@triton.jit
def times(values, factor, settings: tl.constexpr):
    scaled = ()
    for i in tl.static_range(settings.chunks):
        scaled = scaled + (values[i] * factor[:, None],)
    return scaled


@triton.jit
def at_target(values, target, settings: tl.constexpr):
    total = tl.zeros_like(values[0])
    for i in tl.static_range(settings.chunks):
        total += tl.where(indices(i, settings) == target, values[i], 0.0)
    return tl.sum(total, 1)


@triton.jit
def away_from_target(values, target, settings: tl.constexpr):
    """The sum over the other outputs: near 0 it is exact, where 1 minus the target's is not."""
    total = tl.zeros_like(values[0])
    for i in tl.static_range(settings.chunks):
        total += tl.where(indices(i, settings) == target, 0.0, values[i])
    return tl.sum(total, 1)
