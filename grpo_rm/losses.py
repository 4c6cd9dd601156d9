"""The losses of the arms that are compared: cross-entropy, and GRPO-RM with its rewards put together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_rm.advantages import Scale, group_advantages
from grpo_rm.loss_parts import Loss as Loss
from grpo_rm.loss_parts import LossOutput as LossOutput
from grpo_rm.loss_parts import loss_in_parts
from grpo_rm.loss_statistics import (
    CLIP_STATISTICS,
    clip_statistics,
    max_abs_logit,
    reward_statistics,
    sum_over_sites,
)
from grpo_rm.neighbors import neighbor_loss
from grpo_rm.objective import Weighting, clipped_surrogate, fresh_surrogate, regressive_surrogate
from grpo_rm.output_set import candidate_mass, candidate_outputs
from grpo_rm.policy import entropy, kl_divergence, log_policy
from grpo_rm.random_state import random_state_kept
from grpo_rm.rewards import Group, Reward, check_rewards, compute_rewards, is_per_site
from grpo_rm.sites import Sites, site_images, site_rows

Surrogate = Literal["clipped", "regressive"]
Statistics = Literal["uniform", "policy"]

MIN_REGRESSIVE_EPS = 1e-6  # the first step from pi_old is 2 / eps long


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Settings of the GRPO-RM loss. What a setting does says `docs/objective.md`.

    Attributes:
        rewards: By name.
        reward_weights: By the same names. With weight 0 a reward is only logged.
        classes: Names of the outputs, for rewards that want them.
        surrogate: "clipped" (GRPO) or "regressive" (Reg-GRPO).
        scale: See `group_advantages`.
        statistics: "uniform", or "policy" for group statistics weighted by pi_old.
        eps: See `group_advantages` and `regressive_surrogate`.
        weighting: See `clipped_surrogate`.
        clip_low: See `clipped_surrogate`.
        clip_high: See `clipped_surrogate`.
        ratio_cap: See `clipped_surrogate`. At least 1 + clip_high.
        candidates: Only the labeled output and this many others count, the most probable ones under pi_old; the policy
            is the softmax over these. With K - 1 or more it is the whole output set, as with None.
        beta: Weight of KL(pi || reference).
        entropy_weight: Weight of the entropy, as a bonus.
        supervised_weight: Weight of cross-entropy, which is over all outputs whatever the candidates.
        neighbor_weight: Weight of `neighbor_loss` over K, for which a trainer has to remember places; 0 for none.
        neighbor_temperature: See `neighbor_loss`.

    Raises:
        ValueError: A setting is out of range, or rewards and weights are not of the same names.
    """

    rewards: Mapping[str, Reward]
    reward_weights: Mapping[str, float]
    classes: tuple[str, ...] = ()
    surrogate: Surrogate = "clipped"
    scale: Scale = "group"
    statistics: Statistics = "uniform"
    eps: float = 1e-4
    weighting: Weighting = "uniform"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_cap: float | None = None
    candidates: int | None = None
    beta: float = 0.0
    entropy_weight: float = 0.0
    supervised_weight: float = 0.0
    neighbor_weight: float = 0.0
    neighbor_temperature: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings, once rather than at every step."""
        if not self.rewards or set(self.rewards) != set(self.reward_weights):
            raise ValueError(
                f"rewards are {sorted(self.rewards)} and reward_weights {sorted(self.reward_weights)}, expected the "
                "same names, at least one"
            )
        for name, weight in self.reward_weights.items():
            _expect(math.isfinite(weight), f"reward_weights[{name!r}]", weight, "a finite number")
        for name, choices in (("surrogate", Surrogate), ("scale", Scale)):
            _expect_one_of(name, getattr(self, name), get_args(choices))
        for name in ("statistics", "weighting"):
            _expect_one_of(name, getattr(self, name), get_args(Weighting))
        for name in ("eps", "clip_low", "clip_high", "beta", "entropy_weight", "supervised_weight", "neighbor_weight"):
            value = getattr(self, name)
            _expect(0 <= value < math.inf, name, value, "a finite number, 0 or more")
        _expect(self.neighbor_temperature > 0, "neighbor_temperature", self.neighbor_temperature, "more than 0")
        _expect(self.clip_low <= 1, "clip_low", self.clip_low, "at most 1: a ratio is never below 0")
        if self.surrogate == "regressive":
            expected = f'at least {MIN_REGRESSIVE_EPS} with surrogate "regressive", which divides by it'
            _expect(self.eps >= MIN_REGRESSIVE_EPS, "eps", self.eps, expected)
        if self.ratio_cap is not None:
            lowest = 1 + self.clip_high
            _expect(
                self.ratio_cap >= lowest, "ratio_cap", self.ratio_cap, f"at least 1 + clip_high = {lowest:g}, or None"
            )
        if self.candidates is not None:
            _expect(self.candidates >= 1, "candidates", self.candidates, "at least 1, or None for all outputs")


def _expect_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _expect(value in choices, name, value, " or ".join(f'"{choice}"' for choice in choices))


def _expect(is_so: bool, name: str, value: object, expected: str) -> None:
    if not is_so:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def cross_entropy_loss(sites: Sites) -> LossOutput:
    """Return -log pi(target), weighted over the sites; with several labels the mean over them."""
    return loss_in_parts(_cross_entropy_at_once, sites)


def _cross_entropy_at_once(sites: Sites) -> LossOutput:
    rows = site_rows(sites)
    log_probs = log_policy(rows.logits)
    loss = (rows.weights * _cross_entropy(log_probs, rows.targets)).sum()
    stats = sum_over_sites({"entropy": entropy(log_probs.detach())}, rows.weights)
    return LossOutput(loss, stats | {"max_abs_logit": max_abs_logit(rows.logits)})


def grpo_rm_loss(sites: Sites, objective: Objective) -> LossOutput:
    """Return the GRPO-RM loss, weighted over the sites.

    Raises:
        ValueError: The shapes do not fit, or `beta` wants the reference's logits and there are none.
    """
    rows = site_rows(sites)
    candidates, group, log_probs = _compare(rows, site_images(sites.weights), objective)
    rewards = compute_rewards(group, objective.rewards, rows.weights)
    reward = _total_reward(rewards, objective.reward_weights)
    advantages = group_advantages(
        reward,
        scale=objective.scale,
        eps=objective.eps,
        old_log_probs=group.old_log_probs if objective.statistics == "policy" else None,
    )
    old_log_probs = None if rows.old_logits is None else group.old_log_probs
    gain = _surrogate(log_probs, old_log_probs, advantages, objective)
    extra, logged = _regularizers(log_probs, candidates.reference_logits, rows, objective)
    logged |= reward_statistics(reward, rewards, group.old_probs)
    logged |= _policy_statistics(log_probs.detach(), old_log_probs, advantages, group, objective)
    if not group.is_full:
        old_logits = rows.logits if rows.old_logits is None else rows.old_logits
        logged["candidate_mass"] = candidate_mass(old_logits, group.outputs)
    stats = sum_over_sites(logged, rows.weights) | {"max_abs_logit": max_abs_logit(rows.logits)}
    return LossOutput((rows.weights * (gain if extra is None else gain + extra)).sum().neg(), stats)


class GrpoRmLoss:
    """The GRPO-RM loss as a trainer calls it: rewards are checked on the first batch, and on a GPU it is one pass."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.is_checked = False

    def __call__(self, sites: Sites) -> LossOutput:
        """Return `grpo_rm_loss`, by whichever way is fastest, and `neighbor_loss` where it has a weight.

        Raises:
            ValueError: See `grpo_rm_loss` and `check_rewards`.
        """
        if not self.is_checked:
            rows = site_rows(sites)
            _, group, _ = _compare(rows, site_images(sites.weights), self.objective)
            with random_state_kept(rows.logits.device):  # a training that goes on checks again
                check_rewards(group, self.objective.rewards, rows.weights)
            self.is_checked = True
        output, weight = self._at_head(sites), self.objective.neighbor_weight
        if weight == 0:
            return output
        if sites.places is None:
            raise ValueError(f"neighbor_weight is {weight} and the sites have no places, expected what is remembered")
        near = neighbor_loss(sites.places, temperature=self.objective.neighbor_temperature)
        # the class term is a mean over K outputs: a K-th of cross-entropy, where the advantages are not scaled
        return LossOutput(output.loss + weight / sites.logits.shape[1] * near.loss, output.stats | near.stats)

    def _at_head(self, sites: Sites) -> LossOutput:
        if sites.logits.is_cuda:
            from grpo_rm.fused import fused_grpo_rm_loss, is_fusable  # Triton is for a GPU only

            if is_fusable(sites, self.objective):
                return fused_grpo_rm_loss(sites, self.objective)
        if all(is_per_site(reward) for reward in self.objective.rewards.values()):
            return loss_in_parts(partial(grpo_rm_loss, objective=self.objective), sites)
        return grpo_rm_loss(sites, self.objective)


