"""What learns: the model, its optimizer, and the policies it is compared with. One batch in, one or more steps done."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grpo_rm.devices import Processes
from grpo_rm.loss_statistics import add_up
from grpo_rm.losses import Loss
from grpo_rm.memory import Memory, Places
from grpo_rm.model import VisionModel
from grpo_rm.recipe import Recipe, create_optimizer, create_schedule, set_training_mode
from grpo_rm.sites import Aggregation, Sites, site_count, site_weights, valid_sites
from grpo_rm.task import CLASSIFICATION, Task

Stats = dict[str, Tensor]

MAX_SKIPPED_STEPS = 50  # in a row: the scale of fp16 starts at 2^16 and is halved at each


class NotFiniteError(FloatingPointError):
    """Loss or gradient of a step is not finite."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(f"the loss is {loss:g} and the norm of its gradient {norm:g}")
        self.step = step


@dataclass
class _Part:
    """A micro-batch, its sites, and what was said of it before the first step on it, at the stride of the model."""

    images: Tensor
    labels: Tensor
    targets: Tensor
    weights: Tensor
    place_targets: Tensor | None = None  # of what is remembered, and how much it counts
    place_weights: Tensor | None = None
    old_logits: Tensor | None = None
    reference_logits: Tensor | None = None
    embeddings: Tensor | None = None  # of the places, in the last step


