"""Stage pretrain: a supervised model, from scratch or from timm's weights."""

from pathlib import Path

from grpo_rm.config import load_config
from pipelines.launch import launch_processes
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking


def main() -> None:
    """Train with cross-entropy from the encoder that params.yaml names."""
    config = load_config()
    if config.task == "segmentation":
        raise ValueError(
            "task is segmentation, of which there are the stages prepare and validate; training of segmentation is not "
            "there yet: run `dvc repro validate`, or set task to classification"
        )
    check_tracking()
    launch_processes("pipelines.pretrain")

    import torch  # slow to import, so after what can fail at once

    from grpo_rm.datasets import read_dataset
    from grpo_rm.devices import create_accelerator
    from grpo_rm.encoder import create_encoder, pretrained_normalization
    from grpo_rm.losses import cross_entropy_loss
    from grpo_rm.model import Model, ModelConfig
    from pipelines.batches import PREPARED
    from pipelines.training import train_stage

    dataset, encoder = read_dataset(PREPARED), config.encoder
    torch.manual_seed(config.seed)
    network = create_encoder(
        encoder.name,
        pretrained=encoder.pretrained,
        channels=encoder.channels,
        image_size=encoder.image_size,
        args=encoder.args,
    )
    mean, std = pretrained_normalization(network) if encoder.pretrained else (dataset["mean"], dataset["std"])
    model = Model(
        ModelConfig(
            encoder=encoder.name,
            channels=encoder.channels,
            image_size=encoder.image_size,
            crop_pct=encoder.crop_pct,
            interpolation=encoder.interpolation,
            mean=to_channels(mean, encoder.channels),
            std=to_channels(std, encoder.channels),
            classes=dataset["classes"],
            encoder_args=encoder.args,
            head=encoder.head,
            temperature=encoder.temperature,
        ),
        encoder=network,
    )
    blocks = config.model_dump(include={"seed", "encoder", "pretrain"})
    train_stage(
        "pretrain",
        model,
        cross_entropy_loss,
        config.pretrain,
        config,
        accelerator=create_accelerator(config.pretrain.precision),
        parameters=blocks,
        output=Path("models/pretrain"),
        curve=Path("reports/training/pretrain.csv"),
    )


def to_channels(statistics: list[float], channels: int) -> list[float]:
    """Return a value per channel of the model: for gray images the mean over the colors."""
    return statistics if channels == 3 else [sum(statistics) / len(statistics)]


if __name__ == "__main__":
    run_stage(main, description=__doc__)
