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
DESCRIPTION = "MLmodel"


@dataclass(frozen=True)
class Files:
    """Paths of a model and its self-test in a version, and the version's tags with their SHA-256."""

    onnx: str
    self_test: str
    onnx_tag: str
    self_test_tag: str


FILES = {  # by precision
    "fp32": Files("model.onnx", "extra_files/self_test.npz", "onnx.sha256", "self_test.sha256"),
    "int8": Files(
        "extra_files/model.int8.onnx", "extra_files/self_test.int8.npz", "onnx.int8.sha256", "self_test.int8.sha256"
    ),
}


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
        hint = (
            f"did you mean models:/{path}?" if "@" in path.name else "run `make pipeline`, or name another with --model"
        )
        raise FileNotFoundError(f"there is no model file {path}: {hint}")
    model = OnnxModel(path, threads=threads)
    return LiveModel(model, path.name, _sha256(path)[:12], _data_hash(model))


def load_version(
    registry: Registry, version: Version, directory: Path, *, precision: str = "fp32", threads: int = 0
) -> LiveModel:
    """Download a version, prove that it is what was registered and says what it said then, and warm it up.

    Args:
        registry: Where it is.
        version: Which.
        directory: Where its files are kept. A file that is there already is not downloaded again.
        precision: fp32 or int8, which not every version has.
        threads: See OnnxModel.

    Raises:
        ValueError: A check failed, or it has no int8 model.
        FileNotFoundError: It has no ONNX model.
        ConnectionError: The registry cannot be asked.
    """
    files = FILES[precision]
    has_self_test = _download(registry, version, files, directory)
    if not has_self_test and files.self_test_tag in version.tags:
        raise ValueError(f"the version has no {files.self_test}, but the tag {files.self_test_tag}: register it anew")
    warnings = []
    if files.onnx_tag not in version.tags:
        warnings.append(f"the version has no tag {files.onnx_tag}, so that its file was not verified")
    onnx, self_test = (directory / Path(path).name for path in (files.onnx, files.self_test))
    _verify(version, files.onnx_tag, onnx)
    model = OnnxModel(onnx, threads=threads)
    if has_self_test:
        _verify(version, files.self_test_tag, self_test)
        check_self_test(model, self_test)
    else:
        warnings.append(f"the version has no {files.self_test}, so that its outputs were not compared with any")
    return LiveModel(model, version.name, version.version, _data_hash(model), warnings)


def _verify(version: Version, tag: str, path: Path) -> None:
    expected, actual = version.tags.get(tag), _sha256(path)
    if expected not in (None, actual):
        raise ValueError(f"the SHA-256 of {path.name} is {actual}, expected {expected} as the tag {tag} says")


def _download(registry: Registry, version: Version, files: Files, directory: Path) -> bool:
    """Bring a model of a version here, and return whether there is a self-test with it."""
    directory.mkdir(parents=True, exist_ok=True)
    # MLmodel lists the files. Just asking does not do: over S3, MLflow answers 500 where a file is not there.
    listed = _fetch(registry, version, DESCRIPTION, directory).read_text(encoding="utf-8", errors="replace")
    if FILES["fp32"].onnx not in listed:
        raise FileNotFoundError(
            f"{version.name} version {version.version} holds no {FILES['fp32'].onnx}: register an ONNX model"
        )
    if files.onnx not in listed:
        raise ValueError(
            f"{version.name} version {version.version} has no int8 model ({files.onnx}): set `export.int8: true` in "
            "params.yaml and register it anew, or serve with --precision fp32"
        )
    paths = [path for path in (files.onnx, files.self_test) if path in listed]
    for path in paths:
        _fetch(registry, version, path, directory)
    return files.self_test in paths


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
