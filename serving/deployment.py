"""The model that answers requests, and how a version becomes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from serving.model import OnnxModel
from serving.registry import Registry, Version
from serving.selftest import check_self_test

# Names in the artifacts of a version, as mlflow.onnx.log_model gives them.
DESCRIPTION, ONNX, SELF_TEST = "MLmodel", "model.onnx", "extra_files/self_test.npz"
SHA256_TAG, SELF_TEST_TAG = "onnx.sha256", "self_test.sha256"


@dataclass(frozen=True)
class LiveModel:
    """A loaded model, and what a response says of it.

    Attributes:
        onnx: The model.
        name: Of the registered model, or of the file.
        version: Of the registered model, or the beginning of the file's SHA-256.
        data_hash: DVC's hash of the data it was trained on; "" where DVC did not record it.
        warnings: What could not be checked.
        loaded_at: When.
    """

    onnx: OnnxModel
    name: str
    version: str
    data_hash: str
    warnings: Sequence[str] = ()
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def headers(self) -> dict[str, str]:
        """Return the headers of every response that this model gives."""
        return {
            "X-Model-Name": quote(self.name),  # a header is ASCII, a name need not be
            "X-Model-Version": self.version,
            "X-Data-Hash": self.data_hash,
        }


class Deployment:
    """What is live, and why it is not something else. One thread writes it, all others read.

    Attributes:
        model: None until the first one is loaded. A request reads it once, so that a swap never meets it half way.
        error: Why the last attempt to follow the alias failed; None where it did not.
        reloads: How many versions of the alias went live, and how many were rejected.
    """

    def __init__(self, model: LiveModel | None = None) -> None:
        self.model = model
        self.error: str | None = None
        self.reloads = {"live": 0, "rejected": 0}


def load_file(path: Path, *, threads: int = 0) -> LiveModel:
    """Load an ONNX file of stage export.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not what stage export makes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}: run `make pipeline`, or name another with --model")
    model = OnnxModel(path, threads=threads)
    return LiveModel(model, path.name, _sha256(path)[:12], _data_hash(model))


def load_version(registry: Registry, version: Version, directory: Path, *, threads: int = 0) -> LiveModel:
    """Download a version, prove that it is what was registered and says what torch said, and warm it up.

    Args:
        registry: Where it is.
        version: Which.
        directory: Where its files are kept. A file that is there already is not downloaded again.
        threads: See OnnxModel.

    Raises:
        ValueError: A check failed.
        FileNotFoundError: It has no ONNX model.
        ConnectionError: The registry cannot be asked.
    """
    has_self_test = _download(registry, version, directory)
    if not has_self_test and SELF_TEST_TAG in version.tags:
        raise ValueError(f"the version has no {SELF_TEST}, but the tag {SELF_TEST_TAG}: register it anew")
    warnings = []
    if SHA256_TAG not in version.tags:
        warnings.append(f"the version has no tag {SHA256_TAG}, so that its file was not verified")
    _verify(version, SHA256_TAG, directory / ONNX)
    model = OnnxModel(directory / ONNX, threads=threads)
    if has_self_test:
        path = directory / Path(SELF_TEST).name
        _verify(version, SELF_TEST_TAG, path)
        check_self_test(model, path)
    else:
        warnings.append(f"the version has no {SELF_TEST}, so that its outputs were not compared with torch's")
    return LiveModel(model, version.name, version.version, _data_hash(model), warnings)


def _verify(version: Version, tag: str, path: Path) -> None:
    expected, actual = version.tags.get(tag), _sha256(path)
    if expected not in (None, actual):
        raise ValueError(f"the SHA-256 of {path.name} is {actual}, expected {expected} as the tag {tag} says")


def _download(registry: Registry, version: Version, directory: Path) -> bool:
    """Bring the files of a version here, and return whether a self-test is among them."""
    directory.mkdir(parents=True, exist_ok=True)
    # MLmodel lists the files. Just asking does not do: over S3, MLflow answers 500 where a file is not there.
    listed = _fetch(registry, version, DESCRIPTION, directory).read_text(encoding="utf-8", errors="replace")
    if ONNX not in listed:
        raise FileNotFoundError(f"{version.name} version {version.version} holds no {ONNX}: register an ONNX model")
    paths = [path for path in (ONNX, SELF_TEST) if path in listed]
    for path in paths:
        _fetch(registry, version, path, directory)
    return SELF_TEST in paths


def _fetch(registry: Registry, version: Version, path: str, directory: Path) -> Path:
    target = directory / Path(path).name
    if not target.is_file():
        partial = target.with_suffix(".partial")
        registry.fetch(version, path, partial)
        partial.replace(target)
    return target


def _data_hash(model: OnnxModel) -> str:
    return str(model.training.get("data") or "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
