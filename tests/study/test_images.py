"""What is drawn for the tasks: disjoint, balanced, the same each time."""

import numpy as np
import pytest
from PIL import Image

from study import images

CLASSES = 10


@pytest.fixture
def shared(tmp_path):
    """A set like Fashion-MNIST whose images say in their first pixels which row they are; every class is as large."""
    (tmp_path / images.FASHION).mkdir()
    for split, count in (("train", 900 * CLASSES), ("test", 1050 * CLASSES)):
        pictures = np.zeros((count, 28, 28), np.uint8)
        pictures[:, 0, :4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
        labels = np.arange(count) % CLASSES
        np.savez(tmp_path / images.FASHION / f"{split}.npz", images=pictures, labels=labels)
    return tmp_path


def read(folder):
    parts = {}
    for split in ("train", "val", "test"):
        with np.load(folder / f"{split}.npz") as file:
            rows = file["images"][:, 0, :4].copy().view(">u4").ravel()
            parts[split] = rows.tolist(), file["labels"]
    return parts


def drawn(write, shared, tmp_path):
    write(tmp_path / write.__name__, shared)
    return read(tmp_path / write.__name__)


def counts(labels):
    return np.bincount(labels, minlength=CLASSES).tolist()


def test_splits_are_disjoint_balanced_and_the_same_again(shared, tmp_path):
    parts = drawn(images.write_fashion, shared, tmp_path)
    assert [counts(parts[split][1]) for split in parts] == [[200] * 10, [200] * 10, [1000] * 10]
    assert len(set(parts["train"][0] + parts["val"][0])) == 4000
    assert len(set(parts["test"][0])) == 10000
    for rows, labels in parts.values():
        assert (np.array(rows) % CLASSES == labels).all()
    images.write_fashion(tmp_path / "again", shared)
    again = read(tmp_path / "again")
    assert all(again[split][0] == parts[split][0] for split in parts)


def test_tasks_of_one_set_share_validation_and_test(shared, tmp_path):
    first = drawn(images.write_fashion, shared, tmp_path)
    for write in (images.write_long_tail, images.write_noisy_40):
        other = drawn(write, shared, tmp_path)
        for split in ("val", "test"):
            assert other[split][0] == first[split][0]
            assert (other[split][1] == first[split][1]).all()
        assert not set(other["train"][0]) & set(other["val"][0])


def test_the_long_tail(shared, tmp_path):
    assert images.long_tail_counts(10) == [600, 388, 252, 163, 105, 68, 44, 29, 19, 12]
    train = drawn(images.write_long_tail, shared, tmp_path)["train"][1]
    assert sorted(counts(train), reverse=True) == images.long_tail_counts(10)
    assert counts(train) != images.long_tail_counts(10)  # the order of the classes is drawn


@pytest.mark.parametrize(("write", "wrong"), [(images.write_noisy_20, 80), (images.write_noisy_40, 160)])
def test_noise_has_its_rate_in_each_class_and_is_in_training_labels_alone(write, wrong, shared, tmp_path):
    parts = drawn(write, shared, tmp_path)
    true = np.array(parts["train"][0]) % CLASSES
    is_wrong = parts["train"][1] != true
    assert counts(true) == [400] * CLASSES
    assert counts(true[is_wrong]) == [wrong] * CLASSES
    for split in ("val", "test"):
        assert (np.array(parts[split][0]) % CLASSES == parts[split][1]).all()


def test_wrong_labels_are_uniform_over_the_other_classes():
    noisy = images.with_noise(np.zeros(9000, np.int64), 1.0, num_classes=10)
    found = np.bincount(noisy, minlength=10)
    assert found[0] == 0
    assert (abs(found[1:] - 1000) < 150).all()


def test_a_class_with_too_few_images():
    with pytest.raises(ValueError, match="class 1 has too few images: 1 are left, expected 2"):
        images.split_classes(np.array([0, 0, 0, 1, 1]), [1, 2])


def test_the_box_filter_halves_an_image(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[0, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = images._small((tmp_path / "a.png").read_bytes())
    assert small.shape == (32, 32, 3)
    assert small[0, 0].tolist() == [50, 50, 50]
    assert not small[1:].any()
