"""Dense models over a whole split: what stage evaluate keeps of each image, in the order of the split."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from grpo_rm.config import Config
from grpo_rm.dense_inference import pixel_logits
from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_sites import site_targets, upsample
from grpo_rm.inference import Predictions
from pipelines.batches import dense_evaluation_batches
from pipelines.dense_predictions import DenseOutputs, join_outputs, outputs_of
from pipelines.patches import Rows, middle_window, places_per_image, sample_places, take_places

Said = tuple[DenseOutputs | None, list[str], Predictions]  # of pixels; the image of each place, and of places


@torch.inference_mode()
def answer_split(
    models: Mapping[str, DenseModel],
    split: str,
    ids: Sequence[str],
    config: Config,
    *,
    device: torch.device,
    has_pixels: bool,
) -> dict[str, Said]:
    """Return what each model says of a split.

    Args:
        models: By name, on the device, in evaluation mode; all of one kind.
        split: Its name.
        ids: Of its images.
        config: All of it.
        device: Where the models are.
        has_pixels: Whether to predict every pixel; else only places are embedded.
    """
    first, counts = next(iter(models.values())), places_per_image(ids, split, seed=config.seed)
    pixels: dict[str, list[DenseOutputs]] = defaultdict(list)
    places: dict[str, list[Predictions]] = defaultdict(list)
    place_rows: list[Rows] = []
    with closing(dense_evaluation_batches(first.config, split, workers=config.loader.workers)) as batches:
        rows, order = iter(batches.rows), np.argsort(batches.rows)
        for images, masks in batches.epoch(0):
            members = {row: ids[row] for row in itertools.islice(rows, len(images))}
            targets = site_targets(middle_window(masks, config.segmentation.window), first.stride)
            taken = sample_places(targets, members, counts, seed=config.seed)
            place_rows += [np.full(len(taken_of), row) for row, taken_of in zip(members, taken, strict=True)]
            for name, model in models.items():
                said, whole = _run(model, images.to(device), config.segmentation.window, has_pixels=has_pixels)
                places[name].append(take_places(*said, targets, taken))
                if whole is not None:
                    pixels[name].append(outputs_of(whole, masks))
    image_rows = np.concatenate(place_rows)
    in_order = np.argsort(image_rows, kind="stable")
    place_ids = [ids[row] for row in image_rows[in_order]]
    return {
        name: (join_outputs(pixels[name])[order] if has_pixels else None, place_ids, _join(places[name], in_order))
        for name in models
    }


def _run(
    model: DenseModel, images: Tensor, window: int | None, *, has_pixels: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Return embedding and logits at the stride, of the middle window, and the logits of all pixels."""
    middle = middle_window(images, window)
    embedding, logits = model(middle)
    if not has_pixels:
        return (embedding, logits), None
    if middle is images:  # the model need not run twice
        return (embedding, logits), upsample(logits.float(), (images.shape[1], images.shape[2]), model.stride)
    return (embedding, logits), pixel_logits(model, images, window=window)


def _join(parts: Sequence[Predictions], order: Rows) -> Predictions:
    return Predictions(
        np.concatenate([part.embeddings for part in parts])[order],
        np.concatenate([part.logits for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
    )
