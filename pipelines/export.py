"""Stage export: the GRPO-RM model as one ONNX file that equals torch, or the stage fails."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_rm.config import load_config
from pipelines.stage import run_stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from grpo_rm.config import Export
    from grpo_rm.dense_model import DenseModel
    from grpo_rm.export import Parity
    from grpo_rm.model import DenseConfig, Model, ModelConfig

MODEL = Path("models/finetune/grpo_rm")
ONNX = Path("models/onnx/encoder.onnx")
REPORT = Path("reports/export.json")
SELF_TEST_IMAGES = 8


def main() -> None:
    """Export, prove parity, measure size and latency; where it is asked for, the int8 file likewise."""
    config = load_config()

    from grpo_rm.checkpoint import load_model  # slow to import: torch
    from grpo_rm.model import ModelConfig
    from pipelines.int8 import export_int8, remove_int8

    model = load_model(MODEL)
    images, report = export_model(model, config.export, window=config.segmentation.window)
    remove_int8(ONNX)  # of a run with other parameters
    if config.export.int8:
        assert isinstance(model.config, ModelConfig)  # refused with another task
        report["int8"] = export_int8(ONNX, model.config, images[:SELF_TEST_IMAGES], config.export)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    worst = max(p["max_abs_error"] for p in report["parity"].values())
    print(f"export: {ONNX}, {report['bytes'] / 1e6:.1f} MB, largest difference from torch {worst:.1e}")


def export_model(
    model: "Model | DenseModel", export: "Export", *, window: int | None
) -> "tuple[NDArray[np.uint8], dict[str, Any]]":
    """Write the ONNX file and its self-test, and return example images and the report.

    Args:
        model: On the CPU.
        export: The parameters.
        window: Side of the windows that a dense model is measured with; None: whole images.

    Raises:
        ValueError: It cannot be exported, or does not say what torch says.
    """
    from grpo_rm.dense_model import DenseModel
    from pipelines.onnx_model import SELF_TEST, self_test

    ONNX.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(model, DenseModel):
        exported = _export_dense(model, export, window)
    else:
        exported = _export_image_model(model, export)
    check_parity(exported.parity, max_abs_error=export.max_abs_error, min_cosine=export.min_cosine)
    stored = ONNX.with_name(SELF_TEST)
    write_self_test(exported.model, exported.images[:SELF_TEST_IMAGES], stored, export)
    self_test(ONNX, stored)
    return exported.images, {
        "bytes": ONNX.stat().st_size,
        "parity": {
            name: {"max_abs_error": p.max_abs_error, "min_cosine": p.min_cosine}
            for name, p in zip(exported.names, exported.parity, strict=True)
        },
        "latency_ms": measure_latency(exported.model, exported.images, exported.batches),
    }


class Exported(NamedTuple):
    """What was written, and the proof.

    Attributes:
        model: In torch, as the file has it.
        images: Test images as it gets them, (N, H, W, C).
        parity: On batches of them.
        names: Of these batches, in the report.
        batches: How many images latency is measured on.
    """

    model: "nn.Module"
    images: "NDArray[np.uint8]"
    parity: "list[Parity]"
    names: list[str]
    batches: tuple[int, ...]


def _export_image_model(model: "Model", export: "Export") -> Exported:
    from grpo_rm.export import export_onnx, measure_parity
    from pipelines.latency import BATCHES

    config = model.config
    preprocessing = {
        "image_size": config.image_size,
        "channels": config.channels,
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
    }
    images = example_images(config)
    export_onnx(model, ONNX, opset=export.opset, metadata=onnx_metadata(config, preprocessing))
    parity = measure_parity(model, ONNX, images)
    return Exported(model, images, parity, [str(p.batch_size) for p in parity], BATCHES)


def _export_dense(model: "DenseModel", export: "Export", window: int | None) -> Exported:
    from grpo_rm.dense_export import measure_dense_parity, trace_dense
    from grpo_rm.export import save_onnx
    from pipelines.dense_export import check_sizes, dense_examples, dense_preprocessing
    from pipelines.latency import DENSE_BATCHES

    program, pooled = trace_dense(model, opset=export.opset)
    if pooled.fixed_size is not None:
        print(
            f"export: torch cannot write {model.config.encoder} for images of any size: the file pads all to "
            f"{pooled.fixed_size} x {pooled.fixed_size} pixels, and larger ones are shrunk to fit before. Set "
            "encoder.image_size to the size of the images, or use another encoder"
        )
        check_sizes(pooled.fixed_size, window)
    if window is not None:
        print(
            f"export: measured with windows of {window} pixels, but the file and the server run whole images: of those "
            "that are larger they may say something else than what was measured"
        )
    save_onnx(program, ONNX, onnx_metadata(model.config, dense_preprocessing(pooled, window)))
    images = dense_examples(pooled, SELF_TEST_IMAGES, window=window)
    parity = measure_dense_parity(pooled, ONNX, images)
    names = [f"{p.batch_size} x {p.size[0]} x {p.size[1]}" for p in parity]
    return Exported(pooled, images, parity, names, DENSE_BATCHES)


def onnx_metadata(model: "ModelConfig | DenseConfig", preprocessing: dict[str, Any]) -> dict[str, str]:
    """Return what the file says of itself: how to feed it, what it answers, and what it was made from."""
    from pipelines.lineage import sha256

    return {
        "grpo_rm.task": model.task,
        "grpo_rm.encoder": model.encoder,
        "grpo_rm.classes": json.dumps(model.classes),
        "grpo_rm.preprocessing": json.dumps(preprocessing),
        "grpo_rm.model_sha256": sha256(MODEL / "model.safetensors"),
        "grpo_rm.training": (MODEL / "training.json").read_text(encoding="utf-8"),
    }


def example_images(model: "ModelConfig") -> "NDArray[np.uint8]":
    """Return the first test images as the model gets them: (N, H, W, C)."""
    from grpo_rm.export import PARITY_BATCHES
    from pipelines.batches import evaluation_batches

    images, _ = next(evaluation_batches(model, "test").epoch(0))
    return images[: max(PARITY_BATCHES)].numpy()


def check_parity(parity: "list[Parity]", *, max_abs_error: float, min_cosine: float) -> None:
    """Refuse a file that does not say what torch says.

    Raises:
        ValueError: A batch is over a limit.
    """
    bad = [p for p in parity if not (p.max_abs_error <= max_abs_error and p.min_cosine >= min_cosine)]
    if bad:
        raise ValueError(
            f"the ONNX file differs from torch: {', '.join(str(asdict(p)) for p in bad)}; expected max_abs_error <= "
            f"{max_abs_error:g} and min_cosine >= {min_cosine:g}. Try another export.opset; if the model is "
            "numerically harder than that, widen export.max_abs_error"
        )


def write_self_test(model: "nn.Module", images: "NDArray[np.uint8]", path: Path, limits: "Export") -> None:
    """Write images and torch's answers to them, which travel with the model: `pipelines.onnx_model.self_test`.

    The same model gives the same bytes: torch adds up on one thread, and numpy puts no time into the file.
    """
    import numpy as np
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            embedding, logits = (output.numpy() for output in model.eval()(torch.from_numpy(images)))
    finally:
        torch.set_num_threads(threads)
    np.savez(
        path,
        images=images,
        embedding=embedding,
        logits=logits,
        max_abs_error=np.float64(limits.max_abs_error),
        min_cosine=np.float64(limits.min_cosine),
    )


def measure_latency(
    model: "nn.Module", images: "NDArray[np.uint8]", batches: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Return the median time of a batch in milliseconds, torch and onnxruntime, on this machine's CPU."""
    import torch

    from pipelines.latency import batch_of, median_ms, onnx_latency

    onnx_ms = onnx_latency(ONNX, images, batches)
    result: dict[str, dict[str, float]] = {}
    for size in batches:
        with torch.inference_mode():
            torch_ms = median_ms(model, torch.from_numpy(batch_of(images, size)))
        result[str(size)] = {"torch": torch_ms, "onnxruntime": onnx_ms[str(size)]}
    return result


if __name__ == "__main__":
    run_stage(main, description=__doc__)
