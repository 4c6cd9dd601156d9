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
MAX_LOG_RATIO = tl.constexpr(5.0)
NO_SIGNAL = tl.constexpr(1e-6)


@triton.jit
def objective_kernel(
    logits,  # the logits by their strides, all alike
    old_logits,
    reference_logits,
    targets,  # (images * num_sites,)
    weights,
    matrices,  # (matrix rewards, K, K)
    gradient,
    incoming,  # (): what the gradient is multiplied by where it is written without the statistics
    partials,  # (rows, programs): weighted sums over the sites of a program
    num_sites,  # of an image
    tiles,  # of an image
    image_stride,
    site_stride,
    class_stride,
    settings: tl.constexpr,
):
    """Write the gradient at the logits, and what each program adds to the statistics."""
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    site = program % tiles * settings.block_sites + tl.arange(0, settings.block_sites)
    weight = tl.load(weights + image * num_sites + site, mask=site < num_sites, other=0.0)
    target = tl.load(targets + image * num_sites + site, mask=weight != 0, other=0)[:, None]
    first = image * image_stride + site.to(tl.int64) * site_stride
    counts = (weight != 0)[:, None]  # a site that does not count is read as zeros, whatever is there
    slot = partials + program

    z = tile.load(logits, first, class_stride, counts, settings)
    _log_max(slot, settings.rows - 1, z, settings)
    log_p = tile.log_softmax(z, settings)
    p = tile.exp(log_p, settings)
    entropy = -tile.dot(p, log_p, settings)
    _log(slot, 1, entropy, weight, settings)
    if settings.is_fresh:
        log_q, q = log_p, p
        old_kl = tl.zeros_like(entropy)
    else:
        log_q = tile.log_softmax(tile.load(old_logits, first, class_stride, counts, settings), settings)
        q = tile.exp(log_q, settings)
        old_kl = tile.divergence(q, log_q, log_p, settings)
    _log(slot, 2, old_kl, weight, settings)

    advantages = _advantages(q, target, matrices, weight, slot, settings)
    surrogate, slopes = _surrogate(log_p, log_q, q, advantages, weight, slot, settings)
    loss = -surrogate - settings.entropy_weight * entropy
    kl = tl.zeros_like(loss)
    log_reference = log_p
    if settings.beta > 0:
        log_reference = tile.log_softmax(tile.load(reference_logits, first, class_stride, counts, settings), settings)
        kl = tile.divergence(p, log_p, log_reference, settings)
        loss += settings.beta * kl
    if settings.supervised_weight != 0:
        loss -= settings.supervised_weight * tile.at_target(log_p, target, settings)
    _log(slot, 3, kl, weight, settings)
    _log(slot, 0, loss, weight, settings)

    if settings.is_differentiating:
        if not settings.is_logging:
            weight *= tl.load(incoming)
        slope = tile.sum(slopes, settings)[:, None]
        for i in tl.static_range(settings.chunks):
            pull = slope + settings.supervised_weight
            if settings.beta > 0:
                pull += settings.beta * (log_p[i] - log_reference[i] - kl[:, None])
            if settings.entropy_weight != 0:
                pull += settings.entropy_weight * (log_p[i] + entropy[:, None])
            dz = p[i] * pull - slopes[i]
            if settings.supervised_weight != 0:
                dz -= tl.where(tile.indices(i, settings) == target, settings.supervised_weight, 0.0)
            place = gradient + first[:, None] + tile.indices(i, settings) * class_stride
            mask = (site < num_sites)[:, None] & (tile.indices(i, settings) < settings.outputs)
            tl.store(place, (dz * weight[:, None]).to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def _advantages(q, target, matrices, weight, slot, settings: tl.constexpr):
    """Return the group-relative advantages of the rewards, 0 in the padding; log the rewards."""
    rewards = ()
    for i in tl.static_range(settings.chunks):
        is_target = tile.indices(i, settings) == target
        rewards = rewards + (tl.where(is_target, settings.accuracy_weight, 0.0) - settings.uniformity_weight * q[i],)
    for m in tl.static_range(len(settings.matrix_weights)):
        matrix = _matrix_rows(matrices + m * settings.outputs * settings.outputs, target, weight, settings)
        _log_reward(slot, settings.matrix_rows[m], matrix, q, weight, settings)
        total = ()
        for i in tl.static_range(settings.chunks):
            total = total + (rewards[i] + settings.matrix_weights[m] * matrix[i],)
        rewards = total
    if settings.is_logging:
        _log_reward(slot, 7, rewards, q, weight, settings)
        if settings.accuracy_row >= 0:
            right = tile.at_target(q, target, settings)
            wrong = tile.away_from_target(q, target, settings)
            _log(slot, settings.accuracy_row, right, weight, settings)
            _log(slot, settings.accuracy_row + 1, tl.sqrt(right * wrong), weight, settings)
        if settings.uniformity_row >= 0:
            mean = tile.dot(q, q, settings)
            variance = tile.weighted_squares(tile.minus(q, mean, settings), q, settings)
            _log(slot, settings.uniformity_row, -mean, weight, settings)
            _log(slot, settings.uniformity_row + 1, tl.sqrt(variance), weight, settings)
    centered = tile.minus(rewards, tile.sum(rewards, settings) / settings.outputs, settings)
    std = tl.sqrt(tile.dot(centered, centered, settings) / settings.outputs)
    _log(slot, 9, tl.where(std < NO_SIGNAL, 1.0, 0.0), weight, settings)
    if settings.is_policy_statistics:
        centered = tile.minus(rewards, tile.dot(q, rewards, settings), settings)
        std = tl.sqrt(tile.weighted_squares(centered, q, settings))
    if settings.is_scaled:
        # without an eps a group of equal rewards has nothing to learn from, rather than 0 / 0
        factor = tl.where(
            std + settings.eps == 0, 0.0, 1.0 / tl.where(std + settings.eps == 0, 1.0, std + settings.eps)
        )
        return tile.times(centered, factor, settings)
    return centered


@triton.jit
def _surrogate(log_p, log_q, q, advantages, weight, slot, settings: tl.constexpr):
    """Return J and the slopes g_k = dJ / d log p_k; log what is clipped."""
    slopes = ()
    if settings.is_fresh:
        nothing = tl.zeros_like(weight)
        for i in tl.static_range(settings.chunks):
            slopes = slopes + (advantages[i] * _share(q[i], settings),)
        value, low, high = tile.sum(slopes, settings), nothing, nothing
    else:
        values = tl.zeros_like(q[0])
        lows, highs = tl.zeros_like(q[0]), tl.zeros_like(q[0])
        for i in tl.static_range(settings.chunks):
            log_ratio = log_p[i] - log_q[i]
            unclamped = tl.exp(tl.minimum(tl.maximum(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))
            ratio = tl.minimum(unclamped, settings.ratio_cap)
            plain = ratio * advantages[i]
            clipped = tl.minimum(tl.maximum(ratio, settings.clip_min), settings.clip_max) * advantages[i]
            is_free = (tl.abs(log_ratio) <= MAX_LOG_RATIO) & (unclamped <= settings.ratio_cap) & (plain <= clipped)
            values += tl.minimum(plain, clipped) * _share(q[i], settings)
            slopes = slopes + (tl.where(is_free, plain, 0.0) * _share(q[i], settings),)
            lows += tl.where((ratio < settings.clip_min) & (advantages[i] < 0), 1.0, 0.0)
            highs += tl.where((ratio > settings.clip_max) & (advantages[i] > 0), 1.0, 0.0)
        value = tl.sum(values, 1)
        low, high = tl.sum(lows, 1) / settings.outputs, tl.sum(highs, 1) / settings.outputs
    _log(slot, 4, low, weight, settings)
    _log(slot, 5, high, weight, settings)
    _log(slot, 6, low + high, weight, settings)
    return value, slopes


@triton.jit
def _share(q, settings: tl.constexpr):
    """What an output weighs in the surrogate."""
    return q if settings.is_policy_weighting else 1.0 / settings.outputs


@triton.jit
def _matrix_rows(matrix, target, weight, settings: tl.constexpr):
    """The row of each site's label; row 0 for a site without one, as in `MatrixReward`."""
    chunks = ()
    row = tl.maximum(target, 0).to(tl.int64) * settings.outputs
    for i in tl.static_range(settings.chunks):
        outputs = tile.indices(i, settings)
        mask = (weight != 0)[:, None] & (outputs < settings.outputs)
        chunks = chunks + (tl.load(matrix + row + outputs, mask=mask, other=0.0),)
    return chunks


@triton.jit
def _log(slot, row, values, weight, settings: tl.constexpr):
    if settings.is_logging:
        tl.store(slot + row * tl.num_programs(0), tl.sum(values * weight, 0))


@triton.jit
def _log_reward(slot, row, rewards, q, weight, settings: tl.constexpr):
    if settings.is_logging:
        mean = tile.dot(q, rewards, settings)
        variance = tile.weighted_squares(tile.minus(rewards, mean, settings), q, settings)
        _log(slot, row, mean, weight, settings)
        _log(slot, row + 1, tl.sqrt(variance), weight, settings)


@triton.jit
def _log_max(slot, row, z, settings: tl.constexpr):
    if settings.is_logging:
        greatest = tl.zeros_like(z[0])
        for i in tl.static_range(settings.chunks):
            greatest = tl.maximum(greatest, tile.masked(tl.abs(z[i]), i, 0.0, settings))
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
