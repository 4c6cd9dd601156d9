"""Stages finetune@grpo_rm and finetune@cross_entropy: the same training, data order and budget; another loss."""

import sys
from pathlib import Path

from grpo_rm.config import load_config
from pipelines.launch import launch_processes
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking

ARMS = ("grpo_rm", "cross_entropy")
INITIAL_MODEL = Path("models/pretrain")


def main() -> None:
    """Fine-tune the pretrained model with the loss named on the command line."""
    arm = sys.argv[1] if len(sys.argv) == 2 else ""
    if arm not in ARMS:
        raise ValueError(f"got {' '.join(sys.argv[1:])!r}, expected `python -m pipelines.finetune {'|'.join(ARMS)}`")
    config = load_config()
    check_tracking()
    launch_processes("pipelines.finetune", arm)

    from grpo_rm.checkpoint import WEIGHTS, load_model  # slow to import, so after what can fail at once
    from grpo_rm.devices import create_accelerator
    from grpo_rm.losses import cross_entropy_loss
    from pipelines.lineage import sha256
    from pipelines.objective import create_loss, reward_files
    from pipelines.training import train_stage

    model, accelerator = load_model(INITIAL_MODEL), create_accelerator(config.finetune.precision)
    objective = config.objective if arm == "grpo_rm" else None
    blocks = {"seed", "finetune"} | ({"objective"} if objective else set())
    train_stage(
        f"finetune@{arm}",
        model,
        create_loss(objective, model, accelerator) if objective else cross_entropy_loss,
        config.finetune,
        config,
        accelerator=accelerator,
        parameters={"arm": arm} | config.model_dump(include=blocks),
        output=Path("models/finetune") / arm,
        objective=objective,
        initial_model=sha256(INITIAL_MODEL / WEIGHTS),
        reward_files=reward_files(objective) if objective else {},
    )


if __name__ == "__main__":
    run_stage(main)
