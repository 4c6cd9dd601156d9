"""The expectations on each table: severities and limits are those of `data.expectations` in params.yaml.

Each has a description, what is expected, and notes, what to do where it fails; both speak to the owner of the images.
"""

from collections.abc import Callable
from typing import Any

from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from grpo_rm.config import Expectations
from pipelines.sources.source import SPLITS
from pipelines.validation.expectations.samples import (
    ExpectNamedValuesToBeBetween,
    ExpectNamedValuesToBeInSet,
    ExpectNamedValuesToBeNull,
    ExpectNamedValuesToBeUnique,
)


def expect(
    kind: Callable[..., Expectation], column: str, severity: str, description: str, fix: str, **limits: Any
) -> list[Expectation]:
    """Return the expectation, or nothing where it is to be ignored."""
    if severity == "ignore":
        return []
    words: dict[str, Any] = {"severity": FailureSeverity(severity), "description": description, "notes": fix}
    return [kind(column=column, **words, **limits)]


def schema_expectations() -> list[Expectation]:
    """Return what is expected of each column of the manifest."""
    return expect(
        ExpectNamedValuesToBeNull,
        "fault",
        "critical",
        "the manifest has every column, of the right type and with a value in every row",
        "the manifest was not written by this version of the prepare stage: run `dvc repro --force prepare`.",
    )


def image_expectations(limits: Expectations, *, num_classes: int, is_segmentation: bool) -> list[Expectation]:
    """Return what is expected of each image, by the columns of `manifest.image_table`."""
    return [
        *_row_expectations(num_classes, is_segmentation=is_segmentation),
        *_file_expectations(limits),
        *_split_expectations(limits),
        *(_mask_expectations(limits) if is_segmentation else _label_expectations(limits)),
        *_content_expectations(limits),
    ]


def _row_expectations(num_classes: int, *, is_segmentation: bool) -> list[Expectation]:
    labels = [] if is_segmentation else expect(
        ExpectNamedValuesToBeBetween,
        "label",
        "critical",
        f"every label is the index of one of the {num_classes} classes, 0 to {num_classes - 1}",
        "correct the labels in the source (-1 is a label that names no class).",
        min_value=0,
        max_value=num_classes - 1,
    )  # fmt: skip
    return [
        *expect(
            ExpectNamedValuesToBeUnique,
            "id",
            "critical",
            "every image has an id of its own",
            "two images share a name: rename one of them in the source.",
        ),
        *expect(
            ExpectNamedValuesToBeInSet,
            "split",
            "critical",
            "every image is in the split train, val or test",
            "rename the split, or move its images into train, val or test.",
            value_set=list(SPLITS),
        ),
        *labels,
    ]


def _file_expectations(limits: Expectations) -> list[Expectation]:
    decodable = limits.decodable
    some = f"of all images, {100 * decodable.min_share:g} % or more can be decoded"
    return [
        *expect(
            ExpectNamedValuesToBeInSet,
            "decode_error",
            decodable.severity,
            "every image can be decoded" if decodable.min_share == 1 else some,
            "replace or delete the broken files in the source, or correct the path in the CSV file; "
            "or lower data.expectations.decodable.min_share.",
            value_set=[""],
            mostly=decodable.min_share,
        ),
        *expect(
            ExpectNamedValuesToBeNull,
            "other_format",
            limits.file_names.severity,
            "every file is of the format that its name says",
            "rename these files: other programs go by the extension, and may refuse them. They are decoded here as is.",
        ),
    ]


def _split_expectations(limits: Expectations) -> list[Expectation]:
    return [
        *expect(
            ExpectNamedValuesToBeNull,
            "same_image_in_other_split",
            limits.copies_across_splits.severity,
            "no image is in two splits: a test image that was trained on proves nothing",
            "keep each image in one split only: delete its copies from the others (as a rule from train).",
        ),
        *expect(
            ExpectNamedValuesToBeNull,
            "near_duplicate_in_other_split",
            limits.near_duplicates_across_splits.severity,
            "no two splits have nearly the same image",
            "look at both: keep one of them, or move them into one split. Images without a given split stay together.",
        ),
        *expect(
            ExpectNamedValuesToBeNull,
            "group_in_other_split",
            limits.groups_across_splits.severity,
            "no group is in two splits",
            "give all images of a group one split, or none: then they stay together.",
        ),
        *expect(
            ExpectNamedValuesToBeNull,
            "copy_of",
            limits.copies.severity,
            "no image is there twice in a split",
            "delete the copies, unless these images are meant to count more than once.",
        ),
    ]


