"""The int8 file of stage export: made, measured against float32 on validation images, given a self-test of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_model import INT8, INT8_SELF_TEST, OUTPUTS, self_test

if TYPE_CHECKING:
    from grpo_rm.config import Export
    from grpo_rm.model import ModelConfig

    Answers = tuple[NDArray[np.float32], NDArray[np.float32]]  # embeddings (N, D), logits (N, K)

CALIBRATION_IMAGES = 256
MEASURED_IMAGES = 1000  # of each split
KNN_K, KNN_TEMPERATURE = 10, 0.07
# Below it quantization has failed: what does its work stays above 0.98, the wrong way for a ViT gave 0.92.
MIN_COSINE = 0.95
# Between two CPUs, where the integers are the same and only the floating point between them may round otherwise.
OWN_MIN_COSINE = 0.999


def export_int8(onnx: Path, config: "ModelConfig", images: NDArray[np.uint8], limits: "Export") -> dict[str, Any]:
    """Write the int8 file and its self-test beside the float32 file, and return what reports/export.json says of it.

    Ranges come from training images, the comparison is on validation images: test images decide nothing.

    Args:
        onnx: The float32 file.
        config: Of the model.
        images: Of the self-test: (N, H, W, C).
        limits: Of the float32 file.

    Raises:
        ValueError: The embeddings are too far from float32's.
    """
    from grpo_rm.quantization import quantize_onnx
    from pipelines.latency import onnx_latency

    target, stored = onnx.with_name(INT8), onnx.with_name(INT8_SELF_TEST)
    train, validation = (read_images(config, split) for split in ("train", "val"))
    quantize_onnx(onnx, target, train[0][spread(len(train[0]), CALIBRATION_IMAGES)])
    comparison = compare(onnx, target, train, validation)
    check_cosine(comparison["cosine"]["min"])
    write_self_test(onnx, target, images, stored, limits)
    self_test(target, stored)
    return {
        "bytes": target.stat().st_size,
        "latency_ms": onnx_latency(target, images),
        **comparison,
    }


def remove_int8(onnx: Path) -> None:
    """Remove the int8 file and its self-test, where they are there."""
    for name in (INT8, INT8_SELF_TEST):
        onnx.with_name(name).unlink(missing_ok=True)


def check_cosine(smallest: float) -> None:
    """Refuse an int8 model that is not the same model any more.

    Raises:
        ValueError: The smallest cosine is below `MIN_COSINE`.
    """
    if not smallest >= MIN_COSINE:  # NaN fails
        raise ValueError(
            f"the int8 model differs from float32: the smallest cosine of a validation image's two embeddings is "
            f"{smallest:.4f}, expected at least {MIN_COSINE:g}. This encoder does not stand int8: set export.int8 to "
            "false"
        )


def read_images(config: "ModelConfig", split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return up to 1,000 images of a split as the model gets them, (N, H, W, C), and their labels (N,)."""
    from grpo_rm.datasets import read_split
    from grpo_rm.transforms import decode, evaluation_view
    from pipelines.batches import PREPARED

    data = read_split(PREPARED, split)
    rows = spread(len(data.files), MEASURED_IMAGES)
    images = [
        evaluation_view(
            decode(data.files[row], channels=config.channels),
            size=config.image_size,
            crop_pct=config.crop_pct,
            interpolation=config.interpolation,
        )
        for row in rows
    ]
    return np.stack(images), data.labels[rows]


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Return `count` rows out of `total` at equal distances: all classes, also where rows are in their order."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def compare(
    full: Path,
    int8: Path,
    train: tuple[NDArray[np.uint8], NDArray[np.int64]],
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> dict[str, dict[str, float]]:
    """Return the cosine of int8 to float32, and the accuracies of int8 and how far they are from float32's.

    Args:
        full: The float32 file.
        int8: The int8 file.
        train: Images and labels, the neighbors of k-NN.
        validation: Images and labels, on which all is measured.
    """
    from grpo_rm.export import cosines

    answers, neighbors = ([run(path, images) for path in (full, int8)] for images in (validation[0], train[0]))
    cosine = cosines(*(embedding for embedding, _ in answers))
    accuracy = [float(np.mean(logits.argmax(axis=1) == validation[1])) for _, logits in answers]
    knn = [
        knn_accuracy(near[0], train[1], answer[0], validation[1])
        for near, answer in zip(neighbors, answers, strict=True)
    ]
    return {
        "cosine": {"min": float(cosine.min()), "median": float(np.median(cosine))},
        "val": {
            "accuracy": accuracy[1],
            "accuracy_difference": accuracy[1] - accuracy[0],
            "knn_top1": knn[1],
            "knn_top1_difference": knn[1] - knn[0],
        },
    }


def knn_accuracy(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> float:
    """Return the share of images that their 10 nearest training images classify right."""
    import torch

    from grpo_rm.evaluation.knn import knn_predictions

    k = min(KNN_K, len(train))
    predicted = knn_predictions(
        torch.from_numpy(train),
        torch.from_numpy(train_labels),
        torch.from_numpy(embeddings),
        ks=[k],
        temperature=KNN_TEMPERATURE,
        num_classes=int(max(train_labels.max(), labels.max())) + 1,
    )[k]
    return float(np.mean(predicted.numpy() == labels))


def write_self_test(full: Path, int8: Path, images: NDArray[np.uint8], path: Path, limits: "Export") -> None:
    """Write images and the int8 model's own answers, and how far another CPU may be from them.

    As the weights leave room for their sums (see `grpo_rm.quantization`), CPUs of other kinds compute the same
    integers. What remains is far less than quantization itself has changed, which is what the limit allows.
    """
    answers, exact = run(int8, images, threads=1), run(full, images, threads=1)
    difference = max(float(np.abs(a - e).max()) for a, e in zip(answers, exact, strict=True))
    np.savez(
        path,
        images=images,
        embedding=answers[0],
        logits=answers[1],
        max_abs_error=np.float64(max(difference, limits.max_abs_error)),
        min_cosine=np.float64(OWN_MIN_COSINE),
    )


def run(path: Path, images: NDArray[np.uint8], *, threads: int = 0) -> "Answers":
    """Return embeddings (N, D) and logits (N, K), in batches as a server has them.

    Args:
        path: The ONNX file.
        images: (N, H, W, C).
        threads: 0 takes all cores.
    """
    import onnxruntime

    from grpo_rm.export import PARITY_BATCHES

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    size = max(PARITY_BATCHES)
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    answers = [session.run(list(OUTPUTS), {"images": batch}) for batch in batches]
    embedding, logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return embedding, logits
