"""The index of embeddings in which similar images are looked up. It belongs to one model.

    DIRECTORY/<the first 12 digits of model_sha256>/
        index.json        what it is (`Description`), and the names of the two others
        *.faiss           an index of faiss by inner product over normalized embeddings: a product is a cosine
        *.sqlite          a table `items`, for each row of it the id, label and thumbnail (JPEG)

index.json is written last, over the former one: so it is the one file that says that there is a new index. The others
have names of their own each time.
"""

import hashlib
import json
import logging
import sqlite3
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from serving.inference import NotReadyError
from serving.model import first_line

FORMAT = 1
DESCRIPTION = "index.json"
ITEMS_TABLE = "create table items (row integer primary key, id text not null, label text, thumbnail blob)"


class NoIndexError(NotReadyError):
    """There is no index of the live model, or none that can be used."""


@dataclass(frozen=True)
class Description:
    """What index.json says.

    Attributes:
        format: Of the directory; this module reads 1.
        model_sha256: Of the weights the embeddings are of.
        name: Of the model, for people; likewise `version`.
        version: See there.
        data_hash: DVC's hash of the data the model was trained on.
        sources: Where the images were.
        created: When, in UTC.
        count: How many images.
        dimension: D of their embeddings.
        vectors: Name of the file of faiss.
        vectors_sha256: Its SHA-256; "" is not checked.
        items: Name of the SQLite file.
    """

    format: int
    model_sha256: str
    name: str
    version: str
    data_hash: str
    sources: Sequence[str]
    created: str
    count: int
    dimension: int
    vectors: str
    vectors_sha256: str
    items: str

    def to_json(self) -> str:
        """Return the text of index.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Neighbor:
    """A similar image.

    Attributes:
        id: Its path or id in the source of the index.
        label: Its class; None where it has none.
        similarity: The cosine of the two embeddings.
        thumbnail: A small JPEG; None where the index has none, or none was asked for.
    """

    id: str
    label: str | None
    similarity: float
    thumbnail: bytes | None


def directory_of(parent: Path, model_sha256: str) -> Path:
    """Return where the index of a model is."""
    return parent / model_sha256[:12]


def normalize(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the embeddings (N, D) with length 1; those of length 0 stay."""
    norms = np.linalg.norm(embedding, axis=1, keepdims=True)
    return np.ascontiguousarray(embedding / np.where(norms > 0, norms, 1), dtype=np.float32)


class Index:
    """An index in memory. Threads may share it.

    Attributes:
        description: What index.json says.
        state: Of index.json when it was read: it changes when there is a newer index.

    Raises:
        ValueError: The directory is not what this module describes.
        OSError: A file is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.state = state_of(directory)
        self.description = _read_description(directory / DESCRIPTION)
        self._vectors = _read_vectors(directory, self.description)
        self._items, self._lock = _open_items(directory, self.description), threading.Lock()
        weakref.finalize(self, self._items.close)  # with the last request that uses it

    def search(self, embedding: NDArray[np.float32], *, k: int, has_thumbnails: bool) -> list[list[Neighbor]]:
        """Return the `k` most similar images of each of N embeddings (N, D), the most similar first.

        Raises:
            NoIndexError: The embeddings are not of this index's dimension, or a file was damaged meanwhile.
        """
        if embedding.shape[1] != self.description.dimension:
            raise NoIndexError(
                f"the index holds embeddings of dimension {self.description.dimension}, the model's have "
                f"{embedding.shape[1]}: build it anew with `grpo-rm index`"
            )
        similarities, rows = self._vectors.search(normalize(embedding), min(k, self.description.count))
        return [self._neighbors(*pair, has_thumbnails) for pair in zip(similarities, rows, strict=True)]

    def _neighbors(
        self, similarities: NDArray[np.float32], rows: NDArray[np.int64], has_thumbnails: bool
    ) -> list[Neighbor]:
        order = np.lexsort((rows, -similarities))  # equal ones by row, so that answers do not change
        order = order[rows[order] >= 0]  # faiss fills up with -1 what an approximate index does not find
        items = self._read_items(rows[order].tolist(), has_thumbnails)
        cosines = np.clip(similarities[order], -1, 1).tolist()  # rounding errors go beyond
        return [Neighbor(id_, label, cosine, jpeg) for (id_, label, jpeg), cosine in zip(items, cosines, strict=True)]

    def _read_items(self, rows: list[int], has_thumbnails: bool) -> list[tuple[str, str | None, bytes | None]]:
        column = "thumbnail" if has_thumbnails else "null"
        query = f"select row, id, label, {column} from items where row in ({','.join('?' * len(rows))})"
        try:
            with self._lock:
                found = {row: tuple(item) for row, *item in self._items.execute(query, rows)}
            return [found[row] for row in rows]
        except (sqlite3.Error, KeyError) as error:
            raise NoIndexError(
                f"{self.description.items} of the index is damaged ({error}): build it anew with `grpo-rm index`"
            ) from error


def state_of(directory: Path) -> str:
    """Return what changes when there is a newer index.

    Raises:
        FileNotFoundError: There is none.
    """
    state = (directory / DESCRIPTION).stat()
    return f"{state.st_ino} {state.st_size} {state.st_mtime_ns}"


def _read_description(path: Path) -> Description:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT}")
        description = Description(**{each.name: content[each.name] for each in fields(Description)})
        if not (type(description.count) is type(description.dimension) is int and description.count > 0):
            raise ValueError(f"its count is {description.count!r}, expected a number above 0")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no description of an index: {error}") from error
    return description


def _read_vectors(directory: Path, description: Description) -> Any:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instructions of the CPU it tried
    import faiss  # not before there is an index

    path = directory / description.vectors
    _verify(path, description.vectors_sha256)
    try:
        vectors = faiss.read_index(str(path))
    except RuntimeError as error:  # its C++ source file and line come first
        raise ValueError(f"faiss cannot read {path.name}: {first_line(error)}") from error
    if vectors.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"{path.name} is not an index by inner product, expected one over normalized embeddings")
    if (vectors.ntotal, vectors.d) != (description.count, description.dimension):
        raise ValueError(
            f"{path.name} has {vectors.ntotal} embeddings of dimension {vectors.d}, but {DESCRIPTION} says "
            f"{description.count} of {description.dimension}"
        )
    if isinstance(vectors, faiss.IndexFlat):
        norms = np.linalg.norm(vectors.reconstruct_n(0, min(vectors.ntotal, 1000)), axis=1)
        if not (np.isclose(norms, 1, atol=1e-3) | (norms == 0)).all():
            raise ValueError(f"{path.name} has embeddings that are not normalized: their products are no cosines")
    return vectors


def _verify(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest() if expected else ""
    if actual != expected:
        raise ValueError(f"the SHA-256 of {path.name} is {actual}, but {DESCRIPTION} says {expected}")


def _open_items(directory: Path, description: Description) -> sqlite3.Connection:
    path = directory / description.items
    path.open("rb").close()  # for the error of a file that is not there
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True, check_same_thread=False
    )
    try:
        (last,) = connection.execute("select max(row) from items").fetchone()
        connection.execute("select id, label, thumbnail from items where row = 0").fetchone()
        if last != description.count - 1:
            raise ValueError(f"{path.name} ends with row {last}, expected {description.count - 1}")
    except (sqlite3.Error, ValueError) as error:
        connection.close()
        raise ValueError(f"{path.name} does not fit the index: {error}") from error
    return connection
