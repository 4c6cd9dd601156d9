"""Stages finetune@grpo_rm and finetune@cross_entropy: the same training, data order and budget; another loss.

Stages grpo_rm_seed@SEED and cross_entropy_seed@SEED: the same two with a further seed.
"""

import sys
from pathlib import Path

from grpo_rm.config import Config, load_config, task_blocks
from pipelines.launch import launch_processes
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking

ARMS = ("grpo_rm", "cross_entropy")
INITIAL_MODEL = Path("models/pretrain")


def main() -> None:
    """Fine-tune the pretrained model with the loss, and the further seed if any, named on the command line."""
    arm, *seeds = sys.argv[1:] or [""]
    if arm not in ARMS or len(seeds) > 1:
        usage = f"python -m pipelines.finetune {'|'.join(ARMS)} [SEED]"
        raise ValueError(f"got {' '.join(sys.argv[1:])!r}, expected `{usage}`, SEED one of finetune.seeds")
    config = load_config()
    if seeds:
        config = config.model_copy(update={"seed": further_seed(seeds[0], config)})
    stage, output, curve = name_outputs(arm, config.seed if seeds else None)
    check_tracking()
    launch_processes("pipelines.finetune", arm, *seeds)

    from grpo_rm.checkpoint import WEIGHTS, load_model  # slow to import, so after what can fail at once
    from grpo_rm.devices import create_accelerator
    from grpo_rm.losses import cross_entropy_loss
    from pipelines.lineage import sha256
    from pipelines.objective import create_loss, reward_files
    from pipelines.training import train_stage

    model, accelerator = load_model(INITIAL_MODEL), create_accelerator(config.finetune.precision)
    objective = config.objective if arm == "grpo_rm" else None
    blocks = {"seed", "finetune"} | task_blocks(config) | ({"objective"} if objective else set())
    train_stage(
        stage,
        model,
        create_loss(objective, model, accelerator) if objective else cross_entropy_loss,
        config.finetune,
        config,
        accelerator=accelerator,
        parameters={"arm": arm} | config.model_dump(include=blocks, exclude={"finetune": {"seeds"}}),
        output=output,
        curve=curve,
        objective=objective,
        initial_model=sha256(INITIAL_MODEL / WEIGHTS),
        reward_files=reward_files(objective) if objective else {},
    )


def further_seed(text: str, config: Config) -> int:
    """Return the seed of the command line.

    Raises:
        ValueError: It is not in finetune.seeds.
    """
    seeds = config.finetune.seeds
    if text not in [str(seed) for seed in seeds]:
        raise ValueError(
            f"got seed {text!r}, expected one of finetune.seeds in params.yaml, {seeds}: add it there; without a seed "
            f"on the command line the training has `seed`, {config.seed}"
        )
    return int(text)


def name_outputs(arm: str, seed: int | None) -> tuple[str, Path, Path]:
    """Return the stage, the directory of its model and the file of its learning curve."""
    models, curves = Path("models/finetune"), Path("reports/training")
    if seed is None:
        return f"finetune@{arm}", models / arm, curves / f"{arm}.csv"
    return f"{arm}_seed@{seed}", models / "seeds" / arm / str(seed), curves / "seeds" / f"{arm}-{seed}.csv"


if __name__ == "__main__":
    run_stage(main)
