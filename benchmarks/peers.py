"""The same epochs by this library, timm's train script, Hugging Face's Trainer and Lightning, on Fashion-MNIST.

Each peer has an environment of its own, kept in ~/.cache/grpo-rm-bench, and is run twice: as its documentation does it,
and tuned (channels_last, fused AdamW), as this library is. With each the number of data workers is the best of three.
An epoch is training, validation and a checkpoint; the first one is not counted. TIMM_SOURCE is a checkout of timm, or a
git URL, for its train script is in no package.
"""

import hashlib
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline import ROOT

DATA = ROOT.parent / "shared/data/fashion_mnist"
CACHE = Path.home() / ".cache/grpo-rm-bench"
TIMM = "https://github.com/huggingface/pytorch-image-models"
TRAIN_IMAGES, TEST_IMAGES = 5_000, 2_000
ROUNDS, EPOCHS, TRIAL_EPOCHS = 3, 3, 2
WORKERS = (0, 1, 2)
STYLES = ("documented", "tuned")
SETTINGS = {
    "model": "test_resnet",
    "batch_size": 128,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "clip_grad_norm": 1.0,
    "seed": 0,
}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A program that trains and prints a line at the end of an epoch.

    Attributes:
        command: Of settings.
        versions: Of what is in its environment.
        workers: Numbers of data workers that it can have.
        epoch_end: How the line begins.
        accuracy: Finds the accuracy in a line; the last one counts.
        unit: Of the accuracy.
    """

    command: Callable[[Settings], list[str]]
    versions: dict[str, str]
    workers: Sequence[int] = WORKERS
    epoch_end: str = "epoch "
    accuracy: str = r"^epoch ([\d.]+)"
    unit: float = 1.0


def measure() -> dict[str, Any]:
    """Return seconds per epoch of all, and what could not be measured."""
    if not DATA.is_dir():
        return {"skipped": f"no Fashion-MNIST in {DATA}"}
    contestants, workers, missing = {"ours": ours()}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        workers["ours"] = best_workers(contestants["ours"], Path(folder))
        for name, create in {"timm": timm, "transformers": transformers, "lightning": lightning}.items():
            try:
                one = create()
                workers[name] = best_workers(one, Path(folder))
                contestants[name] = one
            except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
                missing[name] = reason(error)
        rounds = [measure_round(contestants, workers, Path(folder)) for _ in range(ROUNDS)]
    return {
        "settings": SETTINGS | {"train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES, "epochs": EPOCHS},
        "versions": {name: one.versions for name, one in contestants.items()},
        "missing": missing,
        "workers": workers,
        "rounds": rounds,
        "over": {style: over(rounds, style) for style in STYLES} if len(contestants) > 1 else {},
    }


def over(rounds: Sequence[dict[str, Any]], style: str) -> dict[str, Any]:
    """Return our seconds over those of the peer whose median is the least, round by round."""
    names = [name for name in rounds[0] if name.endswith(style)]
    fastest = min(names, key=lambda name: statistics.median(one[name]["seconds"] for one in rounds))
    ratios = [one["ours"]["seconds"] / one[fastest]["seconds"] for one in rounds]
    return {"fastest": fastest, "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def measure_round(contestants: dict[str, Contestant], workers: dict[str, int], folder: Path) -> dict[str, Any]:
    """Return seconds per epoch and accuracy of everybody, one after the other."""
    runs = [(name, style) for style in STYLES for name in contestants if name != "ours"]
    result = {"ours": run(contestants["ours"], folder, workers=workers["ours"], epochs=EPOCHS, style="tuned")}
    for name, style in runs:
        result[f"{name} {style}"] = run(contestants[name], folder, workers=workers[name], epochs=EPOCHS, style=style)
    return result


def best_workers(one: Contestant, folder: Path) -> int:
    """Return the number of workers with which an epoch is shortest."""
    return min(
        one.workers,
        key=lambda count: run(one, folder, workers=count, epochs=TRIAL_EPOCHS, style="tuned")["seconds"],
    )


def run(one: Contestant, folder: Path, *, workers: int, epochs: int, style: str) -> dict[str, float]:
    """Return seconds per epoch after the first, and the accuracy at the end."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    settings = SETTINGS | {"data": str(folder), "output": str(output), "workers": workers, "epochs": epochs}
    command = one.command(settings | {"style": style})
    print(f"{' '.join(command[1:3])[-40:]}, {style}, {workers} workers, {epochs} epochs", file=sys.stderr)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    ends, lines = [], []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(one.epoch_end):
                ends.append(time.perf_counter())
    if process.returncode or len(ends) != epochs:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines[-30:])}")
    accuracy = re.findall(one.accuracy, "".join(lines), re.MULTILINE)[-1]
    return {"seconds": (ends[-1] - ends[0]) / (epochs - 1), "accuracy": float(accuracy) * one.unit}


def ours() -> Contestant:
    """This library, in this environment."""
    command = [sys.executable, "-m", "benchmarks.peer_ours"]
    return Contestant(lambda settings: [*command, json.dumps(settings)], {"torch": version("torch")})