def _label_expectations(limits: Expectations) -> list[Expectation]:
    return [
        *expect(
            ExpectNamedValuesToBeNull,
            "same_image_with_other_label",
            limits.one_label.severity,
            "no image has two labels",
            "decide which label is right and delete the copies that have the other one.",
        ),
        *expect(
            ExpectNamedValuesToBeNull,
            "near_duplicate_with_other_label",
            limits.near_duplicates_one_label.severity,
            "no image is nearly the same as one with another label",
            "look at both: where they show the same, correct one label or delete one image.",
        ),
    ]


def _mask_expectations(limits: Expectations) -> list[Expectation]:
    void = limits.void_share
    return [
        *expect(
            ExpectNamedValuesToBeInSet,
            "mask_error",
            limits.masks.severity,
            "every mask is as large as its image and has known values alone",
            "correct or delete these masks, with their images; classes.txt and data.void_index name the known values.",
            value_set=[""],
        ),
        *expect(
            ExpectNamedValuesToBeBetween,
            "void_share",
            void.severity,
            f"of every mask, at most {100 * void.max_share:g} % is void",
            "label more of these masks, or delete them with their images: nothing is learned from void.",
            max_value=void.max_share,
        ),
    ]


def _content_expectations(limits: Expectations) -> list[Expectation]:
    size, aspect, contrast = limits.image_size, limits.aspect_ratio, limits.contrast
    between = ExpectNamedValuesToBeBetween
    return [
        *expect(
            between,
            "shorter_side",
            size.severity,
            f"every image is at least {size.min_side:,} pixels wide and high",
            "look for thumbnails and icons among these, and delete them; or lower data.expectations.image_size.",
            min_value=size.min_side,
        ),
        *expect(
            between,
            "longer_side",
            size.severity,
            f"every image is at most {size.max_side:,} pixels wide and high",
            "make them smaller, set data.resize_on_prepare, or raise data.expectations.image_size.",
            max_value=size.max_side,
        ),
        *expect(
            between,
            "aspect_ratio",
            aspect.severity,
            f"the longer side of an image is at most {aspect.max_ratio:g} times the shorter one",
            "crop them: of a long image only the central square is looked at.",
            max_value=aspect.max_ratio,
        ),
        *expect(
            between,
            "largest_std",
            contrast.severity,
            f"no image is of one color: the standard deviation of a channel is {contrast.min_std:g} or more",
            "look at these images; delete them from the source if they are blank by mistake.",
            min_value=contrast.min_std,
        ),
    ]


def left_out_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of each file of the source that is none of its images."""
    return expect(
        ExpectNamedValuesToBeNull,
        "reason",
        limits.left_out.severity,
        "every file in the source is one of its images",
        "move other files elsewhere; where one was meant to be an image, its reason says what is wrong.",
    )


def class_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of each class in each split, by the columns of `class_counts.class_table`."""
    count, imbalance = limits.class_count, limits.imbalance
    return [
        *expect(
            ExpectNamedValuesToBeBetween,
            "images",
            count.severity,
            f"every class has {count.min_images:,} image{'s' * (count.min_images != 1)} or more in every split",
            "add images of the class (three or more, so that each split gets one), or remove the class.",
            min_value=count.min_images,
        ),
        *expect(
            ExpectNamedValuesToBeBetween,
            "times_rarer",
            imbalance.severity,
            f"in train, the largest class has at most {imbalance.max_ratio:g} times the images of any other",
            "add images of the rare classes, and read the macro F1 rather than the accuracy.",
            max_value=imbalance.max_ratio,
        ),
    ]