def _compare(rows: Sites, images: Tensor, objective: Objective) -> tuple[Sites, Group, Tensor]:
    """Return the rows with the candidates alone, their group, and the policy's log-probabilities over them: (N, k)."""
    num_sites, num_outputs = rows.logits.shape
    outputs = torch.arange(num_outputs, device=rows.logits.device).expand(num_sites, -1)
    is_full = objective.candidates is None or objective.candidates >= num_outputs - 1
    if not is_full:
        assert objective.candidates is not None
        old_logits = rows.logits if rows.old_logits is None else rows.old_logits
        outputs = candidate_outputs(old_logits, rows.targets, objective.candidates)
        rows = rows._replace(
            logits=rows.logits.gather(1, outputs),
            old_logits=None if rows.old_logits is None else rows.old_logits.gather(1, outputs),
            reference_logits=None if rows.reference_logits is None else rows.reference_logits.gather(1, outputs),
        )
    log_probs = log_policy(rows.logits)
    old_log_probs = log_probs.detach() if rows.old_logits is None else log_policy(rows.old_logits)
    return rows, Group(rows.targets, outputs, old_log_probs, objective.classes, is_full, images), log_probs


def _total_reward(rewards: Mapping[str, Tensor], reward_weights: Mapping[str, float]) -> Tensor:
    # a reward of weight 0 is only logged
    weighted = [(values, reward_weights[name]) for name, values in rewards.items() if reward_weights[name] != 0]
    if not weighted:
        return torch.zeros_like(next(iter(rewards.values())))
    first, weight = weighted[0]
    total = first if weight == 1 else first * weight
    for values, weight in weighted[1:]:
        total = torch.add(total, values, alpha=weight)
    return total


