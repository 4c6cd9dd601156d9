"""What the server is measured with: exported encoders and images, both made by code.

An encoder's speed does not depend on its weights, so these are random. The images have the spectrum of photographs,
amplitude 1 / frequency, so that a JPEG of them is as long, and takes as long to decode, as a photograph's.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NUM_IMAGES = 16  # that differ, sent in turn
SHAPES = [(500, 375), (375, 500), (500, 333), (500, 400)]  # as those of ImageNet


@dataclass(frozen=True)
class Subject:
    """An encoder and the images it gets.

    Attributes:
        encoder: Name of a timm model.
        size: Side of its input in pixels.
        num_classes: Of the head.
        kind: Of the image files.
    """

    encoder: str
    size: int
    num_classes: int
    kind: str


SUBJECTS = [
    Subject("vit_small_patch16_224", 224, 1000, "JPEG"),
    Subject("vit_tiny_patch16_224", 224, 1000, "JPEG"),
    Subject("test_resnet", 32, 10, "PNG"),
]


def export(subject: Subject, path: Path, *, seed: int = 0) -> None:
    """Write the encoder as stage export does, and its self-test beside it."""
    import torch

    from grpo_rm.config import Export
    from grpo_rm.export import export_onnx
    from grpo_rm.model import Model, ModelConfig
    from pipelines.export import SELF_TEST_IMAGES, write_self_test
    from pipelines.onnx_model import SELF_TEST

    torch.manual_seed(seed)
    config = ModelConfig(
        encoder=subject.encoder,
        channels=3,
        image_size=subject.size,
        crop_pct=0.9 if subject.kind == "JPEG" else 1.0,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.5] * 3,
        classes=[f"class {number}" for number in range(subject.num_classes)],
    )
    model = Model(config)
    metadata = {
        "grpo_rm.task": config.task,
        "grpo_rm.encoder": config.encoder,
        "grpo_rm.classes": json.dumps(config.classes),
        "grpo_rm.preprocessing": json.dumps(
            {name: getattr(config, name) for name in ("image_size", "channels", "crop_pct", "interpolation")}
        ),
        "grpo_rm.model_sha256": "0" * 64,
        "grpo_rm.training": json.dumps({"stage": "benchmark", "data": "random weights"}),
    }
    export_onnx(model, path, opset=20, metadata=metadata)
    images = np.random.default_rng(seed).integers(
        0, 256, (SELF_TEST_IMAGES, subject.size, subject.size, 3), dtype=np.uint8
    )
    write_self_test(
        model, images, path.with_name(SELF_TEST), Export(opset=20, max_abs_error=1e-4, min_cosine=0.9999, int8=False)
    )


def image_files(subject: Subject, *, seed: int = 0) -> list[bytes]:
    """Return `NUM_IMAGES` image files: photographs as JPEG, or small PNGs of the input's size."""
    generator = np.random.default_rng(seed)
    shapes = SHAPES if subject.kind == "JPEG" else [(subject.size, subject.size)]
    files = []
    for number in range(NUM_IMAGES):
        buffer = io.BytesIO()
        _photograph(generator, *shapes[number % len(shapes)]).save(buffer, subject.kind, quality=90)
        files.append(buffer.getvalue())
    return files


def _photograph(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return noise with the amplitude 1 / frequency; most of it is the same in the three channels, as in nature."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    gray, *colors = (
        np.fft.irfft2(np.fft.rfft2(generator.standard_normal((height, width))) / frequency, (height, width))
        for _ in range(4)
    )
    pixels = np.stack([gray + 0.3 * color for color in colors], axis=2)
    return Image.fromarray(np.clip(127 + 55 * pixels / pixels.std(), 0, 255).astype(np.uint8))
