"""The nearest training images: the right ones in the right order, with their own pixels and class."""

import base64
import io

import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from grpo_rm.datasets import Split
from pipelines.reporting.neighbors import NUM_NEIGHBORS, find_neighborhoods, nearest

RNG = np.random.default_rng(0)


def make_split(prefix: str, size: int) -> Split:
    files = []
    for row in range(size):
        encoded = io.BytesIO()
        Image.new("L", (8, 8), row).save(encoded, format="PNG")
        files.append(encoded.getvalue())
    return Split([f"{prefix} {row}" for row in range(size)], files, np.arange(size) % 3)


def test_nearest_agrees_with_scikit_learn() -> None:
    gallery, queries = (RNG.normal(size=(size, 16)).astype(np.float32) for size in (100, 7))
    distances, expected = NearestNeighbors(n_neighbors=NUM_NEIGHBORS, metric="cosine").fit(gallery).kneighbors(queries)
    places, similarities = nearest(gallery, queries)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)


def test_fewer_training_images_than_neighbors_and_zero_embeddings() -> None:
    places, similarities = nearest(np.zeros((3, 4), np.float32), np.ones((2, 4), np.float32))
    assert places.tolist() == [[0, 1, 2]] * 2 and np.array_equal(similarities, np.zeros((2, 3)))


def test_neighborhoods_are_of_the_rows_asked_for() -> None:
    train, test = make_split("train", 20), make_split("test", 4)
    vectors = np.stack([np.cos(np.arange(20) / 20), np.sin(np.arange(20) / 20)], axis=1).astype(np.float32)
    # The model "before" sees test image i as training image 2 i, the model "after" as training image 3 i.
    embeddings = {"before": (vectors, vectors[[0, 2, 4, 6]]), "after": (vectors, vectors[[0, 3, 6, 9]])}
    found = find_neighborhoods(embeddings, train, test, [3, 1], ["a", "b", "c"])
    assert [n.query.id for n in found] == ["test 3", "test 1"] and found[1].query.label == "b"
    first = {name: pairs[0][0] for name, pairs in found[0].nearest.items()}
    assert {name: picture.id for name, picture in first.items()} == {"before": "train 6", "after": "train 9"}
    assert first["before"].label == "a"
    pixels = Image.open(io.BytesIO(base64.b64decode(first["after"].image.partition(",")[2]))).convert("L")
    assert pixels.getpixel((0, 0)) == 9
    assert {picture.id for picture, _ in found[0].nearest["before"]} == {f"train {row}" for row in (4, 5, 6, 7, 8)}