def transformers() -> Contestant:
    """Hugging Face's Trainer."""
    packages = ["transformers==5.23.0", same("accelerate"), same("timm")]
    python, versions = create_environment("transformers", packages)
    script = str(ROOT / "benchmarks/peer_transformers.py")
    return Contestant(lambda settings: [python, script, json.dumps(settings)], versions)


def lightning() -> Contestant:
    """Lightning."""
    python, versions = create_environment("lightning", ["lightning==2.6.6", same("timm")])
    script = str(ROOT / "benchmarks/peer_lightning.py")
    return Contestant(lambda settings: [python, script, json.dumps(settings)], versions)


def timm() -> Contestant:
    """timm's train.py. Its loader wants a worker."""
    source = find_timm()
    packages = [same(name) for name in ("pyyaml", "huggingface-hub", "safetensors")]
    python, versions = create_environment("timm", packages)
    commit = git("rev-parse", "--short", "HEAD", cwd=source)
    return Contestant(
        lambda settings: [python, str(source / "train.py"), *timm_options(settings)],
        versions | {"timm": f"{source_version(source)}, commit {commit}"},
        workers=WORKERS[1:],
        epoch_end="Current checkpoints:",
        accuracy=r"Acc@1:.*?\( *([\d.]+)\)",
        unit=0.01,
    )


def source_version(source: Path) -> str:
    """Return the version that a checkout of timm says it is."""
    return (source / "timm/version.py").read_text(encoding="utf-8").split("'")[1]


def timm_options(settings: Settings) -> list[str]:
    """Return the command line of train.py: whole images, mirrored half of the time, the data in torchvision's form."""
    data = f"--dataset torch/fashion_mnist --data-dir {settings['data']} --val-split validation --input-img-mode L"
    model = f"--model {settings['model']} --in-chans 1 --img-size 28 --num-classes 10 --mean 0.286 --std 0.353"
    view = "--crop-pct 1 --scale 1 1 --ratio 1 1 --hflip 0.5 --color-jitter 0 --interpolation bilinear"
    loop = f"--epochs {settings['epochs']} -b {settings['batch_size']} -vb 256 -j {settings['workers']} --device cpu"
    optimizer = f"--opt adamw --lr {settings['learning_rate']} --weight-decay {settings['weight_decay']}"
    schedule = "--sched cosine --sched-on-updates --warmup-epochs 0 --min-lr 0 --smoothing 0"
    rest = f"--clip-grad {settings['clip_grad_norm']} --checkpoint-hist 1 --seed {settings['seed']}"
    tuned = "--channels-last --opt-kwargs fused=True" if settings["style"] == "tuned" else ""
    words = " ".join([data, model, view, "--train-interpolation bilinear", loop, optimizer, schedule, rest, tuned])
    return [*words.split(), "--output", settings["output"]]


def find_timm() -> Path:
    """Return a checkout of timm.

    Raises:
        FileNotFoundError: The one that is named has no train.py.
        CalledProcessError: It cannot be cloned.
    """
    source = os.environ.get("TIMM_SOURCE", TIMM)
    folder = Path(source)
    if not folder.is_dir() or not (folder / "timm").is_dir():  # a URL, or the path of a bare repository
        folder = CACHE / f"timm-{digest(source)}"
        if not (folder / "train.py").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            git("clone", "--quiet", "--depth", "1", source, str(folder), cwd=ROOT)
    if not (folder / "train.py").is_file():
        raise FileNotFoundError(f"no train.py in {folder}: TIMM_SOURCE is to be a checkout of {TIMM}")
    return folder


def create_environment(name: str, packages: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the Python of an environment with our torch and these packages, and their versions."""
    packages = [same("torch"), same("torchvision"), same("numpy"), *packages]
    folder = CACHE / f"{name}-{digest(' '.join(packages))}"
    python = str(folder / "bin/python")
    uv = ROOT / ".uv/bin/uv"
    tool = str(uv) if uv.is_file() else "uv"
    if not (folder / "ready").is_file():
        call([tool, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        call([tool, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *packages])
        (folder / "ready").touch()
    names = {package.partition("==")[0] for package in packages}
    lines = call([tool, "pip", "freeze", "--quiet", "--python", python]).splitlines()
    found = dict(line.split("==") for line in lines if "==" in line)
    return python, {package: found[package] for package in sorted(names & set(found))}


def write_data(folder: Path) -> None:
    """Write the first images of both sets: as .npz files, and as torchvision wants them."""
    raw = folder / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, prefix, count in (("train", "train", TRAIN_IMAGES), ("test", "t10k", TEST_IMAGES)):
        with np.load(DATA / f"{name}.npz") as arrays:
            images, labels = arrays["images"][:count], arrays["labels"][:count]
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
        head = struct.pack(">4I", 0x803, *images.shape)  # the IDX format: type and shape, big-endian
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, count) + labels.astype(np.uint8).tobytes()
        )


def reason(error: Exception) -> str:
    """Return in a line why a peer cannot run."""
    said = (error.stderr or "").strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return (said or str(error).strip()).splitlines()[-1]


def same(package: str) -> str:
    """Return the requirement of the version that is installed here; without a local part, which no index has."""
    return f"{package}=={version(package).partition('+')[0]}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def git(*arguments: str, cwd: Path) -> str:
    return call(["git", *arguments], cwd=cwd).strip()


def call(command: Sequence[str], *, cwd: Path = ROOT) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
