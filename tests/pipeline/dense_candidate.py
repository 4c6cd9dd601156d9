"""A tiny segmentation set, models of it and their ONNX file, as the stages before `evaluate` leave them."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import yaml
from image_sets import encode, prepare_made, segmentation
from onnx import numpy_helper

from grpo_rm.checkpoint import save_model
from grpo_rm.config import Config
from grpo_rm.datasets import read_dataset
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_export import trace_dense
from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_sites import upsample
from grpo_rm.export import save_onnx
from grpo_rm.masks import VOID
from grpo_rm.model import DenseConfig
from grpo_rm.transforms import decode
from pipelines.dense_export import dense_preprocessing
from pipelines.models import DIRECTORIES

PREPARED, ONNX = Path("data/prepared"), Path("models/onnx/encoder.onnx")
PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
COLORS = np.array([(60, 60, 60), (200, 70, 60), (60, 80, 210)])
SIDE = 32


def draw(seed: int, size: tuple[int, int] = (SIDE, SIDE), *, is_ringed: bool = False) -> tuple[bytes, bytes]:
    """Return an image with a rectangle of class 1 or 2 in it, void above it or all around it, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=np.uint8)
    top, left = rng.integers(3, 9, 2)
    mask[top - 2 : top + 15 * is_ringed, left - is_ringed : left + 12 + is_ringed] = 255
    mask[top : top + 14, left : left + 12] = 1 + seed % 2
    pixels = COLORS[np.where(mask == 255, 0, mask)] + rng.normal(0, 12, (*size, 3))
    return encode(np.clip(pixels, 0, 255).astype(np.uint8)), encode(mask)


def prepare_scenes(
    count: int, *, sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),), is_ringed: bool = False
) -> None:
    """Prepare drawn images; one after the other has the next of these sizes."""
    drawn = {f"{seed:03d}.png": draw(seed, sizes[seed % len(sizes)], is_ringed=is_ringed) for seed in range(count)}
    files, masks = ({name: pair[part] for name, pair in drawn.items()} for part in (0, 1))
    prepare_made(segmentation(files, masks, [0, 1, 2]), PREPARED, void_index=255)


def config_of(*, window: int | None = None, **gate: dict[str, float]) -> Config:
    """Return params.yaml for this set, with these limits in the gate."""
    values = json.loads(json.dumps(PARAMS))
    values["task"] = "segmentation"
    values["loader"]["workers"] = 0
    values["encoder"] |= {"image_size": SIDE, "channels": 3}
    values["segmentation"] |= {"strides": [4, 8], "width": 16, "window": window}
    for block in ("pretrain", "finetune"):
        values[block]["monitor"] = "val_miou"
    values["evaluate"] |= {"robustness": {"images": 0}, "bootstrap_resamples": 500, "knn_k": [5]}
    limits = {"thresholds": {"miou": 0.5}, "min_gain_over_control": {"miou": -1.0}}
    values["register"]["gate"] |= limits | {"min_gain_over_champion": {"miou": -0.5}} | gate
    return Config.model_validate(values)


def trained(steps: int, seed: int = 0) -> DenseModel:
    """Return a model after some steps of cross-entropy."""
    torch.manual_seed(seed)
    classes = read_dataset(PREPARED)["classes"]
    config = DenseConfig(
        "test_resnet",
        3,
        SIDE,
        "bilinear",
        [0.5] * 3,
        [0.25] * 3,
        classes,
        [4, 8],
        head="decoder",
        width=16,
    )
    model = DenseModel(config)
    split = read_dense_split(PREPARED, "train")
    rows = [row for row in range(len(split.ids)) if split.masks[row].shape == (SIDE, SIDE)]
    images = torch.from_numpy(np.stack([np.asarray(decode(split.files[row], channels=3)) for row in rows]))
    masks = torch.from_numpy(np.stack([split.masks[row] for row in rows])).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        _, logits = model(images)
        loss = F.cross_entropy(upsample(logits, (SIDE, SIDE), model.stride), masks, ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save_arms() -> None:
    """Save three models that differ; the candidate knows the classes."""
    for (_, directory), (steps, seed) in zip(DIRECTORIES.items(), ((2, 0), (25, 1), (15, 2)), strict=True):
        save_model(trained(steps, seed), directory)


def write_onnx(model: DenseModel, path: Path = ONNX) -> None:
    """Write the file that stage export writes, and its report."""
    program, pooled = trace_dense(model, opset=20)
    metadata = {
        "grpo_rm.task": "segmentation",
        "grpo_rm.classes": json.dumps(model.config.classes),
        "grpo_rm.preprocessing": json.dumps(dense_preprocessing(pooled, None)),
        "grpo_rm.training": json.dumps({"data": None, "split": read_dataset(PREPARED)["split"]}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_onnx(program, path, metadata)
    Path("reports").mkdir(exist_ok=True)
    Path("reports/export.json").write_text(json.dumps({"latency_ms": {"1": {"onnxruntime": 1.0}}}))


def set_head(path: Path, *, bias: list[float]) -> None:
    """Have an ONNX file say the same of every pixel; to export another model takes long."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("classify.weight"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
        if tensor.name.endswith("classify.bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.array(bias, dtype=np.float32), tensor.name))
    onnx.save(model, path)
