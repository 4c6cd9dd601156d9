"""What the report shows of single images: mistakes, confusions, the map of the embeddings, nearest training images."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_rm.datasets import read_split
from grpo_rm.evaluation.robustness import choose_images
from pipelines.batches import PREPARED
from pipelines.predictions import Outputs
from pipelines.reporting.embedding_map import MAX_IMAGES, map_points
from pipelines.reporting.examples import confused_images, worst_mistakes
from pipelines.reporting.neighbors import NUM_IMAGES, find_neighborhoods


def report_pictures(
    outputs: Mapping[str, Outputs], classes: Sequence[str], cells: Sequence[tuple[str, str]], *, seed: int
) -> dict[str, Any]:
    """Return the arguments of `render_page` that are about single images.

    Args:
        outputs: what the model before fine-tuning and then the one after it say, by name.
        classes: K class names.
        cells: the confusions (actual class, predicted class) to be shown, of the model after fine-tuning.
        seed: chooses the images of the map and the ones whose neighbors are shown.
    """
    train, test = read_split(PREPARED, "train"), read_split(PREPARED, "test")
    after = list(outputs.values())[-1]["test"]
    mapped = choose_images(test.ids, limit=MAX_IMAGES, seed=seed)
    looked_up = choose_images(test.ids, limit=NUM_IMAGES, seed=seed)
    pairs = {name: (splits["train"].embeddings, splits["test"].embeddings) for name, splits in outputs.items()}
    return {
        "mistakes": worst_mistakes(after, test, classes),
        "confused": confused_images(after, test, classes, cells),
        "embedding_map": map_points(
            {name: of_test[mapped] for name, (_, of_test) in pairs.items()},
            [test.ids[row] for row in mapped],
            after.labels[mapped].tolist(),
            classes,
            seed=seed,
        ),
        "neighborhoods": find_neighborhoods(pairs, train, test, looked_up, classes),
    }
