"""The memory for decoded images, which all batches of a training share."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from image_sets import encode, made, noise, prepare_made
from manifests import ROOT

from grpo_rm import datasets
from grpo_rm.config import Loader, load_config
from grpo_rm.model import ModelConfig
from pipelines.batches import TrainingBatches, training_batches

CONFIG = load_config(ROOT / "params.yaml")
SIDE, IMAGE_BYTES = 8, 8 * 8  # gray, in memory
SPLITS = ["train"] * 4 + ["val"] + ["test"]


class Use(NamedTuple):
    """What came of a loader's images: how many it has given, and how many it has kept."""

    given: int
    kept: int


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 training and 40 validation images."""
    files = {f"{name}/{k:03d}.png": encode(noise(k, (SIDE, SIDE))) for name in ("cat", "dog") for k in range(120)}
    root = tmp_path_factory.mktemp("batches")
    source = made(files)
    source.splits[:] = [SPLITS[k % len(SPLITS)] for k in range(len(files))]
    prepare_made(source, root / "data/prepared")
    return root


@pytest.fixture(autouse=True)
def decoded(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are decoded, in order."""
    files: list[bytes] = []
    decode = datasets.decode
    monkeypatch.setattr(
        datasets, "decode", lambda data, channels: files.append(data) or decode(data, channels=channels)
    )
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return files


def model(head: str = "linear") -> ModelConfig:
    return ModelConfig("test_resnet", 1, SIDE, 1.0, "bilinear", [0.5], [0.2], ["cat", "dog"], head=head)


def loader(images: int, **changes: object) -> Loader:
    """One with memory for so many decoded images."""
    settings = {"workers": 0, "cache": "auto", "cache_gib": images * IMAGE_BYTES / 2**30}
    return Loader.model_validate({**settings, **changes})


def create(images: int, *, head: str = "linear", knn_every: int = 0, **changes: object) -> TrainingBatches:
    training = CONFIG.pretrain.model_copy(update={"batch_size": 8, "knn_every": knn_every})
    options = {name: changes.pop(name) for name in ("rank", "processes") if name in changes}
    return training_batches(model(head), training, loader(images, **changes), seed=0, **options)


def uses(batches: TrainingBatches, decoded: list[bytes], *, has_gallery: bool = False) -> Iterator[Use]:
    """Go through the same epoch of each twice: what is not decoded again was kept."""
    for part in (batches.train, batches.val, batches.gallery)[: 3 if has_gallery else 2]:
        given = sum(len(images) for images, _ in part.epoch(0))
        decoded.clear()
        assert sum(len(images) for images, _ in part.epoch(0)) == given
        yield Use(given, given - len(decoded))


def test_each_split_keeps_the_same_share_of_its_images(decoded: list[bytes]) -> None:
    assert list(uses(create(100), decoded)) == [Use(160, 80), Use(40, 20)]


@pytest.mark.parametrize("settings", [{"head": "prototypes"}, {"knn_every": 2}])
def test_training_images_without_augmentation_have_their_share_where_they_are_read(
    decoded: list[bytes], settings: dict[str, object]
) -> None:
    assert list(uses(create(90, **settings), decoded, has_gallery=True)) == [Use(160, 40), Use(40, 10), Use(160, 40)]


@pytest.mark.parametrize(
    ("images", "changes", "share"), [(200, {}, 1), (10_000, {}, 1), (200, {"cache": "never"}, 0), (0.5, {}, 0)]
)
def test_all_or_none(decoded: list[bytes], images: float, changes: dict[str, object], share: int) -> None:
    assert list(uses(create(images, **changes), decoded)) == [Use(160, 160 * share), Use(40, 40 * share)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_of_one_machine_share_the_memory(decoded: list[bytes], processes: int) -> None:
    parts = [list(uses(create(100, rank=rank, processes=processes), decoded)) for rank in range(processes)]
    assert np.sum(parts, axis=0).tolist() == [[160, 80], [40, 20]]


def test_processes_of_other_machines_have_their_own(decoded: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert list(uses(create(100, rank=3, processes=4), decoded)) == [Use(40, 40), Use(10, 10)]