class Learner:
    """Takes optimizer steps; holds what they change. `steps` are done, `learning_rate` was that of the last one (where
    layers differ, the greatest).

    Args:
        model: Trained in place; moved to the accelerator's device.
        loss: Sites to the loss.
        recipe: How to train.
        accelerator: Device, precision, and the other processes.
        steps: How many there will be in all.
        task: What the sites of a batch are.
        aggregation: What a site counts; see `site_weights`.
        old_policy_steps: The old policy is a snapshot of the model, renewed every this many batches. With 1 there is
            none: it is the present policy, or with `recipe.num_iterations` the one before the first step of a batch.
        use_reference: Compare with a frozen copy of the initial model.
        memory_size: How many places to remember, for `neighbor_loss`; 0 for none.

    Raises:
        ValueError: The recipe asks for what there is not, or for another precision than the accelerator has.
    """

    def __init__(
        self,
        model: VisionModel,
        loss: Loss,
        recipe: Recipe,
        accelerator: Accelerator,
        *,
        steps: int,
        task: Task = CLASSIFICATION,
        aggregation: Aggregation = "per_image",
        old_policy_steps: int = 1,
        use_reference: bool = False,
        memory_size: int = 0,
    ) -> None:
        from timm.utils import ModelEmaV3  # slow to import

        if accelerator.mixed_precision != recipe.precision.replace("fp32", "no"):
            raise ValueError(
                f"precision is {recipe.precision!r} and that of the accelerator {accelerator.mixed_precision!r}: give "
                "create_accelerator(recipe.precision)"
            )
        model = model.to(accelerator.device)
        self.model: VisionModel = model.to(memory_format=torch.channels_last) if recipe.channels_last else model
        self.loss, self.recipe, self.accelerator = loss, recipe, accelerator
        self.task, self.aggregation = task, aggregation
        self.processes = Processes(accelerator)
        self.optimizer = accelerator.prepare_optimizer(create_optimizer(model, recipe))
        self.schedule = create_schedule(self.optimizer, recipe, steps=steps)
        self.old_policy_steps = old_policy_steps
        self.steps, self.learning_rate = 0, math.nan
        self.snapshot = _frozen(model) if old_policy_steps > 1 else None
        self.reference = _frozen(model).eval() if use_reference else None
        self.memory = Memory(memory_size, device=accelerator.device) if memory_size else None
        # without its warm-up a short training would end with an average that is mostly the initial weights
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._forward = self._wrapped(model)
        self._finite = _FiniteCheck(skips_allowed=MAX_SKIPPED_STEPS if accelerator.scaler else 0)

    @property
    def result(self) -> VisionModel:
        """The model that is validated and saved: the trained one, or its moving average."""
        return self.ema.module if self.ema else self.model

    @property
    def models(self) -> list[VisionModel]:
        """The trained model, and its moving average where there is one."""
        return [self.model, *([self.ema.module] if self.ema else [])]

    def learn(self, images: Tensor, labels: Tensor) -> Iterator[Stats]:
        """Take `num_iterations` steps on this process's part of a batch; yield the statistics of each.

        The mean of the statistics over the processes is that of the batch; of a name that begins with "max_" the
        greatest counts.

        Raises:
            NotFiniteError: The loss or its gradient. The step is not taken; on a GPU it may be noticed one step later.
        """
        if self.snapshot and self.steps // self.recipe.num_iterations % self.old_policy_steps == 0:
            self.snapshot.load_state_dict(self.model.state_dict())
        parts = self._parts(images, labels)
        for _ in range(self.recipe.num_iterations):
            yield self._step(parts)
        self._remember(parts)

    def prepare(self) -> None:
        """Switch to training mode, the snapshot as well; what is frozen stays in evaluation mode."""
        set_training_mode(self.model)
        if self.snapshot:
            for module, copied in zip(self.model.modules(), self.snapshot.modules(), strict=True):
                copied.training = module.training

    def share_statistics(self) -> None:
        """Have all processes use the first one's running statistics, of batch normalization: those that are saved."""
        for model in self.models:
            for buffer in model.buffers():
                self.processes.share(buffer)

    def finish(self) -> None:
        """Wait until the last step is known to be finite."""
        self._finite.finish()

    def state(self) -> dict[str, Any]:
        """Return all that changes."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        parts |= {"ema": self.ema, "snapshot": self.snapshot, "scaler": self.accelerator.scaler}
        parts["memory"] = self.memory
        counts = {"steps": self.steps, "learning_rate": self.learning_rate}
        return {name: part.state_dict() for name, part in parts.items() if part is not None} | counts

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        parts = {"ema": self.ema, "snapshot": self.snapshot, "scaler": self.accelerator.scaler, "memory": self.memory}
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        self.steps, self.learning_rate = state["steps"], state["learning_rate"]
        self.schedule.step_update(self.steps)

    def _wrapped(self, model: VisionModel) -> nn.Module:
        """The model as it is called in training. Accelerate's own wrapper would copy the logits to float32."""
        wrapped: nn.Module = model
        if self.processes.count > 1:
            devices = None if self.accelerator.device.type == "cpu" else [self.accelerator.device]
            wrapped = DistributedDataParallel(
                model,
                device_ids=devices,
                gradient_as_bucket_view=True,
                find_unused_parameters=not self.task.uses_all_weights,
            )
        return torch.compile(wrapped) if self.recipe.compile else wrapped  # type: ignore[return-value]

    def _parts(self, images: Tensor, labels: Tensor) -> list[_Part]:
        device = self.accelerator.device
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        targets = self.task.site_targets(labels)
        tensors = [images, labels, targets, self._weights(targets)]
        if self.memory is not None:
            place_targets = self.task.place_targets(labels)
            tensors += [place_targets, self._weights(place_targets)]
        cut = [tensor.tensor_split(self.recipe.accumulation) for tensor in tensors]
        return [_Part(*part) for part in zip(*cut, strict=True) if len(part[0])]

    def _weights(self, targets: Tensor) -> Tensor:
        """Return how much each site of the batch counts."""
        valid = valid_sites(targets)
        count = self.processes.sum(site_count(valid, self.aggregation))
        # gradients and statistics are averaged over the processes, so each has to count as many times
        weights: Tensor = self._weigh(site_weights(valid, self.aggregation, count=count), targets)
        weights *= self.processes.count
        return weights

    def _weigh(self, weights: Tensor, targets: Tensor) -> Tensor:
        """Let each site count by its class, and all of the batch together as much as before: statistics stay means."""
        weighed = self.task.weigh(weights, targets)
        if weighed is weights:
            return weights
        before, after = self.processes.sum(torch.stack([weights.sum(), weighed.sum()])).unbind()
        return weighed * (before / after.clamp(min=1e-30))

    def _step(self, parts: list[_Part]) -> Stats:
        self.optimizer.zero_grad(set_to_none=True)
        stats: list[Stats] = []
        for part in parts:
            is_last = part is parts[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self._forward):
                output = self.loss(self._sites(part))
                self.accelerator.backward(output.loss)
            stats.append({"train_loss": output.loss.detach()} | output.stats)
        total = add_up(stats)
        norm = self.accelerator.clip_grad_norm_(self.trained, self.recipe.clip_grad_norm)
        # the mean, so that all processes see the same: where one stops, all do
        self._finite.check(self.steps + 1, self.processes.mean(total["train_loss"]), norm)
        self.learning_rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.optimizer.step()
        self.steps += 1
        self.schedule.step_update(self.steps)
        if self.ema:
            self.ema.update(self.model, step=self.steps)
        return total | {"grad_norm": norm}

    def _sites(self, part: _Part) -> Sites:
        if part.old_logits is None and self.snapshot:
            devices = [self.accelerator.device] if part.images.is_cuda else []
            with torch.random.fork_rng(
                devices
            ):  # dropout as in the policy's pass below, so that it cancels in the ratio
                part.old_logits = self._logits(self.snapshot, part.images)
        if part.reference_logits is None and self.reference:
            part.reference_logits = self._logits(self.reference, part.images)
        with self.accelerator.autocast():
            embeddings, logits = self._forward(part.images)
        if part.old_logits is None and self.recipe.num_iterations > 1:
            part.old_logits = logits.detach()
        now, old, reference = (
            None if one is None else self.task.site_logits(one, part.labels)
            for one in (logits, part.old_logits, part.reference_logits)
        )
        assert now is not None
        return Sites(now, part.targets, part.weights, old, reference, self._places(part, embeddings))

    def _places(self, part: _Part, embeddings: Tensor) -> Places | None:
        if self.memory is None:
            return None
        assert part.place_targets is not None
        assert part.place_weights is not None
        chosen = self.task.place_embeddings(embeddings)
        part.embeddings = chosen.detach()
        return Places(chosen, part.place_targets, part.place_weights, self.memory)

    def _remember(self, parts: list[_Part]) -> None:
        """Remember the batch, of all processes."""
        if self.memory is not None:
            embeddings = torch.cat([part.embeddings for part in parts if part.embeddings is not None])
            targets = torch.cat([part.place_targets for part in parts if part.place_targets is not None])
            self.memory.add(self.processes.join(embeddings), self.processes.join(targets))

    def _logits(self, model: VisionModel, images: Tensor) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            logits: Tensor = model(images)[1]
            return logits


class _FiniteCheck:
    """Looks at the numbers of each step: on the CPU at once, on a GPU when the next step has been queued.

    With fp16 a gradient that overflows is expected: the scaler leaves the step out, and scales less from then on.
    """

    def __init__(self, *, skips_allowed: int) -> None:
        self._skips_allowed, self._skips = skips_allowed, 0
        self._step = 0
        self._numbers: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def check(self, step: int, loss: Tensor, norm: Tensor) -> None:
        numbers = torch.stack([loss.detach().float(), norm.detach().float()])
        if not numbers.is_cuda:
            self._step, self._numbers = step, numbers
            self.finish()
            return
        self.finish()
        self._step, self._numbers = step, numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def finish(self) -> None:
        if self._numbers is None:
            return
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._numbers.tolist()
        self._numbers = None
        self._skips = 0 if math.isfinite(norm) else self._skips + 1
        if not math.isfinite(loss) or self._skips > self._skips_allowed:
            raise NotFiniteError(self._step, loss, norm)


def _frozen(model: VisionModel) -> VisionModel:
    return copy.deepcopy(model).requires_grad_(False)
