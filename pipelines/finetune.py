"""Stages finetune@grpo_rm and finetune@cross_entropy: the same training, data order and budget; another loss."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_rm.config import Config, load_config
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking

if TYPE_CHECKING:
    from grpo_rm.trainer import Loss

ARMS = ("grpo_rm", "cross_entropy")
INITIAL_MODEL = Path("models/pretrain")


def main() -> None:
    """Fine-tune the pretrained model with the loss named on the command line."""
    arm = sys.argv[1] if len(sys.argv) == 2 else ""
    if arm not in ARMS:
        raise ValueError(f"got {' '.join(sys.argv[1:])!r}, expected `python -m pipelines.finetune {'|'.join(ARMS)}`")
    config = load_config()
    check_tracking()

    from grpo_rm.checkpoint import WEIGHTS, load_model  # slow to import, so after what can fail at once
    from pipelines.lineage import sha256
    from pipelines.training import train_stage

    blocks = {"seed", "finetune"} | ({"objective"} if arm == "grpo_rm" else set())
    train_stage(
        f"finetune@{arm}",
        load_model(INITIAL_MODEL),
        loss_of(arm, config),
        config.finetune,
        config,
        parameters={"arm": arm} | config.model_dump(include=blocks),
        output=Path("models/finetune") / arm,
        initial_model=sha256(INITIAL_MODEL / WEIGHTS),
    )


def loss_of(arm: str, config: Config) -> "Loss":
    """Return the loss of an arm."""
    from grpo_rm.losses import cross_entropy_loss, grpo_rm_loss

    if arm == "cross_entropy":
        return cross_entropy_loss
    settings = config.objective.model_dump()
    return partial(grpo_rm_loss, reward_weights=settings.pop("rewards"), **settings)


if __name__ == "__main__":
    run_stage(main)
