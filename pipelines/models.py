"""The models of a run: what they are called, where they are, and where what they say is kept."""

from pathlib import Path

from grpo_rm.config import Config

CANDIDATE, CONTROL = "grpo_rm", "cross_entropy"
REFERENCE = "pretrain"  # what both arms start from
DIRECTORIES = {
    REFERENCE: Path("models/pretrain"),
    CANDIDATE: Path("models/finetune/grpo_rm"),
    CONTROL: Path("models/finetune/cross_entropy"),
}
PREDICTIONS = Path("reports/predictions")


def seed_name(arm: str, seed: int) -> str:
    """Return what the model of an arm that was trained with a further seed is called."""
    return f"seeds/{arm}-{seed}"


def all_directories(config: Config) -> dict[str, Path]:
    """Return the directory of each model, those of further seeds included."""
    further = {
        seed_name(arm, seed): Path("models/finetune/seeds") / arm / str(seed)
        for seed in config.finetune.seeds
        for arm in (CANDIDATE, CONTROL)
    }
    return DIRECTORIES | further


def weights_of(directory: Path) -> Path:
    """Return the weights of a model, by which it is known."""
    return directory / "model.safetensors"


def predictions_of(name: str) -> Path:
    """Return the file of what a model says of all images."""
    return PREDICTIONS / f"{name}.parquet"


def patches_of(name: str) -> Path:
    """Return the file of its embeddings of places in the images, where the task has them."""
    return PREDICTIONS / "patches" / f"{name}.parquet"


def corrupted_of(name: str) -> Path:
    """Return the file of which corrupted test images it classifies rightly."""
    return PREDICTIONS / "robustness" / f"{name}.parquet"
