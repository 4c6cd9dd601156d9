"""Which image is for training, validation, or test."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from made_up_images import FRACTIONS, Images, look

from pipelines.preparation.splits import assign_splits
from pipelines.sources.source import SPLITS


def test_golden():
    # places .498 .434 .298 .594 .892 .779 | .798 .777 .314 .000 .687 .649: in the first class no image is below
    # 0.2, so that of val is moved to test, and the next nearest to val
    expected = ["train", "val", "test", *["train"] * 3, "train", "train", "val", "test", "train", "train"]
    assert Images([0] * 6 + [1] * 6).split() == expected


def test_shares():
    images = Images([0, 1] * 2000)
    splits = images.split(seed=3)
    for split, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        for label in (0, 1):
            assert splits[label::2].count(split) / 2000 == pytest.approx(share, abs=0.03)


def test_another_seed_gives_another_split():
    images = Images([0, 1] * 100)
    assert images.split(seed=1) == images.split(seed=1) != images.split(seed=2)


@pytest.mark.parametrize("is_known", [False, True])
def test_adding_images_moves_none(is_known):
    more = Images([0, 1] * 150)
    images = more.pick(range(200))
    before = images.split()
    former = images.manifest(before) if is_known else None
    assert more.split(former=former)[:200] == before


def test_removing_images_moves_none():
    images = Images([0] * 20 + [1] * 200)
    splits = images.split()
    left = images.pick([index for index in range(220) if index % 3 or splits[index] != "train"])
    assert left.split(former=images.manifest(splits)) == [splits[int(id_[1:])] for id_ in left.ids]


def test_known_images_stay_where_they_are_whatever_they_are_called():
    images = Images([0, 1] * 100)
    splits = images.split(seed=5)
    renamed = images.pick(range(200))
    renamed.ids = [f"new {id_}" for id_ in images.ids]
    assert renamed.split(seed=6, former=images.manifest(splits)) == splits


def test_copies_stay_together():
    images = Images([0] * 60)
    images.digests[40:] = images.digests[:20]
    splits = images.split()
    assert splits[40:] == splits[:20]
    assert len(set(splits[:20])) == 3


def test_near_duplicates_stay_together_and_are_named():
    images = Images([0] * 60)
    images.hashes[40:] = [look(index, changed=24) for index in range(20)]
    splits, near = images.assign()
    assert splits[40:] == splits[:20]
    assert near == [""] * 40 + images.ids[:20]
    images.hashes[40:] = [look(index, changed=25) for index in range(20)]
    splits, near = images.assign()
    assert splits[40:] != splits[:20]
    assert near == [""] * 60


def test_undecodable_and_plain_images_are_near_to_none():
    images = Images([0] * 60)
    images.hashes[20:40], images.hashes[40:] = [b""] * 20, [bytes(32)] * 20
    splits, near = images.assign()
    assert near == [""] * 60
    assert set(splits[20:40]) == set(splits[40:]) == set(SPLITS)


def test_groups_stay_together_whatever_is_added():
    rng = np.random.default_rng(0)
    patients = [f"patient {k}" for k in rng.integers(0, 80, 900)]
    patients[::10] = [""] * 90
    more = Images(rng.integers(0, 3, 900).tolist(), groups=patients)
    splits = more.split()
    by_patient = defaultdict(set)
    for patient, split in zip(patients, splits, strict=True):
        by_patient[patient].add(split)
    assert by_patient.pop("") == set(SPLITS)
    assert all(len(where) == 1 for where in by_patient.values())
    assert splits[500:] == more.pick(range(500, 900)).split()


@pytest.mark.parametrize("digest", ["", "of an empty file"])  # "" is of a file that is missing
def test_files_that_cannot_be_decoded_join_no_groups(digest):
    images = Images([0] * 200, groups=[f"patient {index // 2}" for index in range(200)])
    expected = images.split()
    for index in range(0, 200, 2):
        images.digests[index], images.hashes[index] = digest, b""
    splits = images.split()
    assert splits == expected
    added = Images([0] * 240, groups=[f"patient {index // 2}" for index in range(240)])
    added.digests[:200], added.hashes[:200] = images.digests, images.hashes
    alone = added.split()[200:]
    added.digests[200], added.hashes[200] = digest, b""
    assert added.split(former=images.manifest(splits)) == [*splits, *alone]


def test_an_edited_image_stays_where_it_was():
    images = Images([0] * 90)
    splits = images.split()
    edited = images.pick(range(90))
    edited.digests = [f"new {digest}" for digest in images.digests]
    assert edited.split() != splits
    edited.hashes = [look(index, changed=12) for index in range(90)]
    assert edited.split(former=images.manifest(splits)) == splits
    assert edited.assign(former=images.manifest(splits))[1] == [""] * 90


def test_a_new_image_of_a_group_that_is_gone_goes_where_it_was():
    images = Images([0] * 90, groups=[f"g{index % 30}" for index in range(90)])
    splits = images.split(seed=1)
    renewed = images.pick([index for index in range(90) if index % 30 >= 10 or index >= 60])
    for place, group in enumerate(renewed.groups):
        if int(group[1:]) < 10:
            renewed.digests[place] = f"new {renewed.ids[place]}"
    renewed.hashes = [look(1000 + index) for index in range(len(renewed.ids))]
    assert renewed.split(seed=2, former=images.manifest(splits)) == [splits[int(id_[1:])] for id_ in renewed.ids]


@pytest.mark.parametrize(("one", "other", "expected"), [("train", "test", "train"), ("val", "test", "val")])
def test_a_new_image_between_two_splits_goes_to_the_first_and_moves_none(one, other, expected):
    images = Images([0] * 40)
    splits = images.split()
    first, second = splits.index(one), splits.index(other)
    more = images.pick([*range(40), 0])
    more.ids[40], more.digests[40] = "bridge", "new"
    images.hashes[second] = more.hashes[second] = look(first, changed=40)
    more.hashes[40] = look(first, changed=20)
    assert images.split() == splits
    after, near = more.assign(former=images.manifest(splits))
    assert after == [*splits, expected]
    assert near.count(more.ids[min(first, second)]) == 2


def test_given_splits_are_kept_and_the_missing_one_comes_from_training():
    images = Images([0] * 60, ["train"] * 40 + ["test"] * 10 + [None] * 10)
    splits = images.split()
    assert splits[40:50] == ["test"] * 10
    assert 0 < splits[:40].count("val") < 20
    assert "test" not in splits[:40] + splits[50:]


def test_where_all_splits_are_given_an_image_without_one_is_for_training():
    images = Images([0] * 9, ["train", "val", "test", *[None] * 6])
    assert images.split() == ["train", "val", "test", *["train"] * 6]


def test_given_splits_win_over_the_former_version():
    images = Images([0] * 30, ["test"] * 10 + ["train"] * 20)
    former = images.manifest(["val"] * 10 + ["test"] * 10 + ["val"] * 10)
    splits = images.split(former=former)
    assert splits[:10] == ["test"] * 10
    assert "test" not in splits[10:]
    assert splits[20:] == ["val"] * 10  # which is still made


def test_training_images_near_given_test_images_stay_and_unsplit_ones_follow():
    images = Images([0] * 80, ["test"] * 20 + ["train"] * 30 + [None] * 30)
    images.hashes[20:30] = [look(index, changed=9) for index in range(10)]  # of training images, given
    images.hashes[50:60] = [look(index, changed=9) for index in range(10, 20)]  # without a split
    splits = images.split()
    assert splits[:30] == ["test"] * 20 + ["train"] * 10
    assert splits[50:60] == ["test"] * 10
    assert "val" in splits[30:]


def test_every_class_is_in_every_split():
    for count in range(3, 12):
        for seed in range(10):
            assert set(Images([0] * count).split(seed=seed)) == set(SPLITS)


def test_only_whole_units_are_moved():
    images = Images([0] * 12, groups=[f"g{index % 3}" for index in range(12)])
    for seed in range(20):
        splits = images.split(seed=seed)
        assert sorted(splits[:3]) == sorted(SPLITS)
        assert splits == splits[:3] * 4


def test_undecodable_images_do_not_stand_for_their_class():
    images = Images([0] * 12)
    images.hashes[3:] = [b""] * 9
    for seed in range(10):
        assert sorted(images.split(seed=seed)[:3]) == sorted(SPLITS)


def test_segmentation_has_no_classes_but_an_image_in_each_split():
    for seed in range(10):
        images = Images([0] * 4)
        source = replace(images.source(), classes=["road", "sky"], labels=np.full(4, -1))
        splits, _ = assign_splits(source, images.digests, images.hashes, **FRACTIONS, seed=seed, former=None)
        assert set(splits) == set(SPLITS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "1 class.* cannot be in each of train, test, val: '1' has 2; expected at least 3 images"),
        ([f"g{index % 2}" for index in range(8)], r"'0' has 2 \(of 6 images\), '1' has 2; expected"),
    ],
)
def test_classes_too_small_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        Images([0] * 6 + [1] * 2, groups=groups).split()


def test_a_class_whose_images_are_all_in_one_split_from_before_is_named():
    images = Images([0] * 6)
    with pytest.raises(ValueError, match=r"'0' has 6; .*delete data/prepared to make all splits anew"):
        images.split(former=images.manifest(["train"] * 6))
