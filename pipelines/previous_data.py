"""The version of the prepared data before the present one: from the history of dvc.lock and DVC's cache."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

STAGE, OUTPUT = "prepare", "data/prepared"
MAX_COMMITS = 50  # of dvc.lock that are looked through


class NoPreviousDataError(Exception):
    """There is no previous version to compare with; the message says why, and how to get it where it exists."""


@dataclass(frozen=True)
class PreviousData:
    """A version of the prepared data that was committed.

    Attributes:
        digest: Its hash in dvc.lock.
        classes: Names of its classes.
        manifest: Its manifest; the columns that were asked for.
    """

    digest: str
    classes: list[str]
    manifest: pa.Table


def find_previous_data(prepared: Path, *, columns: list[str]) -> PreviousData:
    """Find the newest committed version with another manifest than the present one, from the same source.

    Nothing is downloaded. The answer is the same before and after the present version is committed.

    Args:
        prepared: The present version.
        columns: Of the previous manifest, to read.

    Raises:
        NoPreviousDataError: There is none, or it is not in DVC's cache.
    """
    try:
        return _find(prepared, columns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException, yaml.YAMLError) as error:
        # of whatever commits of other times hold: comparing with them is a service, never a reason to stop
        raise NoPreviousDataError(f"the previous version of the data cannot be read: {error}") from error


def _find(prepared: Path, columns: list[str]) -> PreviousData:
    present = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    with (prepared / "manifest.parquet").open("rb") as file:
        manifest_hash = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    lock = Path("dvc.lock")
    present_digest = _data_digest(lock.read_bytes()) if lock.is_file() else None
    cache = None
    for commit, digest in _committed_versions():
        cache = cache or _cache_directory()
        files = _list_files(cache, digest)
        if files is None:
            if digest == present_digest:  # prepared here, and not kept: it is the present one
                continue
            raise NoPreviousDataError(
                f"the version of commit {commit[:9]} is not in DVC's cache: `git checkout {commit[:9]} -- dvc.lock && "
                f"dvc fetch {STAGE}; git checkout HEAD -- dvc.lock` gets it from the DVC remote"
            )
        if files["manifest.parquet"] == manifest_hash:
            continue
        dataset = json.loads(_cached(cache, files["dataset.json"]).read_bytes())
        if all(dataset.get(name) == present[name] for name in ("source", "task")):
            manifest = pq.read_table(_cached(cache, files["manifest.parquet"]), columns=columns)
            return PreviousData(digest, dataset["classes"], manifest)
    raise NoPreviousDataError("git has no earlier version of data from this source (it is the first one)")


def _committed_versions() -> Iterator[tuple[str, str]]:
    """The commits that changed the prepared data, and its hash in each, newest first."""
    seen: set[str] = set()
    for commit in _git("log", f"--max-count={MAX_COMMITS}", "--format=%H", "--", "dvc.lock").split():
        shown = subprocess.run(["git", "show", f"{commit}:./dvc.lock"], check=False, capture_output=True)
        digest = _data_digest(shown.stdout) if shown.returncode == 0 else None  # else that commit deleted it
        if digest and digest not in seen:
            seen.add(digest)
            yield commit, digest


def _data_digest(lock: bytes) -> str | None:
    stages: dict[str, Any] = yaml.load(lock, yaml.CSafeLoader)["stages"]
    outs = stages.get(STAGE, {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == OUTPUT), None)


def _list_files(cache: Path, digest: str) -> dict[str, str] | None:
    """The hash of each file of a directory, None where the cache does not have the directory or these files."""
    listing = _cached(cache, digest)
    if not listing.is_file():
        return None
    files = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
    needed = [_cached(cache, files[name]) for name in ("manifest.parquet", "dataset.json")]
    return files if all(path.is_file() for path in needed) else None


def _cached(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]


def _cache_directory() -> Path:
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoPreviousDataError(f"git has no history here ({done.stderr.strip().splitlines()[0]})")
    return done.stdout
