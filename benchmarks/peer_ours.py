"""A run of this library, as the peers are run: `python -m benchmarks.peer_ours SETTINGS`.

The images are PNG files, as stage prepare leaves them; `Batches` decodes each of them once.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grpo_rm.datasets import Batches, Split
from grpo_rm.devices import create_accelerator
from grpo_rm.losses import cross_entropy_loss
from grpo_rm.model import Model, ModelConfig
from grpo_rm.recipe import Recipe
from grpo_rm.trainer import Trainer
from grpo_rm.transforms import evaluation_view, training_view

SIZE = 28


def main(settings):
    """Train; print a line when an epoch is validated."""
    torch.manual_seed(settings["seed"])
    classes = [f"class {number}" for number in range(10)]
    model = Model(ModelConfig(settings["model"], 1, SIZE, 1.0, "bilinear", [0.286], [0.353], classes))
    options = {"channels": 1, "workers": settings["workers"], "seed": settings["seed"]}
    train, test = (read(Path(settings["data"]) / f"{name}.npz") for name in ("train", "test"))
    trainer = Trainer(
        model,
        cross_entropy_loss,
        Batches(train, flipped, batch_size=settings["batch_size"], is_training=True, **options),
        Batches(test, plain, batch_size=256, **options),
        Recipe(
            epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            clip_grad_norm=settings["clip_grad_norm"],
            channels_last=True,
        ),
        seed=settings["seed"],
        accelerator=create_accelerator(cpu=True),
        checkpoints=Path(settings["output"]),
        title="ours",
        fingerprint={},
        on_epoch=lambda step, metrics: print(f"epoch {metrics['val_accuracy']}", flush=True),  # noqa: ARG005
    )
    trainer.fit()


def read(path):
    """Return the images of an .npz file as a split of PNG files."""
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return Split([str(number) for number in range(len(labels))], [png(image) for image in images], labels)


def png(pixels):
    """Return an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def flipped(image, rng):
    """The whole image, mirrored half of the time."""
    return training_view(image, size=SIZE, min_crop=1.0, flip=True, interpolation="bilinear", rng=rng)


def plain(image, rng):  # noqa: ARG001
    """The whole image."""
    return evaluation_view(image, size=SIZE, crop_pct=1.0, interpolation="bilinear")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
