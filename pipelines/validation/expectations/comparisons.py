"""The expectations on the data beside its previous version."""

from great_expectations.expectations.expectation import Expectation

from grpo_rm.config import Expectations
from pipelines.validation.expectations.distances import ExpectColumnKsToBeLessThan, ExpectColumnPsiToBeLessThan
from pipelines.validation.expectations.samples import ExpectNamedValuesToBeNull
from pipelines.validation.expectations.suites import expect
from pipelines.validation.manifest import CHANNELS


def split_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of the split of each image, by the columns of `manifest.image_table`."""
    return expect(
        ExpectNamedValuesToBeNull,
        "split_now",
        limits.splits_kept.severity,
        "every image is in the split where the previous version of the data has it",
        "go back to the earlier splits (`git checkout COMMIT -- dvc.lock`, `dvc checkout data/prepared`, `dvc repro "
        "prepare`), or train all models anew: those of before may have been trained on what is test now.",
    )


def class_name_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of the names of the classes, by the columns of `class_counts.class_changes`."""
    names = limits.classes.names
    expected = "in the previous version of the data" if names is None else "named in data.expectations.classes"
    return expect(
        ExpectNamedValuesToBeNull,
        "change",
        limits.classes.severity,
        f"the classes are those {expected}",
        "rename or restore the classes in the source. If they changed on purpose, a model has to be trained anew.",
    )


def label_drift_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of the shares of the classes, by the columns of `drift.label_table`."""
    drift = limits.drift
    return expect(
        ExpectColumnPsiToBeLessThan,
        "class",
        drift.severity,
        f"the shares of the classes are near those before: population stability index of at most {drift.max_psi:g}",
        "see whether images of a class went missing or came twice; models of both versions are not comparable.",
        amount_column="amount",
        max_value=drift.max_psi,
    )


def channel_drift_expectations(limits: Expectations) -> list[Expectation]:
    """Return what is expected of the channels of all images, by the columns of `drift.channel_table`."""
    drift = limits.drift
    fix = "compare old and new images: another camera, lighting, color space or compression?"
    near = "of the images is distributed as before"
    expectations: list[Expectation] = []
    for column in CHANNELS:
        statistic, _, channel = column.partition("_")
        name = f"the {statistic} of channel {channel}"
        psi = f"{name} {near}: population stability index of at most {drift.max_psi:g}"
        ks = f"{name} {near}: Kolmogorov-Smirnov statistic of at most {drift.max_ks:g}"
        expectations += expect(ExpectColumnPsiToBeLessThan, column, drift.severity, psi, fix, max_value=drift.max_psi)
        expectations += expect(ExpectColumnKsToBeLessThan, column, drift.severity, ks, fix, max_value=drift.max_ks)
    return expectations
