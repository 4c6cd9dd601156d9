"""The GRPO-RM objective as Triton kernels: a tile of sites is read into registers, and its gradient written from there.

Loss of a site, with p = pi, q = pi_old, w_k = 1/K or q_k (see `objective.py`):

    l = -J + beta KL(p || reference) - entropy_weight H(p) - supervised_weight log p_y,    J = sum_k w_k min(rho A, ...)

The advantages are constants, so J depends on log p_k alone, with the slope g_k = w_k rho_k A_k where `min` takes the
ratio as it is (within the clip, or outside on the harmful side), and 0 where the ratio is clipped, capped or clamped.
With d log p_k / dz_j = 1[j = k] - p_j and G = sum_k g_k:

    dl/dz_j = -g_j + p_j G                                            (clipped surrogate)
              + beta p_j (log p_j - log ref_j - KL)                   (KL to the reference)
              + entropy_weight p_j (log p_j + H)                      (entropy)
              + supervised_weight (p_j - 1[j = y])                    (cross-entropy)

Where pi_old is pi, rho = 1 everywhere: J = G = sum_k w_k A_k, and nothing is clipped.

This module needs Triton, which exists on Linux only: import it late.
"""
# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton adds tuples, it does not unpack them)

import triton
import triton.language as tl

from grpo_rm import kernel_tiles as tile
from grpo_rm import loss_statistics

FIXED_ROWS = (
    "loss",
    "entropy",
    "old_kl",
    "kl",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
)
NO_SPREAD = tl.constexpr(loss_statistics.NO_SPREAD)


@triton.jit
def objective_kernel(
    logits,  # (images, K, sites), or (images, sites, K) where the settings say rows
    old_logits,  # as the logits; None where they are the logits
    reference_logits,  # as the logits
    targets,  # (images * sites,)
    weights,  # (images * sites,)
    matrices,  # (matrix rewards, K, K)
    gradient,  # as the logits
    incoming,  # (): what the gradient is multiplied by, if it is written without the statistics
    partials,  # (rows, programs): weighted sums over the sites of a program
    num_sites,  # of an image
    tiles,  # of an image
    settings: tl.constexpr,
):
    """Write the gradient at the logits, and what each program adds to the statistics."""
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    site = program % tiles * settings.block_sites + tl.arange(0, settings.block_sites)
    weight = tl.load(weights + image * num_sites + site, mask=site < num_sites, other=0.0)
    target = tl.load(targets + image * num_sites + site, mask=weight != 0, other=0).to(tl.int32)
    first = image * num_sites * settings.outputs + (site.to(tl.int64) * settings.outputs if settings.is_rows else site)
    counts = (weight != 0)[:, None]  # a site that does not count is read as zeros, whatever is there
    slot = partials + program
    scale = weight if settings.is_logging else weight * tl.load(incoming)

    z = tile.load(logits, first, num_sites, counts, settings)
    _log_max(slot, settings.rows - 1, z, settings)
    shifted, p, top, log_sum = tile.softmax(z, settings)
    entropy = log_sum - tile.dot(p, shifted, settings)
    log_p_target = _logit_at(target, logits, first, num_sites, weight, settings) - top - log_sum
    if settings.is_fresh:
        q, log_q_target, log_ratio, old_kl = p, log_p_target, p, tl.zeros_like(entropy)
    else:
        old_z = tile.load(old_logits, first, num_sites, counts, settings)
        old_shifted, q, old_top, old_log_sum = tile.softmax(old_z, settings)
        log_q_target = _logit_at(target, old_logits, first, num_sites, weight, settings) - old_top - old_log_sum
        log_ratio = tile.log_ratio(shifted, log_sum, old_shifted, old_log_sum, settings)
        old_kl = -tile.dot(q, log_ratio, settings)
    centered, factor = _advantages(q, log_q_target, target, matrices, weight, slot, settings)
    surrogate, slopes = _surrogate(log_ratio, q, centered, factor, weight, scale, slot, settings)
    others = -settings.entropy_weight * entropy - settings.supervised_weight * log_p_target
    kl, excess = tl.zeros_like(entropy), p
    if settings.beta > 0:
        reference_z = tile.load(reference_logits, first, num_sites, counts, settings)
        reference_shifted, _, _, reference_log_sum = tile.softmax(reference_z, settings)
        excess = tile.log_ratio(shifted, log_sum, reference_shifted, reference_log_sum, settings)
        kl = tile.dot(p, excess, settings)
        others += settings.beta * kl
    if settings.is_logging:
        tl.store(slot, tl.sum(weight * others - surrogate, 0))
    _log(slot, 1, entropy, weight, settings)
    _log(slot, 2, old_kl, weight, settings)
    _log(slot, 3, kl, weight, settings)

    if settings.is_differentiating:
        pull = settings.supervised_weight - settings.beta * kl + settings.entropy_weight * (entropy - log_sum)
        pull = scale * pull + tile.sum(slopes, settings) if _has_slope(settings) else scale * pull
        place = gradient + first[:, None]
        is_there = (site < num_sites)[:, None]
        _write_gradient(place, is_there, num_sites, target, p, shifted, excess, slopes, pull, scale, settings)


