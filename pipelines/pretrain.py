"""Stage pretrain: a supervised model, from scratch or from timm's weights."""

from pathlib import Path

from grpo_rm.config import load_config, task_blocks
from pipelines.launch import launch_processes
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking


def main() -> None:
    """Train with cross-entropy from the encoder that params.yaml names."""
    config = load_config()
    check_tracking()
    launch_processes("pipelines.pretrain")

    from grpo_rm.datasets import read_dataset  # slow to import, so after what can fail at once
    from grpo_rm.devices import create_accelerator
    from grpo_rm.losses import cross_entropy_loss
    from pipelines.batches import PREPARED
    from pipelines.initial_model import create_initial_model
    from pipelines.training import train_stage

    train_stage(
        "pretrain",
        create_initial_model(config, read_dataset(PREPARED)),
        cross_entropy_loss,
        config.pretrain,
        config,
        accelerator=create_accelerator(config.pretrain.precision),
        parameters=config.model_dump(include={"seed", "encoder", "pretrain"} | task_blocks(config)),
        output=Path("models/pretrain"),
        curve=Path("reports/training/pretrain.csv"),
    )


if __name__ == "__main__":
    run_stage(main, description=__doc__)
