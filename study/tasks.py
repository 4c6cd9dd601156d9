"""The tasks. Validation and test images are clean and balanced in all of them, but for the given splits of CamVid and
the seeded ones of the digits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study import images
from study.arms import ARMS, CONTROL, Arm
from study.costs import COSTS


@dataclass(frozen=True)
class Task:
    """What the arms are compared on.

    Attributes:
        name: Of its workspace too.
        about: What it is.
        params: What differs from params.yaml, in the same blocks.
        write: Writes its images, given the folder to make and the folder of shared data; None: they are embedded.
        needs: What the shared data must have.
        start: The workspace with the pretrained model that trainings start from; None: weights drawn by their seed.
        shifted: Name of the task that is the same models on corrupted test images; None: there is none.
        rates: The learning rates that every arm is tuned over.
    """

    name: str
    about: str
    params: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[Path, Path], None] | None = None
    needs: tuple[str, ...] = ()
    start: str | None = None
    shifted: str | None = None
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)

    @property
    def has_costs(self) -> bool:
        """Whether confusions have costs."""
        return self.params.get("objective", {}).get("cost_matrix") is not None

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms it is studied with, by name."""
        return {name: arm for name, arm in ARMS.items() if name == CONTROL or arm.needs_costs == self.has_costs}


NPZ = {"source": "npz:images"}
EXPERIMENT = "study"
TRACKING = {"experiment": EXPERIMENT, "system_metrics_interval": 10}


def _gray(epochs: int) -> dict[str, Any]:
    return {"data": NPZ, "finetune": {"epochs": epochs}, "tracking": TRACKING}


def _color(epochs: int) -> dict[str, Any]:
    augmentation = {"min_crop": 0.7, "flip": True}
    return {
        "data": NPZ,
        "encoder": {"channels": 3},
        "pretrain": {"epochs": 20, "augmentation": augmentation},
        "finetune": {"epochs": epochs, "augmentation": augmentation},
        "tracking": TRACKING,
    }


WITH_COSTS = {"rewards": {"accuracy": 1.0, "uniformity": 1.0, "cost_matrix": 0.0}, "cost_matrix": str(COSTS)}
GATES = ("thresholds", "min_gain_over_control", "min_gain_over_champion")
CAMVID = {
    "task": "segmentation",
    "data": {"source": "folder:images", "void_index": 11, "resize_on_prepare": 90},
    "encoder": {"name": "regnetx_002", "channels": 3, "image_size": 64, "interpolation": "bilinear"},
    "segmentation": {"width": 64},
    "pretrain": {
        "epochs": 20,
        "batch_size": 8,
        "augmentation": {"min_crop": 0.4, "flip": True},
        "channels_last": True,
        "monitor": "val_miou",
    },
    "finetune": {
        "epochs": 4,
        "batch_size": 8,
        "augmentation": {"min_crop": 0.4, "flip": True},
        "channels_last": True,
        "monitor": "val_miou",
    },
    "evaluate": {"robustness": {"images": 0}},
    "register": {"gate": {name: {"miou": 0.0} for name in GATES}},  # not used, but parameters have to fit together
    "tracking": TRACKING,
}

ENCODER = Task(
    "tiny_encoder",
    "the encoder pretrained elsewhere: cross-entropy on 30 classes of Tiny-ImageNet-50 at 32 x 32",
    _color(8),
    images.write_pretraining,
    needs=(images.TINY,),
)
STUDIED = (
    Task("digits", "the product's default: 1,797 digits, from scratch", {"tracking": TRACKING}),
    Task(
        "fashion",
        "Fashion-MNIST, 200 training images a class, from scratch",
        _gray(15),
        images.write_fashion,
        needs=(images.FASHION,),
    ),
    Task(
        "tiny",
        "natural images of 20 classes, 150 training images each, with an encoder pretrained on 30 others",
        _color(8),
        images.write_tiny,
        needs=(images.TINY,),
        start=ENCODER.name,
        shifted="shifted",
    ),
    Task(
        "long_tail",
        "Fashion-MNIST, from 600 training images of a class down to 12, from scratch",
        _gray(15),
        images.write_long_tail,
        needs=(images.FASHION,),
    ),
    Task(
        "noisy_20",
        "Fashion-MNIST, 400 training images a class, 20 % of their labels wrong; validation is clean, which is an "
        "optimistic case for all arms",
        _gray(10),
        images.write_noisy_20,
        needs=(images.FASHION,),
    ),
    Task(
        "noisy_40",
        "the same with 40 % of the labels wrong",
        _gray(10),
        images.write_noisy_40,
        needs=(images.FASHION,),
    ),
    Task(
        "few_shot",
        "the classes, the encoder, validation and test of tiny, 10 training images a class",
        _color(30),
        images.write_few_shot,
        needs=(images.TINY,),
        start=ENCODER.name,
    ),
    Task(
        "costs",
        "the images of fashion, a cost for each confusion; pretrained on them by cross-entropy",
        _gray(8) | {"objective": WITH_COSTS, "pretrain": {"epochs": 8}},
        images.write_fashion,
        needs=(images.FASHION,),
        start="costs",
    ),
    Task(
        "camvid",
        "street scenes in 11 classes at 120 x 90, pretrained from scratch on the same images",
        CAMVID,
        images.link_camvid,
        needs=("camvid",),
        start="camvid",
        rates=(1e-4, 3e-4, 1e-3, 3e-3),
    ),
)
TASKS = {task.name: task for task in STUDIED}
NAMES = tuple(name for task in STUDIED for name in (task.name, task.shifted) if name)  # as rows have them


def find_workspace_task(name: str) -> Task:
    """Return a task, or that of a pretraining, by the name of its workspace."""
    return ENCODER if name == ENCODER.name else TASKS[name]
