"""A model on disk: model.safetensors and config.json."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from grpo_rm.model import Model, ModelConfig

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(model: Model, directory: Path) -> None:
    """Write the model. Each file is complete or not there at all; equal weights give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / f"{WEIGHTS}.tmp")
    (directory / f"{WEIGHTS}.tmp").replace(directory / WEIGHTS)
    (directory / f"{CONFIG}.tmp").write_text(json.dumps(asdict(model.config), indent=2) + "\n", encoding="utf-8")
    (directory / f"{CONFIG}.tmp").replace(directory / CONFIG)


def load_config(directory: Path) -> ModelConfig:
    """Read the config.json of a saved model.

    Raises:
        FileNotFoundError: There is no model in the directory.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"no model in {directory} ({CONFIG} is missing): run `dvc repro` or `dvc checkout` first"
        )
    return ModelConfig(**json.loads(path.read_text(encoding="utf-8")))


def load_model(directory: Path) -> Model:
    """Read a saved model, on the CPU and in evaluation mode.

    Raises:
        FileNotFoundError: There is no model in the directory.
    """
    model = Model(load_config(directory))
    model.load_state_dict(load_file(directory / WEIGHTS))
    return model.eval()
