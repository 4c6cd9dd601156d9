"""Where a result comes from: commit, data, weights."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def repository_root() -> Path:
    """Return the root of the user's checkout, also from the copy that `dvc exp run --temp` works in."""
    parts = ROOT.parts
    for index in range(len(parts) - 2):
        if parts[index : index + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:index])
    return ROOT


@cache
def git_tags() -> dict[str, str]:
    """Return the commit and whether tracked files other than dvc.lock differ from it; empty outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def dvc_hash(stage: str, path: str) -> str | None:
    """Return the hash of an output as dvc.lock has it (36 characters for a directory), or None where it has none."""
    lock = Path("dvc.lock")
    stages: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    outs = stages.get(stage, {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == path), None)


def data_hash() -> str | None:
    """Return the DVC hash of the prepared data, or None where DVC has not recorded it."""
    return dvc_hash("prepare", "data/prepared")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