def _surrogate(log_probs: Tensor, old_log_probs: Tensor | None, advantages: Tensor, objective: Objective) -> Tensor:
    if objective.surrogate == "regressive":
        return regressive_surrogate(
            log_probs,
            log_probs.detach() if old_log_probs is None else old_log_probs,
            advantages,
            weighting=objective.weighting,
            statistics=objective.statistics,
            eps=objective.eps,
        )
    if old_log_probs is None:
        return fresh_surrogate(log_probs, advantages, weighting=objective.weighting)
    return clipped_surrogate(
        log_probs,
        old_log_probs,
        advantages,
        weighting=objective.weighting,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        ratio_cap=objective.ratio_cap,
    )


def _regularizers(
    log_probs: Tensor, reference_logits: Tensor | None, rows: Sites, objective: Objective
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return what each site gains beside the surrogate, (N,) or None for nothing, and what of it is logged."""
    gains, logged = [], {}
    if objective.beta > 0:
        if reference_logits is None:
            raise ValueError(
                f"beta is {objective.beta} and the sites have no reference_logits, expected those of a model"
            )
        kl = kl_divergence(log_probs, log_policy(reference_logits))
        gains.append(-objective.beta * kl)
        logged["kl"] = kl.detach()
    if objective.entropy_weight > 0:
        gains.append(objective.entropy_weight * entropy(log_probs))
    if objective.supervised_weight > 0:
        gains.append(-objective.supervised_weight * _cross_entropy(log_policy(rows.logits), rows.targets))
    return (torch.stack(gains).sum(dim=0) if gains else None), logged


def _cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """(N, K) to (N,); the mean over the labels of a site."""
    if targets.ndim == 1:
        return -log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(log_probs * targets).sum(dim=-1) / targets.sum(dim=-1).clamp(min=1)


def _policy_statistics(
    log_probs: Tensor, old_log_probs: Tensor | None, advantages: Tensor, group: Group, objective: Objective
) -> dict[str, Tensor]:
    """Return entropy, divergence from the old policy and what is clipped: (N,) by name."""
    has_clip = objective.surrogate == "clipped"
    if old_log_probs is None:  # the present policy is the old one: no divergence, nothing to clip
        none = torch.zeros_like(log_probs[:, 0])
        zeros = dict.fromkeys(("old_kl", *(CLIP_STATISTICS if has_clip else ())), none)
        return {"entropy": -(group.old_probs * log_probs).sum(dim=-1)} | zeros
    stats = {"entropy": entropy(log_probs), "old_kl": kl_divergence(old_log_probs, log_probs)}
    if not has_clip:
        return stats
    clip = {"clip_low": objective.clip_low, "clip_high": objective.clip_high}
    return stats | clip_statistics(log_probs - old_log_probs, advantages, **clip)
