"""The images that an exported dense model is proved on, and those that its file cannot be measured on."""

import numpy as np
import pytest
from dense_candidate import PREPARED, prepare_scenes

from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_export import PooledModel
from grpo_rm.dense_model import DenseModel
from grpo_rm.model import DenseConfig
from grpo_rm.transforms import decode
from pipelines import dense_export
from pipelines.dense_export import check_sizes, dense_examples, dense_preprocessing


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Images of which each has a height of its own."""
    root = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        prepare_scenes(40, sizes=tuple((30 + (seed + 2) % 40, 28) for seed in range(40)))
    return root / PREPARED


@pytest.fixture(scope="module")
def model() -> PooledModel:
    config = DenseConfig("test_resnet", 3, 32, "bilinear", [0.5] * 3, [0.25] * 3, ["a", "b"], [4], head="linear")
    return PooledModel(DenseModel(config))


@pytest.mark.parametrize(
    ("most", "window", "fixed_size", "shape"),
    [
        (1_000_000, None, None, (1, None, 28)),
        (784, None, None, (1, 28, 28)),
        (400, None, None, (1, 20, 20)),
        (1_000_000, 25, None, (3, 25, 25)),
        (1_300, 25, None, (2, 25, 25)),
        (1_000_000, 50, 24, (3, 24, 24)),
    ],
)
def test_examples_are_corners_of_so_many_pixels(most, window, fixed_size, shape, model, prepared, monkeypatch):
    monkeypatch.setattr(dense_export, "MAX_PIXELS", most)
    monkeypatch.setattr(model, "fixed_size", fixed_size)
    files = read_dense_split(prepared, "test").files
    whole = [np.asarray(decode(files[row], channels=3)) for row in range(len(files))]
    examples = dense_examples(model, 3, window=window, prepared=prepared)
    count, height, width = shape
    assert examples.shape == (count, height or len(whole[0]), width, 3)
    for example, image in zip(examples, whole, strict=False):
        assert (example == image[: example.shape[0], :width]).all()


def test_what_the_file_cannot_be_measured_on(prepared):
    masks = {name: read_dense_split(prepared, name).masks for name in ("train", "val", "test")}
    heights = {name: [part[row].shape[0] for row in range(len(part))] for name, part in masks.items()}
    largest = max(heights["val"] + heights["test"])
    assert largest < max(heights["train"]), "which is cropped, so its images may be larger"
    check_sizes(largest, None, prepared=prepared)
    check_sizes(10, 10, prepared=prepared)
    for window in (None, largest):
        with pytest.raises(
            ValueError, match=f"got segmentation.window: {window or 'null'} and .* whose side is {largest};"
        ):
            check_sizes(largest - 1, window, prepared=prepared)


def test_the_file_says_what_it_was_measured_with(model):
    assert dense_preprocessing(model, 25)["window"] == 25
