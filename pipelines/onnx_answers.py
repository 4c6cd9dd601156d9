"""An exported model in the place of one of torch: the same code runs it on whole splits. It runs on the CPU."""

from contextlib import closing
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from grpo_rm.datasets import Batches, Split
from grpo_rm.dense_datasets import DenseSplit
from grpo_rm.dense_inference import pixel_logits
from grpo_rm.dense_model import DenseModel
from grpo_rm.inference import Predictions, predict
from grpo_rm.transforms import Pixels, decode
from pipelines.batches import EVALUATION_BATCH
from pipelines.dense_predictions import DenseOutputs, join_outputs, outputs_of
from pipelines.onnx_model import OnnxModel

CPU = torch.device("cpu")


class AnsweringModule(nn.Module):
    """An ONNX file in the place of a `Model`: images (B, H, W, C) uint8 to embeddings (B, D) and logits (B, K)."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answer on the CPU."""
        embeddings, logits = self.model.answer(images.numpy())
        return torch.from_numpy(embeddings), torch.from_numpy(logits)


class DenseAnsweringModule(AnsweringModule):
    """An ONNX file in the place of a `DenseModel`: logits (B, K, h, w) at `stride`."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model)
        self.stride = int(model.preprocessing["stride"])
        self.config = model  # which knows the classes


def answer_split(model: OnnxModel, split: Split, *, workers: int) -> Predictions:
    """Run an exported model on images, without augmentation."""
    with closing(plain_batches(model, split, workers=workers)) as batches:
        return predict(AnsweringModule(model), batches.epoch(0), device=CPU)


def plain_batches(model: OnnxModel, split: Split, *, workers: int) -> Batches:
    """Return the batches of a split in order, as the file says that it is to be fed."""

    def view(image: Image.Image, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
        return model.view(image)

    channels = model.preprocessing["channels"]
    return Batches(split, view, channels=channels, batch_size=EVALUATION_BATCH, workers=workers, cache_gib=0)


def answer_dense_split(model: OnnxModel, split: DenseSplit, *, window: int | None) -> DenseOutputs:
    """Run an exported dense model on the images of a split, one by one."""
    print(f"predictions: {len(split.ids):,} images by an ONNX file", flush=True)
    return join_outputs(
        [
            outputs_of(answer_pixels(model, file, window=window), torch.from_numpy(mask.astype(np.int64))[None])
            for file, mask in ((split.files[row], split.masks[row]) for row in range(len(split.ids)))
        ]
    )


def answer_pixels(model: OnnxModel, file: bytes, *, window: int | None) -> Tensor:
    """Return the logits (1, K, H, W) of every pixel of an encoded image, as stage evaluate makes them.

    Raises:
        ValueError: The model does not run on the image.
    """
    pixels = np.asarray(decode(file, channels=model.preprocessing["channels"]))
    images = torch.from_numpy(pixels.reshape(1, *pixels.shape[:2], -1).copy())
    return pixel_logits(cast(DenseModel, DenseAnsweringModule(model)), images, window=window)
