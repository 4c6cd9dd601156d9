"""Arithmetic on a tile of sites inside a Triton kernel.

A tile is a tuple of chunks, (block_sites, block_outputs) each: powers of two that sum to little more than K. What is
reduced is reduced over the outputs, to (block_sites,).
"""
# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton adds tuples, it does not unpack them)

from typing import NamedTuple

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1.4426950408889634)
PADDING = tl.constexpr(-1e30)  # of a logit that does not exist: probability 0, and 0 times its logarithm is 0


class Settings(NamedTuple):
    """What is fixed at compile time.

    Attributes:
        outputs: K.
        block_outputs: Outputs in a chunk.
        chunks: Chunks in a tile.
        block_sites: Sites in a tile.
        is_rows: Whether the outputs of a site are next to each other in memory, or else the sites of an image.
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
        min_log_ratio: Where the log-ratio is clamped.
        max_log_ratio: Where the log-ratio is clamped or the ratio is capped.
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
    is_rows: bool
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
    min_log_ratio: float
    max_log_ratio: float
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
def offsets(i: tl.constexpr, num_sites, settings: tl.constexpr):
    """From a site's first logit."""
    return indices(i, settings) if settings.is_rows else indices(i, settings) * num_sites


@triton.jit
def masked(values, i: tl.constexpr, padding: tl.constexpr, settings: tl.constexpr):
    """Put `padding` where there is no output: only the last chunk has such places."""
    if (i + 1) * settings.block_outputs > settings.outputs:
        values = tl.where(indices(i, settings) < settings.outputs, values, padding)
    return values


@triton.jit
def load(logits, first, num_sites, counts, settings: tl.constexpr):
    """The logits of the sites that count, zeros at the others."""
    chunks = ()
    for i in tl.static_range(settings.chunks):
        mask = counts
        if (i + 1) * settings.block_outputs > settings.outputs:
            mask = counts & (indices(i, settings) < settings.outputs)
        values = tl.load(logits + first[:, None] + offsets(i, num_sites, settings), mask=mask, other=0.0)
        chunks = chunks + (masked(values.to(tl.float32), i, PADDING, settings),)
    return chunks


@triton.jit
def load_rows(matrix, target, counts, settings: tl.constexpr):
    """The row of each site's label; row 0 for a site without one, as in `MatrixReward`."""
    chunks = ()
    for i in tl.static_range(settings.chunks):
        mask = counts & (indices(i, settings) < settings.outputs)
        place = tl.maximum(target, 0).to(tl.int64) * settings.outputs + indices(i, settings)
        chunks = chunks + (tl.load(matrix + place, mask=mask, other=0.0),)
    return chunks


@triton.jit
def softmax(z, settings: tl.constexpr):
    """The logits less their maximum, the probabilities, the maximum, and the logarithm of the sum."""
    top = z[0]
    for i in tl.static_range(1, settings.chunks):
        top = tl.maximum(top, z[i])
    top = tl.max(top, 1)
    shifted = minus(z, top, settings)
    powers = ()
    for i in tl.static_range(settings.chunks):
        powers = powers + (tl.exp2(shifted[i] * LOG2_E),)
    total = sum(powers, settings)
    return shifted, times(powers, 1.0 / total, settings), top, tl.log(total)


@triton.jit
def log_ratio(shifted, log_sum, other_shifted, other_log_sum, settings: tl.constexpr):
    """The logarithm of the ratio of two softmaxes, small where they are alike, however large their logits."""
    chunks = ()
    for i in tl.static_range(settings.chunks):
        chunks = chunks + (shifted[i] - other_shifted[i] - (log_sum - other_log_sum)[:, None],)
    return chunks


@triton.jit
def sum(values, settings: tl.constexpr):
    total = values[0]
    for i in tl.static_range(1, settings.chunks):
        total += values[i]
    return tl.sum(total, 1)


@triton.jit
def sum_away_from(target, values, settings: tl.constexpr):
    """The sum over all outputs but one."""
    total = tl.zeros_like(values[0])
    for i in tl.static_range(settings.chunks):
        total += tl.where(indices(i, settings) == target, 0.0, values[i])
    return tl.sum(total, 1)


@triton.jit
def dot(p, values, settings: tl.constexpr):
    total = p[0] * values[0]
    for i in tl.static_range(1, settings.chunks):
        total += p[i] * values[i]
    return tl.sum(total, 1)


@triton.jit
def std(values, p, mean, settings: tl.constexpr):
    """The standard deviation under p, which is 0 in the padding."""
    total = tl.zeros_like(p[0])
    for i in tl.static_range(settings.chunks):
        error = values[i] - mean[:, None]
        total += p[i] * error * error
    return tl.sqrt(tl.sum(total, 1))


@triton.jit
def spread(values, settings: tl.constexpr):
    """The greatest difference between outputs."""
    low, high = masked(values[0], 0, INFINITY, settings), masked(values[0], 0, -INFINITY, settings)
    for i in tl.static_range(1, settings.chunks):
        low = tl.minimum(low, masked(values[i], i, INFINITY, settings))
        high = tl.maximum(high, masked(values[i], i, -INFINITY, settings))
    return tl.max(high, 1) - tl.min(low, 1)


@triton.jit
def plus(values, others, weight, settings: tl.constexpr):
    chunks = ()
    for i in tl.static_range(settings.chunks):
        chunks = chunks + (values[i] + weight * others[i],)
    return chunks


@triton.jit
def minus(values, subtrahend, settings: tl.constexpr):
    chunks = ()
    for i in tl.static_range(settings.chunks):
        chunks = chunks + (values[i] - subtrahend[:, None],)
    return chunks


@triton.jit
def times(values, factor, settings: tl.constexpr):
    chunks = ()
    for i in tl.static_range(settings.chunks):
        chunks = chunks + (values[i] * factor[:, None],)
    return chunks


@triton.jit
def without_padding(values, settings: tl.constexpr):
    chunks = ()
    for i in tl.static_range(settings.chunks):
        chunks = chunks + (masked(values[i], i, 0.0, settings),)
    return chunks
