"""Promotion and rollback: move `champion` to a version that is known to work.

`python -m pipelines.promote` promotes the challenger, `python -m pipelines.promote 3` version 3, also an older one. The
alias can be moved in the MLflow UI as well; there, nothing of this is checked.
"""

import argparse
import getpass
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.lineage import sha256
from pipelines.onnx_model import INT8_SELF_TEST, SELF_TEST, self_test
from pipelines.stage import run_stage
from pipelines.summary import read
from pipelines.tracking import aliases, registry
from pipelines.tracking.runs import check_tracking, has_store, store_name

ANEW = "`dvc repro` with the parameters of this version registers the model anew"


@dataclass(frozen=True)
class Promotion:
    """Where `champion` is now.

    Attributes:
        name: Of the registered model.
        version: That has the alias now.
        previous: That had it before; None where none had. The same as `version` where nothing was to be done.
        reason: Why it was promoted.
    """

    name: str
    version: str
    previous: str | None
    reason: str

    @property
    def has_moved(self) -> bool:
        """Whether the alias was somewhere else before."""
        return self.previous != self.version


def main() -> None:
    """Promote as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.promote", description="Move `champion` to a version")
    parser.add_argument("version", nargs="?", help="default: the challenger")
    parser.add_argument("--name", help="registered model; default: the one of the last run")
    parser.add_argument("--force", action="store_true", help="although the gate failed; needs --reason")
    parser.add_argument("--reason", default="", help="recorded with the version")
    arguments = parser.parse_args()
    promotion = promote(arguments.version, name=arguments.name, force=arguments.force, reason=arguments.reason)
    print(describe(promotion))


def promote(
    version: str | None = None, *, name: str | None = None, force: bool = False, reason: str = "", by: str | None = None
) -> Promotion:
    """Check a version, move `champion` to it, and record on the version who did and why.

    Args:
        version: Default: the challenger.
        name: Of the registered model. Default: of the last run, else of the prepared data.
        force: Promote although the gate failed. A file that was changed, or does not run, is never promoted.
        reason: Needed with `force`.
        by: Who promotes. Default: the user of this process.

    Raises:
        ValueError: The version is not there, its gate failed, its file is not the one that was registered, or does not
            answer what torch did.
        ConnectionError: The registry does not answer.
    """
    if force and not reason.strip():
        raise ValueError("a forced promotion without a reason: add --reason 'why the gate is wrong'")
    check_tracking()
    name = name or last_name()
    if not has_store():
        raise ValueError(f"{store_name()} not found: `dvc repro` registers a version there, or set MLFLOW_TRACKING_URI")
    with registry.contact():
        return _promote(name, version, force=force, reason=reason.strip(), by=by or user())


def last_name() -> str:
    """Return the name of the registered model of the last run, else the one of the prepared data."""
    if Path("reports/registration.json").is_file():
        return str(read("registration")["name"])
    prepared = Path("data/prepared/dataset.json")
    if not prepared.is_file():
        raise FileNotFoundError(f"reports/registration.json and {prepared} not found: name a model with --name")
    return registry.model_name(json.loads(prepared.read_text(encoding="utf-8"))["name"])


def user() -> str:
    """Return the name of the user of this process; in a container it may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def describe(promotion: Promotion) -> str:
    """Return one line on what was done, and how to take it back."""
    model, previous = f"promote: {promotion.name} version {promotion.version}", promotion.previous
    if not promotion.has_moved:
        return f"{model} already is the champion; nothing changed"
    if previous is None:
        return f"{model} is the champion, the first one; to take it back, delete the alias in the MLflow UI"
    back = f"python -m pipelines.promote {previous} --name {promotion.name}"
    return f"{model} is the champion, in the place of version {previous}; back: {back}"


def _promote(name: str, version: str | None, *, force: bool, reason: str, by: str) -> Promotion:
    versions = registry.list_versions(name)
    champion = aliases.see_champion(name)
    version = version or aliases.find_alias(name, aliases.CHALLENGER).version
    if version is None or version not in versions:
        got = f"has no version {version}" if version else f"has no alias `{aliases.CHALLENGER}`"
        expected = f"expected a version out of {', '.join(versions)}" if versions else "nor any version; see --name"
        raise ValueError(f"{name} in {store_name()} {got}, {expected}")
    if champion.version == version:
        return Promotion(name, version, version, "it already is the champion")
    tags = registry.tags_of(name, version)
    is_forced = check_gate(version, tags, force=force)
    check_file(name, version, tags)
    reason = reason or "the gate passed"
    aliases.set_champion(name, version, replaced=champion.version, by=by, reason=reason, forced=is_forced)
    return Promotion(name, version, champion.version, reason)


def check_gate(version: str, tags: dict[str, str], *, force: bool) -> bool:
    """Return whether it takes force to promote this version.

    Raises:
        ValueError: The gate did not pass, and there is no force.
    """
    if tags.get("gate") == "passed":
        return False
    failed = [key.partition(".")[2] for key, value in tags.items() if key.startswith("gate.") and value != "passed"]
    if not force:
        why = f"failed ({', '.join(sorted(failed))})" if failed else "has no verdict"
        raise ValueError(
            f"the gate of version {version} {why}, expected passed; its description in MLflow says more. To promote it "
            "all the same: --force --reason '...'"
        )
    return True


def check_file(name: str, version: str, tags: dict[str, str]) -> None:
    """Download a version, and check that it is what was registered and answers what it did; its int8 file likewise.

    Raises:
        ValueError: It is not, or does not, or was registered before there was a self-test.
    """
    if registry.SELF_TEST_TAG not in tags:
        raise ValueError(
            f"version {version} of {name} has no self-test, expected the tag {registry.SELF_TEST_TAG}: it is older "
            f"than those. {ANEW}"
        )
    with registry.downloaded(name, version) as directory:
        extra = directory / registry.EXTRA_FILES
        pairs = [
            {registry.ONNX_TAG: directory / registry.ONNX_FILE, registry.SELF_TEST_TAG: extra / SELF_TEST},
            {registry.INT8_TAG: extra / registry.INT8_FILE, registry.INT8_SELF_TEST_TAG: extra / INT8_SELF_TEST},
        ]
        for files in pairs if registry.INT8_TAG in tags else pairs[:1]:
            for tag, file in files.items():
                check_hash(file, f"{file.name} of version {version} of {name}", tag, tags.get(tag))
            self_test(*files.values())


def check_hash(file: Path, title: str, tag: str, expected: str | None) -> None:
    """Refuse a file that is not what its tag says.

    Raises:
        ValueError: It is another one, or missing.
    """
    got = sha256(file) if file.is_file() else "missing"
    if got != expected:
        raise ValueError(
            f"{title} is not what was registered: SHA-256 {got}, expected {expected} (tag {tag}). Somebody changed the "
            f"artifact store: delete this version; {ANEW}"
        )


if __name__ == "__main__":
    run_stage(main)
