"""What stages evaluate and register ask of a task."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grpo_rm.config import Config

if TYPE_CHECKING:
    from grpo_rm.evaluation.resampling import MetricSums
    from pipelines.extra_results import ExtraSet
    from pipelines.measurements import Measured
    from pipelines.onnx_model import OnnxModel

Ids = dict[str, list[str]]  # of images, by split or extra set
Answers = Any  # what a model said of them: each task has its own, and no other code looks into it


class Task(Protocol):
    """The functions of the module of a task."""

    def predict(self, directories: Mapping[str, Path], config: Config) -> None:
        """Run saved models over the images without augmentation, and write what they say."""

    def read(self, name: str) -> tuple[Ids, Answers]:
        """Read what a model said.

        Raises:
            FileNotFoundError: Nothing is stored of it.
            ValueError: A file is not what `predict` writes.
        """

    def measure(
        self, answers: Answers, extra_sets: "list[ExtraSet]", config: Config, *, has_encoder: bool
    ) -> "Measured":
        """Measure a model on the test split and the extra sets; with `has_encoder` also what follows from embeddings.

        Answers of the training images are needed for the latter alone.
        """

    def measure_validation(self, answers: Answers) -> dict[str, float]:
        """Measure the head on the validation split."""

    def write_plots(self, name: str, answers: Answers, measured: "Measured") -> None:
        """Write the tables of a model that DVC draws."""

    def constant_sums(self, answers: Answers) -> "dict[str, MetricSums]":
        """Return what always saying the most frequent class of the test split comes to: one metric of `measure`."""

    def find_other_images(self, ids: Ids, answers: Answers, config: Config, *, asked: Collection[str]) -> str | None:
        """Return in words how the answers contradict the prepared data; None where they do not.

        Args:
            ids: Of the images.
            answers: Of a model.
            config: All of it.
            asked: The metrics that they are to be measured by.

        Raises:
            ValueError: They are such that they cannot be compared with the data.
        """

    def find_other_answers(self, ids: Ids, answers: Answers, model: "OnnxModel", config: Config) -> str | None:
        """Have the ONNX file answer some test images; return in words how that contradicts the answers, or None.

        Raises:
            ValueError: The file does not run on them.
        """

    def answer(self, model: "OnnxModel", extra_sets: "list[ExtraSet]", config: Config, *, has_encoder: bool) -> Answers:
        """Have an ONNX file answer what `measure` needs.

        Raises:
            ValueError: The file does not run on the images.
        """


def task_of(name: str) -> Task:
    """Return the module of the task that params.yaml or dataset.json names."""
    from pipelines.tasks import classification, segmentation  # slow to import: torch

    return segmentation if name == "segmentation" else classification
