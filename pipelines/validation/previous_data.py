"""The version of the prepared data before the present one: from the history of dvc.lock and DVC's cache."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
        commit: The newest one that has it, abbreviated, and the day of it: "abc1234, 2026-11-20".
        classes: Names of its classes.
        manifest: Its manifest; the columns that were asked for.
    """

    digest: str
    commit: str
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
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        # of whatever commits of other times hold: comparing with them is a service, never a reason to stop
        reason = " ".join(str(error).split())
        raise NoPreviousDataError(f"the previous version of the data cannot be read: {reason}") from error


def _find(prepared: Path, columns: list[str]) -> PreviousData:
    present = json.loads((prepared / "dataset.json").read_bytes())
    with (prepared / "manifest.parquet").open("rb") as file:
        manifest_hash = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    lock = Path("dvc.lock")
    here = _read_lock(lock.read_bytes()) if lock.is_file() else None
    committed = _committed_versions().items()
    versions = {version: at for version, at in committed if version.source in (None, present["source"])}
    cache = _cache_directory() if versions else Path()
    for version, commit in versions.items():
        files = _list_files(cache, version.digest)
        if files is None and here is not None and version.digest == here.digest:
            continue  # prepared here, and not kept: it is the present one
        if files is None:
            raise NoPreviousDataError(
                f"the version before ({version.digest}) is not in DVC's cache; where a DVC remote has it, "
                f"`dvc fetch --all-commits {OUTPUT}/manifest.parquet {OUTPUT}/dataset.json` gets it"
            )
        dataset = json.loads(_cached(cache, files["dataset.json"]).read_bytes())
        is_same_kind = all(dataset.get(name) == present[name] for name in ("source", "task"))
        if is_same_kind and files["manifest.parquet"] != manifest_hash:
            manifest = pq.read_table(_cached(cache, files["manifest.parquet"]), columns=columns)
            return PreviousData(version.digest, commit, dataset["classes"], manifest)
    raise NoPreviousDataError("git has no earlier version of data from this source (it is the first one)")


class _Version(NamedTuple):
    """What a dvc.lock says of the prepared data: its hash, and `data.source`, None where it does not say."""

    digest: str
    source: str | None


def _committed_versions() -> dict[_Version, str]:
    """The versions of the prepared data that were committed, newest first, and the newest commit of each."""
    versions: dict[_Version, str] = {}
    for commit in _git("log", f"--max-count={MAX_COMMITS}", "--format=%h, %cs", "--", "dvc.lock").splitlines():
        name = commit.partition(",")[0]
        done = subprocess.run(["git", "show", f"{name}:./dvc.lock"], check=False, capture_output=True)
        version = _read_lock(done.stdout) if done.returncode == 0 else None  # else that commit deleted it
        if version is not None:
            versions.setdefault(version, commit)
    return versions


def _read_lock(lock: bytes) -> _Version | None:
    """What a dvc.lock says, None where it says nothing: once committed, one with merge conflicts is there for good."""
    try:
        stage: dict[str, Any] = yaml.load(lock, yaml.CSafeLoader)["stages"][STAGE]
        digest = next(out["md5"] for out in stage["outs"] if out["path"] == OUTPUT)
    except (yaml.YAMLError, KeyError, TypeError, StopIteration):
        return None
    return _Version(digest, stage.get("params", {}).get("params.yaml", {}).get("data.source"))


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
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise NoPreviousDataError(f"DVC has no cache here ({error})") from error


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[0].removeprefix("fatal: ")
        raise NoPreviousDataError(f"git has no history here ({reason})")
    return done.stdout
