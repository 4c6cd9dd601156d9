"""Further test sets: classes by name, and images that models have seen."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import encode, made, noise, pets, prepare_made, segmentation, tree
from PIL import Image

from grpo_rm.datasets import read_split
from pipelines.preparation.extra_set import find_leaks, prepare_extra_set, with_classes
from pipelines.sources.source import LeftOut

NAMES = [f"{name}/{place:02d}.png" for name in ("cat", "cow", "dog") for place in range(10)]
FARM = {name: encode(noise(seed, (40, 40, 3))) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    output = tmp_path_factory.mktemp("data") / "prepared"
    prepare_made(made(FARM), output)
    return output


def ids_of(prepared, split):
    return list(read_split(prepared, split).ids)


def extra(prepared, output, files, **fields):
    prepare_extra_set(made(files, **fields), output, prepared=prepared, origin="there", shorter_side=None)
    return json.loads((output / "extra.json").read_text()), pq.read_table(output / "manifest.parquet").to_pylist()


def test_labels_are_those_of_the_training_data(prepared, tmp_path):
    files = {f"{name}/sketch {place}.png": encode(noise(900 + place)) for name in ("dog", "cow") for place in (1, 2)}
    files["dog/broken.png"] = b"no image"
    summary, rows = extra(prepared, tmp_path / "extra", files)
    split = read_split(tmp_path / "extra", "test")
    names = ["cow/sketch 1.png", "cow/sketch 2.png", "dog/sketch 1.png", "dog/sketch 2.png"]
    assert list(split.ids) == names
    assert split.labels.tolist() == [1, 1, 2, 2]
    assert [split.files[row] for row in range(4)] == [files[name] for name in names]
    assert summary["counts"] == {"cat": 0, "cow": 2, "dog": 2} and summary["missing_classes"] == ["cat"]
    assert summary["undecodable"] == 1 and len(rows) == 5
    assert summary["copies"] == summary["near_duplicates"] == 0


def test_any_split_of_the_source_is_for_the_test(prepared, tmp_path):
    files = {f"cat/{place}.png": encode(noise(700 + place)) for place in range(3)}
    source = made(files)
    source.splits[:] = ["train", "val", None]
    prepare_extra_set(source, tmp_path / "extra", prepared=prepared, origin="there", shorter_side=None)
    assert len(read_split(tmp_path / "extra", "test").ids) == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_models_have_seen_are_found(prepared, tmp_path, split):
    seen, test = ids_of(prepared, split), ids_of(prepared, "test")
    resaved = encode(Image.open(io.BytesIO(FARM[seen[1]])), "JPEG", quality=90)
    files = {
        "cat/copy.png": FARM[seen[0]],
        "cow/near.jpg": resaved,
        "cat/new.png": encode(noise(5000, (40, 40, 3))),
        "cat/of the test.png": FARM[test[0]],
        "cat/plain.png": encode(np.full((40, 40, 3), 9, np.uint8)),
    }
    summary, rows = extra(prepared, tmp_path / "extra", files)
    found = {row["id"]: (row["copy_of"], row["near_duplicate_of"]) for row in rows}
    of_known = {"cat/copy.png": (seen[0], ""), "cow/near.jpg": ("", seen[1])}
    assert found == dict.fromkeys(files, ("", "")) | of_known
    assert (summary["copies"], summary["near_duplicates"]) == (1, 1)
    assert summary["counts"] == {"cat": 3, "cow": 0, "dog": 0} and summary["missing_classes"] == ["cow", "dog"]
    assert set(ids_of(tmp_path / "extra", "test")) == set(files)


def test_a_file_that_cannot_be_read_is_no_copy_of_another():
    nothing = pa.table({"sha256": [""], "perceptual_hash": [""]})
    known = pa.table({"id": ["cat/1.png"], "sha256": [""], "perceptual_hash": [""]})
    assert find_leaks(nothing, known) == {"copy_of": [""], "near_duplicate_of": [""]}


def test_a_class_of_another_name_is_refused_before_anything_is_written(prepared, tmp_path):
    files = {name: encode(noise(1)) for name in ("cat/1.png", "dogs/1.png", "wolf/1.png")}
    message = r"made has 2 class\(es\) that the training data have not: 'dogs', 'wolf'; did you mean dog\?"
    with pytest.raises(ValueError, match=message):
        extra(prepared, tmp_path / "extra", files)
    assert not (tmp_path / "extra").exists()


def test_a_set_of_one_class_is_enough_and_masks_are_refused():
    assert with_classes(made({"dog/1.png": b""}), ["cat", "dog"]).labels.tolist() == [1]
    scenes = segmentation({"a.png": b""}, {"a.png": b""}, [0, 1])
    with pytest.raises(ValueError, match="scenes has masks; expected images with classes"):
        with_classes(scenes, ["cat", "dog"])


def test_nothing_that_can_be_decoded_is_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match="none of the 1 files of made can be decoded"):
        extra(prepared, tmp_path / "extra", {"cat/1.png": b"no image"}, left_out=[LeftOut("x", "y")])


def test_again_gives_the_same_files(prepared, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for output in (first, second):
        extra(prepared, output, pets(4))
    assert tree(first) == tree(second)
    assert set(tree(first)) == {"extra.json", "manifest.parquet", "test/00000.parquet"}
