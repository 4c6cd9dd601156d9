"""What dense models say of the pixels of all images, and the Parquet files that keep it.

The logits of every pixel would fill a disk. Kept are the predicted class of each pixel, as a mask that anything can
open, and what follows from the logits and cannot be told from it: what each image adds to the metrics.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from grpo_rm.evaluation.boundary import boundary_f1
from grpo_rm.evaluation.calibration import NUM_BINS
from grpo_rm.evaluation.pixels import PixelSums, join_sums, pixel_sums
from grpo_rm.transforms import ImageError, open_mask
from pipelines.predictions import DAMAGE, RowWriter, damaged, read_table

BINS = ("confidence", "right", "count")
COLUMNS = ["id", "split", "confusion", "nll", *BINS, "boundary_f1", "mask"]
BYTE = 256  # classes that fit into 8 bits

Classes = NDArray[np.int64]  # (H, W) class indices


@dataclass(frozen=True)
class DenseOutputs:
    """What a model says about N images.

    Attributes:
        sums: What the pixels of each add to the metrics.
        boundary: (N, K), see `boundary_f1`: NaN where a class has no boundary.
        masks: Of each, the predicted class of each pixel, at the image's own size; see `decode_classes`.
    """

    sums: PixelSums
    boundary: NDArray[np.float64]
    masks: list[bytes]

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> "DenseOutputs":
        """Return some images, in the order of `rows`."""
        chosen = np.asarray(rows)
        sums = PixelSums(*(getattr(self.sums, field.name)[chosen] for field in fields(PixelSums)))
        return DenseOutputs(sums, self.boundary[chosen], [self.masks[row] for row in chosen])


def outputs_of(logits: Tensor, masks: Tensor) -> DenseOutputs:
    """Return what a batch of logits says.

    Args:
        logits: (B, K, H, W), at the size of the images.
        masks: (B, H, W) class indices, below 0 where a pixel does not count; on any device.

    Raises:
        ValueError: See `pixel_sums`.
    """
    sums = pixel_sums(logits, masks.to(logits.device))
    classes = logits.argmax(dim=1).cpu().numpy()
    boundary = boundary_f1(classes, masks.cpu().numpy(), logits.shape[1])
    return DenseOutputs(sums, boundary, [encode_classes(one, logits.shape[1]) for one in classes])


def join_outputs(parts: Sequence[DenseOutputs]) -> DenseOutputs:
    """Join the batches of a split, in their order."""
    masks = [mask for part in parts for mask in part.masks]
    return DenseOutputs(
        join_sums([part.sums for part in parts]), np.concatenate([part.boundary for part in parts]), masks
    )


def encode_classes(classes: Classes, num_classes: int) -> bytes:
    """Return a PNG whose values are class indices: 8 bits, or 16 where there are more than 256 classes."""
    file = io.BytesIO()
    Image.fromarray(classes.astype(np.uint8 if num_classes <= BYTE else np.uint16)).save(file, "PNG")
    return file.getvalue()


def decode_classes(mask: bytes) -> Classes:
    """Return the class indices (H, W) that `encode_classes` wrote.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return np.asarray(open_mask(mask)).astype(np.int64)
    except ImageError as error:
        raise ValueError(f"a mask is damaged: {error}") from error


class DensePredictionsWriter(RowWriter):
    """Writes what a model says of images, a row each, split by split."""

    compression = "zstd"

    def write(self, split: str, ids: Sequence[str], outputs: DenseOutputs) -> None:
        """Add the images of a split, in its order."""
        columns = {
            "id": pa.array(list(ids), pa.string()),
            "split": pa.array([split] * len(ids), pa.string()),
            "confusion": _lists(outputs.sums.confusion),
            "nll": pa.array(outputs.sums.nll),
            **{name: _lists(getattr(outputs.sums, name)) for name in BINS},
            "boundary_f1": _lists(outputs.boundary),
            "mask": pa.array(outputs.masks, pa.binary()),
        }
        self.add(columns)


def read_dense_predictions(path: Path) -> tuple[dict[str, list[str]], dict[str, DenseOutputs]]:
    """Return ids, and what a model said, by split, in the order of `read_dense_split`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not what `DensePredictionsWriter` writes.
    """
    table = read_table(path, COLUMNS)
    try:
        rows = {name: table.filter(pc.field("split") == name) for name in table["split"].unique().to_pylist()}
        outputs = {name: _outputs(rows[name]) for name in rows}
    except DAMAGE as error:
        raise damaged(path, error) from error
    return {name: rows[name]["id"].to_pylist() for name in rows}, outputs


def _outputs(rows: pa.Table) -> DenseOutputs:
    boundary = _array(rows["boundary_f1"], np.float64, -1)
    num_classes = boundary.shape[1]
    sums = PixelSums(
        confusion=_array(rows["confusion"], np.int64, num_classes, num_classes),
        nll=rows["nll"].to_numpy(),
        confidence=_array(rows["confidence"], np.float64, NUM_BINS),
        right=_array(rows["right"], np.int64, NUM_BINS),
        count=_array(rows["count"], np.int64, NUM_BINS),
    )
    return DenseOutputs(sums, boundary, rows["mask"].to_pylist())


def _lists(values: NDArray[Any]) -> pa.Array:
    """Return a column with what each image has, flat, as a list; null for NaN."""
    flat = values.reshape(len(values), -1)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.ravel(), from_pandas=True))


def _array(column: pa.ChunkedArray, kind: type[np.generic], *shape: int) -> NDArray[Any]:
    """Return lists as (rows, *shape), NaN for null.

    Raises:
        ValueError: They are of other lengths.
    """
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).unique().to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"got lists of lengths {lengths}, expected the same for all images")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.array(values, dtype=kind).reshape(len(lists), *shape)
