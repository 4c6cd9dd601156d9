"""On disk: a model (model.safetensors and config.json), and the state of a training that is under way (state.pt).

A file is written beside its place and moved there: after a crash, of the process or of the machine, it is the old one
or the new one.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from grpo_rm.dense_model import DenseModel
from grpo_rm.model import DenseConfig, Model, ModelConfig, VisionModel

State = dict[str, Any]

WEIGHTS, CONFIG, STATE = "model.safetensors", "config.json", "state.pt"
FORMER_STATE = "state.former.pt"  # of another training, or damaged: not used, and not lost


def save_model(model: VisionModel, directory: Path) -> None:
    """Write the model. Each file is complete or not there at all; equal weights give equal bytes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = json.dumps(asdict(model.config), indent=2) + "\n"
    write_file(directory / WEIGHTS, lambda path: save_file(weights, path))
    write_file(directory / CONFIG, lambda path: path.write_text(config, encoding="utf-8"))


def save_epoch(model: VisionModel, checkpoints: Path, *, epoch: int, kept: Sequence[int]) -> None:
    """Write the model as `last`, and where its epoch is kept, as `epoch-N`; remove those of other epochs."""
    save_model(model, checkpoints / "last")
    if epoch in kept:
        save_model(model, epoch_directory(checkpoints, epoch))
    for former in set(checkpoints.glob("epoch-*")) - {epoch_directory(checkpoints, one) for one in kept}:
        shutil.rmtree(former)


def epoch_directory(checkpoints: Path, epoch: int) -> Path:
    """Return where the model of an epoch is kept."""
    return checkpoints / f"epoch-{epoch}"


def load_config(directory: Path) -> ModelConfig | DenseConfig:
    """Read the config.json of a saved model.

    Raises:
        FileNotFoundError: There is no model in the directory.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"no model in {directory} ({CONFIG} is missing): run `dvc repro` or `dvc checkout` first"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    return DenseConfig(**content) if content.get("task") == "segmentation" else ModelConfig(**content)


def load_model(directory: Path) -> Model | DenseModel:
    """Read a saved model, on the CPU and in evaluation mode: of the task that its config.json says.

    Raises:
        FileNotFoundError: There is no model in the directory.
    """
    config = load_config(directory)
    model = DenseModel(config) if isinstance(config, DenseConfig) else Model(config)
    model.load_state_dict(load_file(directory / WEIGHTS))
    return model.eval()


def hash_model(model: VisionModel) -> str:
    """Return the SHA-256 of configuration and weights."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_state(state: State, directory: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the state of a training, tensors and plain values, and beside it what its result depends on."""
    content = {"fingerprint": json.dumps(fingerprint), "state": state}
    write_file(directory / STATE, lambda path: torch.save(content, path))


def find_state(directory: Path, fingerprint: Mapping[str, Any]) -> tuple[State | None, str]:
    """Return the state of a training to go on from, on the CPU; or None, and why the one that is there is of no use.

    One that was saved under another fingerprint, or is damaged, is put aside as `FORMER_STATE`: it is not lost.
    """
    if not has_state(directory):
        return None, ""
    try:
        return _load_state(directory, fingerprint), ""
    except ValueError as reason:
        (directory / STATE).replace(directory / FORMER_STATE)
        return None, str(reason)


def _load_state(directory: Path, fingerprint: Mapping[str, Any]) -> State:
    """Read the state; a ValueError is the reason why it cannot be used."""
    try:
        content = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{STATE} cannot be read") from error
    saved, current = json.loads(content["fingerprint"]), json.loads(json.dumps(fingerprint))
    if changed := [name for name in saved | current if saved.get(name) != current.get(name)]:
        raise ValueError(f"{', '.join(changed)} changed")
    state: State = content["state"]
    return state


def has_state(directory: Path) -> bool:
    """Whether a training is under way there: interrupted, or running."""
    return (directory / STATE).is_file()


def remove_state(directory: Path) -> None:
    """Remove the state; models stay."""
    (directory / STATE).unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a path beside `path`, and move what it wrote to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    write(partial)
    _to_disk(partial)
    partial.replace(path)
    _to_disk(path.parent)  # the new name


def _to_disk(path: Path) -> None:
    """Wait until a file or directory would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
