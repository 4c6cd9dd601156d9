"""What evaluation gives a model of the images that are held out: whole, or by windows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def too_long(side: int, window: int | None, *, prepared: Path) -> int | None:
    """Return the longest side of a validation or test image, where evaluation gives a model more than it takes.

    Args:
        side: The longest one that the model takes.
        window: Side of the windows that slide over an image; None: it is given whole.
        prepared: Where the prepared data are.

    Returns:
        None where all that it is given fits.
    """
    if window is not None and window <= side:
        return None
    manifest = pq.read_table(prepared / "manifest.parquet", columns=["width", "height", "split"])
    held_out = manifest.filter(pc.is_in(manifest["split"], pa.array(["val", "test"])))
    longest = max(pc.max(held_out[name]).as_py() for name in ("width", "height"))
    return int(longest) if longest > side else None
