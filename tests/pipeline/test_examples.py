"""Images of the report: the right ones, in the right order, small, and of the right pixels."""

import base64
import io

import numpy as np
from PIL import Image

from grpo_rm.datasets import Split
from grpo_rm.inference import Predictions
from pipelines.reporting.examples import confused_images, worst_mistakes
from pipelines.reporting.thumbnails import SIDE, thumbnail

CLASSES = ["cat", "dog", "owl"]
LABELS = np.array([0, 0, 1, 2, 0])
LOGITS = np.log([[0.9, 0.1, 1e-9], [0.3, 0.7, 1e-9], [0.8, 0.2, 1e-9], [0.2, 0.2, 0.6], [0.1, 0.9, 1e-9]])
TEST = Predictions(np.zeros((5, 2), np.float32), LOGITS.astype(np.float32), LABELS)


def image_file(gray: int, size: tuple[int, int] = (8, 8)) -> bytes:
    encoded = io.BytesIO()
    Image.new("L", size, gray).save(encoded, format="PNG")
    return encoded.getvalue()


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


SPLIT = Split([f"image {row}" for row in range(5)], [image_file(40 * row) for row in range(5)], LABELS)


def test_worst_mistakes_are_those_the_model_was_surest_of() -> None:
    mistakes = worst_mistakes(TEST, SPLIT, CLASSES)
    assert [(m.id, m.actual, m.predicted, round(m.confidence, 6)) for m in mistakes] == [
        ("image 4", "cat", "dog", 0.9),
        ("image 2", "dog", "cat", 0.8),
        ("image 1", "cat", "dog", 0.7),
    ]
    assert [opened(mistake.image).convert("L").getpixel((3, 3)) for mistake in mistakes] == [160, 80, 40]


def test_a_model_without_mistakes_has_none() -> None:
    perfect = Predictions(TEST.embeddings, np.eye(3, dtype=np.float32)[LABELS], LABELS)
    assert worst_mistakes(perfect, SPLIT, CLASSES) == []


def test_images_of_a_confusion() -> None:
    images = confused_images(TEST, SPLIT, CLASSES, [("cat", "dog"), ("dog", "cat"), ("owl", "cat")])
    ids = {cell: [example.id for example in examples] for cell, examples in images.items()}
    assert ids == {("cat", "dog"): ["image 4", "image 1"], ("dog", "cat"): ["image 2"], ("owl", "cat"): []}


def test_a_small_image_keeps_its_pixels_and_a_large_one_shrinks() -> None:
    small = thumbnail(image_file(77, (8, 5)))
    assert small.startswith("data:image/png;base64,") and opened(small).size == (8, 5)
    assert opened(small).convert("L").getpixel((7, 4)) == 77
    assert opened(thumbnail(image_file(77, (640, 320)))).size == (SIDE, SIDE // 2)


def test_a_large_noisy_image_costs_a_few_kilobytes() -> None:
    encoded = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(encoded, format="PNG")
    assert thumbnail(encoded.getvalue()).startswith("data:image/jpeg;base64,")
    assert len(thumbnail(encoded.getvalue())) < 8000
