"""Started by torchrun: `two_processes.py SCENARIO FOLDER`; test_two_processes.py looks at what it leaves there."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dense_toy import create_dense_trainer
from toy_training import OBJECTIVE, create_model, create_trainer, grpo, weights_of

from grpo_rm.losses import GrpoRmLoss
from grpo_rm.task import Segmentation
from grpo_rm.trainer import Interrupted

PLAIN = {"optimizer": "sgd", "learning_rate": 0.05}
RICH = PLAIN | {"accumulation": 2, "num_iterations": 2, "ema_decay": 0.8, "knn_every": 1, "keep_best": 2}


def create(folder, *, stop=lambda trainer: False, drop=0.0, **recipe):  # noqa: ARG005
    """A trainer of a network without batch statistics; with `drop` its random numbers differ between processes."""
    model = create_model("test_vit", depth=2, drop_path_rate=drop)
    rich = {"old_policy_steps": 2, "memory_size": 32} if "ema_decay" in recipe else {}
    loss = GrpoRmLoss(replace(OBJECTIVE, neighbor_weight=1.0)) if rich else grpo
    options = {"should_stop": lambda: stop(trainer), **rich}
    trainer = create_trainer(folder, loss, model=model, options=options, **recipe)
    return trainer


def create_dense(folder):
    """A trainer of a dense task; of some images of a batch all pixels are void."""
    task = Segmentation(4, site_stride=2, class_weights=torch.tensor([0.5, 2.0]))
    return create_dense_trainer(folder, task=task, accumulation=2, options={"aggregation": "per_site"})


def second_process_at(step):
    return lambda trainer: dist.get_rank() == 1 and trainer.step == step


def save(trainer, folder):
    if trainer.processes.is_first:
        torch.save((weights_of(trainer.learner.result), trainer.history), folder / "result.pt")


def train(folder, **options):
    trainer = create(folder, **options)
    trainer.fit()
    save(trainer, folder)
    return trainer


def main(scenario, folder):
    if scenario == "same":
        train(folder / "plain", **PLAIN)
        train(folder / "rich", **RICH)
        dense = create_dense(folder / "dense")
        dense.fit()
        save(dense, folder / "dense")
        # the second process alone is told to stop: both do
        for name, stops in [("whole", []), ("resumed", [2, 4])]:
            for step in stops:
                with pytest.raises(Interrupted, match=f"at step {step} "):
                    create(folder / name, drop=0.5, stop=second_process_at(step)).fit()
            trainer = train(folder / name, drop=0.5)
            random = [torch.rand(()).item() for _ in range(3)]
            numbers = trainer.processes.gather(random)
            assert numbers[0] != numbers[1]
    elif scenario == "dies":
        create(folder / "dies", stop=lambda trainer: dist.get_rank() == 1 and trainer.step == 4 and 1 / 0).fit()
    elif scenario == "diverges":
        create(folder / "diverges", **PLAIN | {"learning_rate": 1e30, "clip_grad_norm": 1e30}).fit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    dist.destroy_process_group()
