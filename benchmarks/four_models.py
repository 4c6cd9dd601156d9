"""The evaluation of four models that `benchmarks.evaluation` measures, by the product's own functions.

The images are made here: stripes of ten directions, a class each, some turned by chance, under noise. Learnable, but
no model is right on all of them.
"""

import contextlib
import cProfile
import io
import pstats
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from grpo_rm.checkpoint import save_model
from grpo_rm.evaluation.comparison import compare_metrics, correct
from grpo_rm.evaluation.measurement import measure
from grpo_rm.model import Model, ModelConfig
from pipelines.batches import PREPARED
from pipelines.measurements import test_sums
from pipelines.models import predictions_of
from pipelines.predictions import SPLITS, predict_splits, read_predictions
from pipelines.preparation.shards import ShardRow, write_shard

SIZES = {"val": 5_000, "test": 10_000}
CLASSES = [f"{18 * number} degrees" for number in range(10)]
SIDE, TRAINING_STEPS = 32, 100
NUM_MODELS = 4
PARTS = (  # of `measure`
    "linear_probe",
    "knn_predictions",
    "retrieve",
    "uniformity",
    "effective_rank",
    "fit_temperature",
)


def evaluate_models(num_train: int, *, rounds: int) -> list[dict[str, float]]:
    """Return the seconds of each step and of the whole, and of the parts of `measure`; making the models not included.

    `seconds` is the sum of predict (and write), (read and) measure, and compare.

    Args:
        num_train: Training images: the memory of the k-NN and the data of the linear probe.
        rounds: How often to evaluate.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        images, labels = make_splits({"train": num_train, **SIZES})
        for number in range(NUM_MODELS):
            save_model(train(images, labels, seed=number), Path(f"models/{number}"))
        del images
        return [evaluate() for _ in range(rounds)]


def evaluate() -> dict[str, float]:
    """Do what stage evaluate does, and take the time."""
    profile, sums = cProfile.Profile(), []
    start = time.perf_counter()
    predict_splits({str(n): Path(f"models/{n}") for n in range(NUM_MODELS)}, (), workers=0)
    seconds = {"predict": time.perf_counter() - start}
    start = time.perf_counter()
    for number in range(NUM_MODELS):
        _, said = read_predictions(predictions_of(str(number)))
        with profile:
            measurement = measure(*(said[split] for split in SPLITS), ks=[10, 20], knn_temperature=0.07)
        sums.append(test_sums(measurement, said["test"], groups=[""] * SIZES["test"]))
    measured = time.perf_counter()
    correct(compare_metrics(sums[:1], sums[1:2], num_resamples=10_000, seed=0))
    seconds |= {"measure": measured - start, "compare": time.perf_counter() - measured}
    return {"seconds": sum(seconds.values()), **seconds, **part_seconds(profile)}


def part_seconds(profile: cProfile.Profile) -> dict[str, float]:
    """Return the seconds of each of `PARTS`, what it calls included."""
    functions = pstats.Stats(profile).get_stats_profile().func_profiles
    return {f"measure/{name}": functions[name].cumtime for name in PARTS}


def make_splits(sizes: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the prepared images of all splits, and return images (N, H, W, 1) and labels (N,) of train."""
    for number, (split, size) in enumerate(sizes.items()):
        images, labels = make_images(size, seed=number)
        rows = [
            ShardRow(f"{split}/{row:06}.png", encode(image), int(label))
            for row, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        (PREPARED / split).mkdir(parents=True)
        write_shard(PREPARED / split / "00000.parquet", rows, classes=CLASSES, key="")
        if split == "train":
            train_images, train_labels = torch.from_numpy(images[..., None]), torch.from_numpy(labels)
    return train_images, train_labels


def make_images(size: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W) uint8 and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=size)
    angles = np.pi / len(CLASSES) * (labels + rng.normal(scale=0.35, size=size))
    waves, phases = rng.uniform(0.4, 1.2, size=size), rng.uniform(0, 2 * np.pi, size=size)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    images = np.empty((size, SIDE, SIDE), dtype=np.uint8)
    for row, (angle, wave, phase) in enumerate(zip(angles, waves, phases, strict=True)):
        stripes = np.sin(wave * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        noisy = 128 + 50 * stripes + rng.normal(scale=40, size=stripes.shape)
        images[row] = noisy.clip(0, 255)
    return images, labels


def encode(image: np.ndarray) -> bytes:
    """Return a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def train(images: torch.Tensor, labels: torch.Tensor, *, seed: int) -> Model:
    """Return an encoder trained so far that its embeddings are worth a probe."""
    torch.manual_seed(seed)
    model = Model(
        ModelConfig(
            encoder="test_resnet",
            channels=1,
            image_size=SIDE,
            crop_pct=1.0,
            interpolation="bicubic",
            mean=[0.5],
            std=[0.25],
            classes=CLASSES,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(TRAINING_STEPS):
        batch = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch])[1], labels[batch]).backward()
        optimizer.step()
    return model.eval()
