"""From a version of the registered model back to the commit whose dvc.lock has its data, models and reports.

`python -m pipelines.dvc_lock HASH` prints it, for the tag `dvc.lock` of a version.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

import yaml

from pipelines.stage import run_stage

LOCK = Path("dvc.lock")
TAG = "dvc.lock"
LAST = ("register", "report")


def main() -> None:
    """Print the commit, or say that there is none."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.dvc_lock", description="Find the commit of a dvc.lock")
    parser.add_argument("hash", help="the tag dvc.lock of a version")
    print(find_commit(parser.parse_args().hash))


def lock_hash(content: str) -> str:
    """Return the MD5 of what a dvc.lock says of the stages that make something, but for register and report.

    While register runs, dvc.lock is not complete: a hash of the file would be of one that is never committed. Without
    the entries of the last two, the hash at registration is that of the dvc.lock committed afterwards.
    """
    stages = yaml.load(content, yaml.CSafeLoader)["stages"]
    made = {name: stage for name, stage in stages.items() if name not in LAST and "outs" in stage}
    return hashlib.md5(json.dumps(made, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def present_hash() -> str | None:
    """Return the hash of dvc.lock as it is now, or None where there is none."""
    return lock_hash(LOCK.read_text(encoding="utf-8")) if LOCK.is_file() else None


def find_commit(wanted: str) -> str:
    """Return the first commit, on any branch, whose dvc.lock has this hash.

    Raises:
        ValueError: None has.
    """
    commits = _git("log", "--all", "--reverse", "--format=%H", "--diff-filter=AM", "--", str(LOCK)).split()
    for commit in commits:
        if lock_hash(_git("show", f"{commit}:./{LOCK}")) == wanted:
            return commit
    raise ValueError(
        f"none of the {len(commits)} committed versions of {LOCK} has the hash {wanted}: it was not committed "
        "after that run, or is in another clone (`git fetch`)"
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git says: {done.stderr.strip()}. Run this in a clone of the repository")
    return done.stdout


if __name__ == "__main__":
    run_stage(main)
