"""Stage export: the GRPO-RM model as one ONNX file that equals torch, or the stage fails."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import load_config
from pipelines.stage import run_stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from grpo_rm.config import Export
    from grpo_rm.export import Parity
    from grpo_rm.model import Model, ModelConfig

MODEL = Path("models/finetune/grpo_rm")
ONNX = Path("models/onnx/encoder.onnx")
REPORT = Path("reports/export.json")
SELF_TEST_IMAGES = 8


def main() -> None:
    """Export, prove parity, measure size and latency; where it is asked for, the int8 file likewise."""
    config = load_config()

    from grpo_rm.checkpoint import load_model  # slow to import: torch
    from grpo_rm.export import export_onnx, measure_parity
    from pipelines.int8 import export_int8, remove_int8
    from pipelines.onnx_model import SELF_TEST, self_test

    model = load_model(MODEL)
    images = example_images(model.config)
    ONNX.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, ONNX, opset=config.export.opset, metadata=onnx_metadata(model.config))
    parity = measure_parity(model, ONNX, images)
    check_parity(parity, max_abs_error=config.export.max_abs_error, min_cosine=config.export.min_cosine)
    stored = ONNX.with_name(SELF_TEST)
    write_self_test(model, images[:SELF_TEST_IMAGES], stored, config.export)
    self_test(ONNX, stored)
    size = ONNX.stat().st_size
    report: dict[str, Any] = {
        "bytes": size,
        "parity": {str(p.batch_size): {"max_abs_error": p.max_abs_error, "min_cosine": p.min_cosine} for p in parity},
        "latency_ms": measure_latency(model, images),
    }
    remove_int8(ONNX)  # of a run with other parameters
    if config.export.int8:
        report["int8"] = export_int8(ONNX, model.config, images[:SELF_TEST_IMAGES], config.export)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    worst = max(p.max_abs_error for p in parity)
    print(f"export: {ONNX}, {size / 1e6:.1f} MB, largest difference from torch {worst:.1e}")


def onnx_metadata(model: "ModelConfig") -> dict[str, str]:
    """Return what the file says of itself: how to feed it, what it answers, and what it was made from."""
    from pipelines.lineage import sha256

    return {
        "grpo_rm.task": model.task,
        "grpo_rm.encoder": model.encoder,
        "grpo_rm.classes": json.dumps(model.classes),
        "grpo_rm.preprocessing": json.dumps(
            {
                "image_size": model.image_size,
                "channels": model.channels,
                "crop_pct": model.crop_pct,
                "interpolation": model.interpolation,
            }
        ),
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


def write_self_test(model: "Model", images: "NDArray[np.uint8]", path: Path, limits: "Export") -> None:
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


def measure_latency(model: "Model", images: "NDArray[np.uint8]") -> dict[str, dict[str, float]]:
    """Return the median time of a batch in milliseconds, torch and onnxruntime, on this machine's CPU."""
    import torch

    from pipelines.latency import BATCHES, batch_of, median_ms, onnx_latency

    onnx_ms = onnx_latency(ONNX, images)
    result: dict[str, dict[str, float]] = {}
    for size in BATCHES:
        with torch.inference_mode():
            torch_ms = median_ms(model, torch.from_numpy(batch_of(images, size)))
        result[str(size)] = {"torch": torch_ms, "onnxruntime": onnx_ms[str(size)]}
    return result


if __name__ == "__main__":
    run_stage(main, description=__doc__)
