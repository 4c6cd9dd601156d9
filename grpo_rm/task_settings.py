"""What cannot be asked for with a task: it is refused before hours of training."""

from typing import TYPE_CHECKING

from grpo_rm.config_errors import several

if TYPE_CHECKING:
    from grpo_rm.config import Config, Training

DENSE_ONLY = ("val_miou", "val_pixel_accuracy")
CLASSIFICATION_ONLY = ("val_accuracy", "val_knn_")  # what the names of metrics begin with


def check_task(config: "Config") -> None:
    """Refuse settings that the task has not.

    Raises:
        ValidationError: A mistake for each of them.
    """
    is_dense = config.task == "segmentation"
    mistakes: dict[tuple[str, ...], str] = {}
    for name, training in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if why := _why_not_monitored(training, is_dense=is_dense):
            mistakes[name, "monitor"] = why
        if is_dense and training.knn_every:
            mistakes[name, "knn_every"] = f"got {training.knn_every}, expected 0 with task segmentation: set it to 0"
    if mistakes := mistakes | (_of_dense_tasks(config) if is_dense else {}):
        raise several(mistakes)


def _why_not_monitored(training: "Training", *, is_dense: bool) -> str | None:
    if is_dense and training.monitor.startswith(CLASSIFICATION_ONLY):
        return f"got {training.monitor}, expected val_miou, val_pixel_accuracy or val_nll with task segmentation"
    if not is_dense and training.monitor in DENSE_ONLY:
        return f"got {training.monitor}, which is of task segmentation: expected val_accuracy or val_nll"
    return None


def _of_dense_tasks(config: "Config") -> dict[tuple[str, ...], str]:
    """Return what dense tasks have not, and is asked for."""
    asked: dict[tuple[str, ...], tuple[bool, str, object]] = {
        ("evaluate", "robustness", "images"): (bool(images := config.evaluate.robustness.images), f"{images}", 0),
        ("evaluate", "extra_sets"): (bool(sets := config.evaluate.extra_sets), ", ".join(sets), "{}"),
        ("encoder", "head"): (config.encoder.head != "linear", config.encoder.head, "linear (see segmentation.head)"),
        ("export", "int8"): (config.export.int8, "true", "false"),
    }
    return {
        key: f"got {got}, which is of classification: expected {expected} with task segmentation, so write that"
        for key, (is_asked, got, expected) in asked.items()
        if is_asked
    }