@triton.jit
def _write_gradient(
    place, is_there, num_sites, target, p, shifted, excess, slopes, pull, scale, settings: tl.constexpr
):
    """Write dl/dz_j; `pull` is what p_j is multiplied by for every output alike."""
    for i in tl.static_range(settings.chunks):
        pulls = pull[:, None]
        if settings.beta > 0:
            pulls += settings.beta * scale[:, None] * excess[i]
        if settings.entropy_weight != 0:
            pulls += settings.entropy_weight * scale[:, None] * shifted[i]
        dz = p[i] * pulls - slopes[i]
        if settings.supervised_weight != 0:
            is_target = tile.indices(i, settings) == target[:, None]
            dz -= tl.where(is_target, settings.supervised_weight * scale[:, None], 0.0)
        mask = is_there & (tile.indices(i, settings) < settings.outputs)
        tl.store(place + tile.offsets(i, num_sites, settings), dz.to(place.dtype.element_ty), mask=mask)


@triton.jit
def _logit_at(target, logits, first, num_sites, weight, settings: tl.constexpr):
    """The logit of each site's label, once more: one number."""
    mask = (weight != 0) & (target >= 0) & (target < settings.outputs)
    offset = target if settings.is_rows else target * num_sites
    return tl.load(logits + first + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _advantages(q, log_q_target, target, matrices, weight, slot, settings: tl.constexpr):
    """Return the centered rewards, 0 in the padding, and what makes advantages of them; log the rewards."""
    has_label = (target >= 0) & (target < settings.outputs)
    right = tl.where(has_label, tl.exp(log_q_target), 0.0)
    wrong = tile.sum_away_from(target[:, None], q, settings)
    # accuracy_weight - uniformity_weight * right, but exact where the label is nearly certain
    target_reward = settings.accuracy_weight - settings.uniformity_weight + settings.uniformity_weight * wrong
    rewards = ()
    for i in tl.static_range(settings.chunks):
        is_target = tile.indices(i, settings) == target[:, None]
        rewards = rewards + (tl.where(is_target, target_reward[:, None], -settings.uniformity_weight * q[i]),)
    for m in tl.static_range(len(settings.matrix_weights)):
        matrix = tile.load_rows(
            matrices + m * settings.outputs * settings.outputs, target[:, None], (weight != 0)[:, None], settings
        )
        _log_reward(slot, settings.matrix_rows[m], matrix, q, weight, settings)
        if settings.matrix_weights[m] != 0:
            rewards = tile.plus(rewards, matrix, settings.matrix_weights[m], settings)
    if settings.accuracy_row >= 0:
        _log(slot, settings.accuracy_row, right, weight, settings)
        _log(slot, settings.accuracy_row + 1, tl.sqrt(right * wrong), weight, settings)
    if settings.uniformity_row >= 0:
        collision = tile.dot(q, q, settings)
        _log(slot, settings.uniformity_row, -collision, weight, settings)
        _log(slot, settings.uniformity_row + 1, tile.std(q, q, collision, settings), weight, settings)
    _log_reward(slot, 7, rewards, q, weight, settings)
    mean = tile.sum(rewards, settings) / settings.outputs
    if len(settings.matrix_weights) == 0:  # the same, but exact: with equal weights it is 0
        mean = (tl.where(has_label, target_reward, 0.0) - settings.uniformity_weight * wrong) / settings.outputs
    centered = tile.without_padding(tile.minus(rewards, mean, settings), settings)
    std = tl.sqrt(tile.dot(centered, centered, settings) / settings.outputs)
    _log(slot, 9, tl.where(tile.spread(rewards, settings) < NO_SPREAD, 1.0, 0.0), weight, settings)
    if settings.is_policy_statistics:
        mean = tile.dot(q, rewards, settings)
        centered = tile.without_padding(tile.minus(rewards, mean, settings), settings)
        std = tile.std(rewards, q, mean, settings)
    factor = tl.zeros_like(std) + 1
    if settings.is_scaled:
        # without an eps a group of equal rewards has nothing to learn from, rather than 0 / 0
        scale = std + settings.eps
        factor = tl.where(scale == 0, 0.0, 1.0 / tl.where(scale == 0, 1.0, scale))
    return centered, factor


@triton.jit
def _surrogate(log_ratio, q, centered, factor, weight, scale, slot, settings: tl.constexpr):
    """Return J and the slopes g_k = dJ / d log p_k, both times the scale of the site; log what is clipped."""
    if not settings.is_policy_weighting:
        scale = scale / settings.outputs
    if settings.is_fresh:
        value, low, region = tl.zeros_like(weight), tl.zeros_like(weight), tl.zeros_like(weight)
        slopes = _shares(q, tile.times(centered, factor * scale, settings), settings)
        if _has_slope(settings):
            value = tile.sum(slopes, settings)
    else:
        values, lows, regions = tl.zeros_like(q[0]), tl.zeros_like(q[0]), tl.zeros_like(q[0])
        slopes = ()
        for i in tl.static_range(settings.chunks):
            advantage = centered[i] * factor[:, None]
            share = q[i] * scale[:, None] if settings.is_policy_weighting else scale[:, None]
            clamped = tl.minimum(tl.maximum(log_ratio[i], settings.min_log_ratio), settings.max_log_ratio)
            ratio = tl.exp2(clamped * tile.LOG2_E)
            free = ratio * advantage
            clipped = tl.minimum(tl.maximum(ratio, settings.clip_min), settings.clip_max) * advantage
            values += tl.minimum(free, clipped) * share
            slopes = slopes + (tl.where((free <= clipped) & (clamped == log_ratio[i]), free * share, 0.0),)
            regions += tl.where(free > clipped, 1.0, 0.0)
            lows += tl.where((free > clipped) & (advantage < 0), 1.0, 0.0)
        value = tl.sum(values, 1)
        low, region = tl.sum(lows, 1) / settings.outputs, tl.sum(regions, 1) / settings.outputs
    _log(slot, 4, low, weight, settings)
    _log(slot, 5, region - low, weight, settings)
    _log(slot, 6, region, weight, settings)
    return value, slopes


@triton.jit
def _shares(q, values, settings: tl.constexpr):
    """The values times what the outputs weigh in the surrogate, where that differs."""
    shares = values
    if settings.is_policy_weighting:
        shares = ()
        for i in tl.static_range(settings.chunks):
            shares = shares + (q[i] * values[i],)
    return shares


@triton.jit
def _has_slope(settings: tl.constexpr):
    """Whether G need not be 0. Where pi_old is pi, it is a sum of what is centered, if both are weighted alike."""
    return (not settings.is_fresh) or settings.is_policy_weighting != settings.is_policy_statistics


@triton.jit
def _log(slot, row, values, weight, settings: tl.constexpr):
    if settings.is_logging:
        tl.store(slot + row * tl.num_programs(0), tl.sum(values * weight, 0))


@triton.jit
def _log_reward(slot, row, rewards, q, weight, settings: tl.constexpr):
    if settings.is_logging:
        mean = tile.dot(q, rewards, settings)
        _log(slot, row, mean, weight, settings)
        _log(slot, row + 1, tile.std(rewards, q, mean, settings), weight, settings)


@triton.jit
def _log_max(slot, row, z, settings: tl.constexpr):
    if settings.is_logging:
        greatest = tl.zeros_like(z[0])
        for i in tl.static_range(settings.chunks):
            greatest = tl.maximum(greatest, tl.abs(tile.masked(z[i], i, 0.0, settings)))
        tl.store(slot + row * tl.num_programs(0), tl.max(tl.max(greatest, 1), 0))


@triton.jit
def totals_kernel(partials, totals, programs, rows, block: tl.constexpr):
    """Add up a row, always in the same order; of the last row take the maximum."""
    row = tl.program_id(0)
    total = tl.zeros([block], tl.float32)
    for start in range(0, programs, block):
        place = start + tl.arange(0, block)
        values = tl.load(partials + row * programs + place, mask=place < programs, other=0.0)
        total = tl.where(row == rows - 1, tl.maximum(total, values), total + values)
    tl.store(totals + row, tl.where(row == rows - 1, tl.max(total, 0), tl.sum(total, 0)))


@triton.jit
def scale_kernel(values, factor, count, block: tl.constexpr):
    """Multiply by a number on the device. By 1 nothing is read or written, and the host need not know."""
    scale = tl.load(factor)
    if scale != 1:
        for start in range(tl.program_id(0) * block, count, tl.num_programs(0) * block):
            place = start + tl.arange(0, block).to(tl.int64)
            value = tl.load(values + place, mask=place < count, other=0.0).to(tl.float32)
            tl.store(values + place, (value * scale).to(values.dtype.element_ty), mask=place < count)
