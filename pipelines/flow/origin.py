"""A version names the commit that has its parameters and dvc.lock, although that commit came after it."""

import subprocess

from pipelines import dvc_lock, model_card
from pipelines.lineage import ROOT
from pipelines.tracking import registry
from pipelines.tracking.runs import check_tracking


def name_commit(name: str, version: str, commit: str) -> bool:
    """Put a run's commit into the tags and the description of the version that the run registered.

    Nothing is done where that would not be true: the version was made at another commit or with another dvc.lock, or
    the commit is another one now that it lies on top of those of others.

    Args:
        name: Of the registered model.
        version: Made from the commit before this one, with the params.yaml and dvc.lock of this one.
        commit: That has these two files alone.

    Returns:
        Whether the version names the commit now.

    Raises:
        ConnectionError: The registry does not answer.
    """
    head, *parents = _git("rev-list", "--parents", "--max-count", "1", "HEAD").split()
    lock = dvc_lock.lock_hash((ROOT / dvc_lock.LOCK).read_text(encoding="utf-8"))
    check_tracking()
    with registry.contact():
        tags = registry.tags_of(name, version)
        if head != commit or [tags.get("git.commit")] != parents or tags.get(dvc_lock.TAG) != lock:
            return False
        fresh = {"git.commit": commit, "git.dirty": "false"}
        registry.change_tags(name, version, fresh)
        before, after = model_card.describe_origin(tags), model_card.describe_origin(tags | fresh)
        registry.change_description(name, version, before, after)
    return True


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout
