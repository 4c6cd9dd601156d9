"""Rewards: one number per (site, candidate). A site is an image, or a pixel of a dense task."""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.region_iou import iou_gains
from grpo_rm.sites import clear_void


@dataclass(frozen=True)
class Group:
    """The candidates of N sites, which is what a reward sees.

    Attributes:
        targets: (N,) integer labels, or (N, K) bool: whether each output is a label of the site. A site without a label
            (below 0) may be rewarded anyhow: it does not count.
        outputs: (N, k) integers: which output each candidate is. All K of them in order, unless candidates are chosen.
        old_log_probs: (N, k) log-probabilities of the old policy over the candidates; float32 or float64.
        classes: The names of the K outputs.
        is_full: The candidates are known to be all K outputs in order, which a reward may use to be fast.
        images: (N,) int64: which image of the batch each site is of; in classification 0 .. N - 1. A batch that is cut
            into parts is cut between images.
    """

    targets: Tensor
    outputs: Tensor
    old_log_probs: Tensor
    classes: tuple[str, ...] = ()
    is_full: bool = False
    images: Tensor | None = None

    @cached_property
    def old_probs(self) -> Tensor:
        """(N, k) probabilities of the old policy."""
        return self.old_log_probs.exp()


TRUST = 0.6  # 0 is cross-entropy, 1 what lets go of most; chosen on validation: `docs/experiments.md`
Reward = Callable[[Group], Tensor]


def accuracy_reward(group: Group) -> Tensor:
    """Reward 1 for a labeled output and 0 for every other one (paper: the accuracy reward): (N, k) float32."""
    if group.targets.ndim == 2:
        return (group.targets if group.is_full else group.targets.gather(1, group.outputs)).float()
    targets = group.targets.long().unsqueeze(-1)
    if group.is_full:  # on a CPU four times as fast as to compare
        rewards = torch.zeros_like(group.old_log_probs, dtype=torch.float32)
        return rewards.scatter_(1, targets.clamp(min=0), (targets >= 0).float())
    return (targets == group.outputs).float()


def uniformity_reward(group: Group) -> Tensor:
    """Reward each candidate with minus its old probability (ours: the paper's exact formula is not public).

    It has to depend on the candidate: whatever is constant over the output set cancels in the group mean. Together
    with the accuracy reward it makes the reward `1[k = y] - pi_old(k)`, cross-entropy's error.

    Returns:
        (N, k), values in [-1, 0].
    """
    return -group.old_probs


def log_uniformity_reward(group: Group) -> Tensor:
    """Reward each candidate with minus its old log-probability (ours): what keeps the logits bounded.

    Its push at a logit is minus what the logit is above their mean (derived; with `weighting: uniform` and
    `scale: none` over K, the gradient of the logit penalty of Kornblith et al. 2021). Beside accuracy and uniformity
    an image has a probability of its label at which nothing pushes, below 1: .89 among 10 outputs with
    a weight of 0.03, the others being alike.

    Returns:
        (N, k), 0 or more.
    """
    return -group.old_log_probs


def trusted_accuracy_reward(group: Group) -> Tensor:
    """Reward accuracy and uniformity as far as the policy trusts the label (ours).

        r(k) = P^0.6 (1[k = y] - n pi_old(k)),    P = sum of pi_old over the n labels

    With `scale: none` it has the gradient of the generalized cross-entropy with q = 0.6 (Zhang & Sabuncu 2018), over K
    (derived): a label that everything speaks against, as a wrong one, hardly counts.

    Returns:
        (N, k), values in [-n, 1].
    """
    is_right = accuracy_reward(group)
    trust = (is_right * group.old_probs).sum(dim=-1, keepdim=True) ** TRUST
    return trust * (is_right - is_right.sum(dim=-1, keepdim=True) * group.old_probs)


def region_iou_reward(group: Group) -> Tensor:
    """Reward each candidate with what the mIoU of its image gains by it, times the image's sites (ours).

    The other sites are predicted as the old policy finds most probable; the mean is over the classes in the image's
    truth; see `iou_gains`. With one site an image this is the accuracy reward.

    Returns:
        (N, k) float32, 0 where there is no label.

    Raises:
        ValueError: A site may have several labels, or the group does not say which image a site is of.
    """
    targets, images = group.targets.long(), group.images
    if targets.ndim != 1:
        raise ValueError(
            f"targets are {tuple(targets.shape)}, expected (N,), one label a site: regions do not overlap. Leave this "
            "reward out"
        )
    if images is None:
        raise ValueError("images is None, expected (N,) int64: say Group(images=...), which image each site is of")
    best = group.old_log_probs.argmax(dim=-1, keepdim=True)
    predictions = group.outputs.gather(1, best).squeeze(1)
    num_outputs = group.outputs.shape[1] if group.is_full else int(max(group.outputs.max(), targets.max())) + 1
    gains = iou_gains(targets, predictions, images, num_outputs)
    labels = targets.clamp(min=0)
    rewards = gains.wrong[images] if group.is_full else gains.wrong[images.unsqueeze(1), group.outputs]
    rewards.scatter_(1, best, gains.kept[images, predictions].unsqueeze(1))
    right = gains.right[images, labels].unsqueeze(1)
    if group.is_full:  # on a CPU four times as fast as to compare
        rewards.scatter_(1, labels.unsqueeze(1), right)
    else:
        rewards = torch.where(group.outputs == labels.unsqueeze(1), right, rewards)
    return clear_void(rewards, targets >= 0)


class MatrixReward:
    """Look the reward up by label and output (ours). With several labels it is the mean over them."""

    def __init__(self, matrix: Tensor) -> None:
        """Take the rewards of K outputs.

        Args:
            matrix: (K, K), a row per label, a column per output.

        Raises:
            ValueError: The matrix is not square, or a value is not finite.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"the matrix of rewards is {tuple(matrix.shape)}, expected (K, K): labels by outputs")
        if not matrix.isfinite().all():
            row, column = (~matrix.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"the reward of label {row} and output {column} is {matrix[row, column]}, expected a number"
            )
        self.matrix = matrix.detach() if matrix.is_floating_point() else matrix.float()

    def __call__(self, group: Group) -> Tensor:
        """Return (N, k)."""
        if self.matrix.device != group.targets.device:
            self.matrix = self.matrix.to(group.targets.device)  # once, not at every step
        if group.targets.ndim == 2:
            members = group.targets.to(self.matrix.dtype)
            rows = members @ self.matrix / members.sum(dim=-1, keepdim=True).clamp(min=1)
        else:
            rows = self.matrix[group.targets.long().clamp(min=0)]
        return rows if group.is_full else rows.gather(1, group.outputs)


class ConfusionCostReward:
    """Reward accuracy and uniformity by what each confusion costs (ours).

        r(k) = 1[k = y] sum_j C[y, j] pi_old(j) - C[y, k] pi_old(k)

    For an image of one label, with a cost of 1 for every confusion, it is accuracy and uniformity,
    `1[k = y] - pi_old(k)`, so with `scale: none` cross-entropy. A confusion that costs more is pushed back more, in
    proportion to its probability, and one that costs nothing is not, so the push ends where the image is fitted. Of two
    classes that cannot be told apart the more probable one is the cheaper choice (derived: `docs/objective.md`).
    """

    def __init__(self, costs: Tensor, classes: Sequence[str] = ()) -> None:
        """Take the costs of K classes.

        Args:
            costs: (K, K), a row per label, a column per output. What being right costs is taken off its row.
            classes: Their names, for messages.

        Raises:
            ValueError: The matrix is not square, a value is not finite, or a confusion costs less than being right.
        """
        matrix = MatrixReward(costs.float()).matrix
        self.of_confusion = MatrixReward(matrix - matrix.diagonal().unsqueeze(1))
        is_cheap = self.of_confusion.matrix < 0
        if is_cheap.any():
            row, column = is_cheap.nonzero()[0].tolist()
            true, predicted = (repr(classes[index]) if classes else f"class {index}" for index in (row, column))
            raise ValueError(
                f"to predict {predicted} where {true} is true costs {matrix[row, column]:g}, and being right "
                f"{matrix[row, row]:g}; expected that none costs less. The reward cost_matrix takes any number"
            )

    def __call__(self, group: Group) -> Tensor:
        """Return (N, k). With several labels a confusion costs the mean over them, and each gains as much."""
        is_right = accuracy_reward(group)
        expected = self.of_confusion(group) * group.old_probs * (1 - is_right)
        num_right = is_right.sum(dim=-1, keepdim=True).clamp(min=1)
        return is_right * expected.sum(dim=-1, keepdim=True) / num_right - expected


def class_similarity(class_means: Tensor) -> Tensor:
    """Return the cosine similarity of the classes' mean embeddings, for `MatrixReward` (ours).

    A confusion of classes that look alike then costs less than one of classes that do not.

    Args:
        class_means: (K, D), one mean embedding per class.

    Returns:
        (K, K) symmetric, 1 on the diagonal, in [-1, 1].

    Raises:
        ValueError: It is no matrix, or the mean of a class is zero or not finite.
    """
    if class_means.ndim != 2:
        raise ValueError(f"class_means are {tuple(class_means.shape)}, expected (K, D)")
    norms = class_means.norm(dim=-1)
    is_bad = ~norms.isfinite() | (norms == 0)
    if is_bad.any():
        bad = is_bad.nonzero()[0].item()
        raise ValueError(f"the mean embedding of class {bad} has the norm {norms[int(bad)]}; has the class no image?")
    directions = F.normalize(class_means, dim=-1)
    return (directions @ directions.T).clamp(-1, 1).fill_diagonal_(1)


def import_reward(path: str) -> Reward:
    """Import a reward of the user's own.

    Args:
        path: "package.module:function"; the function takes a `Group` and returns (N, k).

    Raises:
        ValueError: The path has another form, the module cannot be imported, or has no such function.
    """
    module_name, separator, name = path.partition(":")
    if not (module_name and separator and name) or module_name.startswith("."):
        raise ValueError(f'reward {path!r}, expected "package.module:function"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"reward {path!r}: importing {module_name} failed: {error}") from error
        raise ValueError(
            f"reward {path!r}: there is no module {error.name}; is its folder the current one, or on PYTHONPATH?"
        ) from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise ValueError(f"reward {path!r}: importing {module_name} failed: {_described(error)}") from error
    if not hasattr(module, name):
        functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise ValueError(f"reward {path!r}: {module_name} has no {name!r}; {nearest(name, functions)}")
    reward = getattr(module, name)
    if not callable(reward):
        raise ValueError(f"reward {path!r} is {type(reward).__name__}, expected a function of a Group")
    return reward  # type: ignore[no-any-return]  # what it returns is checked on the first batch


def nearest(name: str, known: Sequence[str]) -> str:
    """Return what to tell who wrote `name` where one of `known` was expected."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def compute_rewards(group: Group, rewards: Mapping[str, Reward], weights: Tensor) -> dict[str, Tensor]:
    """Return (N, k) of each reward, without a gradient, in the precision of `old_log_probs`, 0 where the weight is.

    Raises:
        ValueError: See `check_rewards`; the rewards of this module are not looked at.
    """
    dtype = group.old_log_probs.dtype
    values = {
        name: _quiet(reward, group) if _is_ours(reward) else _checked(name, reward, group, weights)
        for name, reward in rewards.items()
    }
    return {name: clear_void(reward.detach().to(dtype), weights) for name, reward in values.items()}


def check_rewards(group: Group, rewards: Mapping[str, Reward], weights: Tensor) -> None:
    """Compute each reward once, and see that it is what a reward has to be.

    Args:
        group: The first batch.
        rewards: By name.
        weights: (N,). Where it is 0, a reward may be anything.

    Raises:
        ValueError: A reward fails, is no tensor of numbers, has another shape or device, or is not finite where it
            counts. The message names the reward.
    """
    for name, reward in rewards.items():
        _checked(name, reward, group, weights)


def is_per_site(reward: Reward) -> bool:
    """Return whether it is known to look at each site alone, so that sites may be cut into parts."""
    known = (accuracy_reward, uniformity_reward, log_uniformity_reward, trusted_accuracy_reward)
    return reward in known or isinstance(reward, MatrixReward | ConfusionCostReward)


def _is_ours(reward: Reward) -> bool:
    return is_per_site(reward) or reward is region_iou_reward


def _quiet(reward: Reward, group: Group) -> Tensor:
    # under autocast a product of matrices in a reward would be bfloat16
    with torch.no_grad(), torch.autocast(group.outputs.device.type, enabled=False):
        return reward(group)


def _checked(name: str, reward: Reward, group: Group, weights: Tensor) -> Tensor:
    try:
        values = _quiet(reward, group)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"the reward {name!r} failed: {_described(error)}") from error
    if mistake := _mistake(values, group, weights):
        raise ValueError(f"the reward {name!r} {mistake}")
    return values


def _mistake(values: object, group: Group, weights: Tensor) -> str:
    shape, device = tuple(group.outputs.shape), group.outputs.device
    if not isinstance(values, Tensor):
        return f"is {type(values).__name__}, expected a tensor of shape {shape}"
    if tuple(values.shape) != shape:
        return f"is of shape {tuple(values.shape)}, expected {shape}: a number for each site and candidate"
    if values.is_complex():
        return f"is {values.dtype}, expected real numbers"
    if values.device != device:
        return f"is on {values.device}, expected {device}: make its tensors with device=group.outputs.device"
    is_bad = ~values.isfinite() & (weights != 0).unsqueeze(-1)
    if is_bad.any():
        site, candidate = is_bad.nonzero()[0].tolist()
        output = group.outputs[site, candidate].item()
        return (
            f"is {values[site, candidate].item()} at site {site} of the batch for output {output} "
            f"({int(is_bad.sum())} such values), expected finite numbers"
        )
    return ""


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
