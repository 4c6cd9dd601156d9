"""Sets of `datasets` and torchvision, from files of this machine; there is no network here."""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import encode, noise
from PIL import Image

from pipelines.sources.kinds import open_source
from pipelines.sources.torchvision import open_torchvision

FILES = [encode(noise(seed)) for seed in range(4)]


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("urllib.request._opener", None)  # it may know the proxy of before
    datasets.disable_progress_bars()


def made(labels: list[int], names: list[str] | None = None, **columns: list[object]) -> datasets.Dataset:
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": file, "path": None} for file in FILES[: len(labels)]], "label": labels, **columns},
        features=datasets.Features(
            {"image": datasets.Image(), "label": kind, **{c: datasets.Value("int64") for c in columns}}
        ),
    )


def test_saved_to_disk(tmp_path):
    sets = {"validation": made([1, 0], ["cat", "dog"]), "train": made([0, -1, 1], ["cat", "dog"])}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "pets")
    source = open_source(f"huggingface:{tmp_path / 'pets'}")
    assert (source.name, source.classes) == ("pets", ["cat", "dog"])
    assert source.ids == ["train-000000", "train-000002", "val-000000", "val-000001"]
    assert source.labels.tolist() == [0, 1, 1, 0]
    assert source.splits == ["train", "train", "val", "val"]
    assert [source.read(k) for k in range(4)] == [FILES[0], FILES[2], FILES[0], FILES[1]]
    assert [left.id for left in source.left_out] == ["train"]
    assert source.left_out[0].reason.startswith("1 images without a label")


def test_parquet_files(tmp_path):
    (tmp_path / "set").mkdir()
    made([7, 30]).to_parquet(tmp_path / "set/train-00000-of-00002.parquet")
    made([100]).to_parquet(tmp_path / "set/train-00001-of-00002.parquet")
    made([7]).to_parquet(tmp_path / "set/test.parquet")
    source = open_source(f"huggingface:{tmp_path / 'set'}")
    assert source.classes == ["7", "30", "100"]
    assert source.splits == ["test", "train", "train", "train"]
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.read(2) == FILES[1]


def test_a_set_that_names_files_of_this_machine(tmp_path):
    (tmp_path / "secret.png").write_bytes(FILES[0])
    paths = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": None, "path": None}]
    (tmp_path / "set").mkdir()
    schema = made([0]).features.arrow_schema  # with what tells `datasets` that these are images
    pq.write_table(pa.table({"image": paths, "label": [0, 1]}, schema=schema), tmp_path / "set/train.parquet")
    source = open_source(f"huggingface:{tmp_path / 'set'}")
    for row in range(2):
        with pytest.raises(OSError, match="no path within the set"):
            source.read(row)


def test_sets_that_are_refused(tmp_path):
    cats = made([0, 1], ["cat", "dog"])
    refused = {
        "has the splits extra": datasets.DatasetDict({"extra": cats}),
        "other types of image and label in its split test": datasets.DatasetDict(
            {"train": cats, "test": made([0, 1], ["dog", "cat"])}
        ),
        "has 0 columns of type Image": cats.remove_columns("image"),
        "has 0 columns of type ClassLabel": cats.remove_columns("label"),
    }
    for number, (message, refused_set) in enumerate(refused.items()):
        refused_set.save_to_disk(tmp_path / str(number))
        with pytest.raises(ValueError, match=message):
            open_source(f"huggingface:{tmp_path / str(number)}")
    made([-1, -1], ["cat"]).save_to_disk(tmp_path / "unlabeled")
    with pytest.raises(FileNotFoundError, match="no labeled images"):
        open_source(f"huggingface:{tmp_path / 'unlabeled'}")


def test_folders_that_are_no_set(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match="neither what save_to_disk writes nor Parquet files"):
        open_source(f"huggingface:{tmp_path / 'set'}")
    (tmp_path / "set/train.parquet").write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match="cannot be read by datasets"):
        open_source(f"huggingface:{tmp_path / 'set'}")


def test_without_network_and_cache_the_error_says_what_to_download():
    with pytest.raises(
        FileNotFoundError, match=r"load_dataset\('user/pets', 'small'\)\.save_to_disk.* copy the folder"
    ):
        open_source("huggingface:user/pets:small")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def write_mnist(root: Path, labels: list[int]) -> np.ndarray:
    images = noise(0, (len(labels), 28, 28))
    (root / "MNIST/raw").mkdir(parents=True)
    for split in ("train", "t10k"):
        (root / f"MNIST/raw/{split}-images-idx3-ubyte").write_bytes(idx(images))
        (root / f"MNIST/raw/{split}-labels-idx1-ubyte").write_bytes(idx(np.array(labels, np.uint8)))
    return images


def test_torchvision(tmp_path):
    images = write_mnist(tmp_path, [3, 9, 0])
    source = open_torchvision("MNIST", root=tmp_path)
    assert (source.name, source.classes[3], len(source.classes)) == ("MNIST", "3 - three", 10)
    assert source.ids[2:4] == ["test-000002", "train-000000"]
    assert source.labels.tolist() == [3, 9, 0] * 2 and source.splits == ["test"] * 3 + ["train"] * 3
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(4)))), images[1])


def test_torchvision_with_labels_that_are_no_classes(tmp_path):
    write_mnist(tmp_path, [3, 200])
    with pytest.raises(ValueError, match="has the label 200, but there are 10 classes"):
        open_torchvision("MNIST", root=tmp_path)


def test_torchvision_without_network(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"cannot be downloaded .*torchvision\.datasets\.MNIST\(.*download=True"
    ):
        open_torchvision("MNIST", root=tmp_path / "none")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_no_pickle_of_a_stranger_is_loaded(tmp_path):
    evil = pickle.dumps(Evil(tmp_path / "done"))
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(evil)
    with pytest.raises(FileNotFoundError, match="CIFAR10 is not whole"):
        open_torchvision("CIFAR10", root=tmp_path)
    write_mnist(tmp_path, [1, 2])
    (tmp_path / "MNIST/processed").mkdir()
    (tmp_path / "MNIST/processed/training.pt").write_bytes(evil)
    with pytest.raises(ValueError, match="has pickles"):
        open_torchvision("MNIST", root=tmp_path)
    with pytest.raises(ValueError, match="torchvision:LSUN, which is no set that can be read"):
        open_source("torchvision:LSUN")
    assert not (tmp_path / "done").exists()


def test_labels_beyond_the_classes_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    table = made([0, 1], ["cat", "dog"]).with_format("arrow")[:]
    wrong = table.set_column(1, table.schema.field("label"), pa.chunked_array([[0, 5]], pa.int64()))
    pq.write_table(wrong, tmp_path / "set/train.parquet")
    with pytest.raises(ValueError, match=r"label 5|Class label 5|cannot be read"):
        open_source(f"huggingface:{tmp_path / 'set'}")
