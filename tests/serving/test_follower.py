"""Promotion, rollback, and everything that may be wrong with a version. The registry here is a folder."""

import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from tiny_onnx import sha256, write_onnx, write_self_test

from serving.deployment import Deployment
from serving.follower import Alias, Follower, parse_alias
from serving.registry import Version


class Folder:
    """A registry with a folder for each version."""

    def __init__(self, root: Path) -> None:
        self.root, self.champion, self.error = root, "", None
        self.versions: dict[str, Version] = {}
        self.fetched: list[str] = []

    def add(self, number: str, *, bias=(0.0, 0.0, 0.0), self_test_error=0.0, has_self_test=True, tags=None) -> Path:
        directory = self.root / number
        (directory / "extra_files").mkdir(parents=True)
        onnx = write_onnx(directory / "model.onnx", bias=bias)
        listed, proof = "data: model.onnx\n", {"onnx.sha256": sha256(onnx)}
        if has_self_test:
            path = write_self_test(directory / "extra_files/self_test.npz", bias=bias, error=self_test_error)
            proof = {"onnx.sha256": sha256(onnx), "self_test.sha256": sha256(path)}
            listed += "path: extra_files/self_test.npz\n"
        (directory / "MLmodel").write_text(listed)
        self.versions[number] = Version("name", number, proof if tags is None else tags)
        return directory

    def find(self, name: str, alias: str) -> Version:
        assert (name, alias) == ("name", "champion")
        if self.error:
            raise self.error
        return self.versions[self.champion]

    def fetch(self, version: Version, path: str, target: Path) -> None:
        self.fetched.append(f"{version.version}/{path}")
        shutil.copyfile(self.root / version.version / path, target)


@pytest.fixture
def registry(tmp_path):
    return Folder(tmp_path / "registry")


@pytest.fixture
def follower(registry, tmp_path):
    return Follower(Deployment(), registry, Alias("name", "champion"), cache=tmp_path / "cache", poll_seconds=30)


def follow(follower, version, *, is_woken=False):
    follower.registry.champion = version
    follower.follow(is_woken=is_woken)
    model = follower.deployment.model
    return model and model.version, follower.deployment.error


def test_parse_alias():
    assert parse_alias("models:/grpo-rm-digits@champion") == Alias("grpo-rm-digits", "champion")
    assert parse_alias("models/onnx/encoder.onnx") is None
    for uri in ("models:/name/3", "models:/name", "models:/name@", "models:/@champion", "models:name@champion"):
        with pytest.raises(ValueError, match="expected models:/NAME@ALIAS"):
            parse_alias(uri)


def test_promotion_and_rollback(registry, follower):
    registry.add("1")
    registry.add("2", bias=(0, 1, 0))
    assert follow(follower, "1") == ("1", None)
    first = follower.deployment.model
    assert follow(follower, "1") == ("1", None)
    assert follower.deployment.model is first
    assert follow(follower, "2") == ("2", None)
    assert not follower.deployment.model.warnings
    downloads = len(registry.fetched)
    assert follow(follower, "1") == ("1", None)
    assert len(registry.fetched) == downloads, "a rollback needs no download"


def test_only_two_versions_are_kept_on_disk(registry, follower):
    for number in "123":
        registry.add(number)
        follow(follower, number)
    assert kept(follower) == ["2", "3"]
    follow(follower, "2")
    registry.add("4")
    follow(follower, "4")
    assert kept(follower) == ["2", "4"]


def kept(follower):
    return sorted(path.name.split("%20")[0] for path in follower.cache.iterdir())


def test_a_model_made_anew_is_another_one(registry, follower):
    registry.add("1")
    follow(follower, "1")
    shutil.rmtree(registry.root)
    registry.add("1", bias=(0, 1, 0))
    first = follower.deployment.model
    assert follow(follower, "1") == ("1", None)
    assert follower.deployment.model is not first and not follower.deployment.model.warnings


def corrupt(directory):
    (directory / "model.onnx").write_bytes(b"garbage")


def replace_self_test(directory):
    write_self_test(directory / "extra_files/self_test.npz", max_abs_error=1)


def drop_self_test(directory):
    (directory / "MLmodel").write_text("data: model.onnx")


def drop(directory):
    (directory / "MLmodel").write_text("flavors: pytorch")


@pytest.mark.parametrize(
    ("options", "damage", "reason"),
    [
        ({}, corrupt, "the SHA-256 of model.onnx is .*, expected .* as the tag onnx.sha256 says"),
        ({"tags": {}}, corrupt, "no ONNX file that onnxruntime can run"),
        ({"self_test_error": 0.01}, None, "the self-test failed"),
        ({}, replace_self_test, "the SHA-256 of self_test.npz is .*, expected .* as the tag self_test.sha256 says"),
        ({}, drop_self_test, "has no extra_files/self_test.npz, but the tag"),
        ({}, drop, "holds no model.onnx"),
    ],
)
def test_a_bad_version_changes_nothing(registry, follower, options, damage, reason):
    registry.add("1")
    directory = registry.add("2", **options)
    if damage:
        damage(directory)
    follow(follower, "1")
    first = follower.deployment.model
    _, error = follow(follower, "2", is_woken=True)
    assert follower.deployment.model is first
    assert re.search(reason, error)
    assert follow(follower, "1") == ("1", None), "the alias moved back: nothing is wrong any more"


def test_polling_does_not_download_a_rejected_version_again(registry, follower):
    registry.add("1")
    corrupt(registry.add("2"))
    follow(follower, "1")
    _, error = follow(follower, "2")
    downloads = len(registry.fetched)
    assert follow(follower, "2") == ("1", error)
    registry.error = ConnectionError("down")
    assert follow(follower, "2") == ("1", "down")
    registry.error = None
    assert follow(follower, "2") == ("1", error), "the reason is known still"
    assert len(registry.fetched) == downloads
    shutil.rmtree(registry.root / "2")
    registry.add("2")
    assert follow(follower, "2", is_woken=True) == ("2", None), "a webhook tries again"


def test_a_version_without_proof_is_loaded_with_warnings(registry, follower):
    registry.add("1", has_self_test=False, tags={})
    assert follow(follower, "1") == ("1", None)
    verified, compared = follower.deployment.model.warnings
    assert "no tag onnx.sha256" in verified and "no extra_files/self_test.npz" in compared


def test_the_model_stays_when_the_registry_fails(registry, follower):
    registry.add("1")
    follow(follower, "1")
    for error in (ConnectionError("down"), FileNotFoundError("no alias"), RuntimeError("a\nb"), RuntimeError()):
        registry.error = error
        assert follow(follower, "1") == ("1", (str(error) or "RuntimeError").split("\n")[0])
    registry.error = None
    assert follow(follower, "1") == ("1", None)


def test_an_interrupted_download_is_begun_again(registry, follower):
    onnx = registry.add("1") / "model.onnx"
    content = onnx.read_bytes()
    onnx.unlink()
    version, error = follow(follower, "1")
    assert version is None and "model.onnx" in error
    onnx.write_bytes(content)
    assert follow(follower, "1") == ("1", None)


def test_the_thread_is_woken_and_polls(registry, tmp_path):
    registry.add("1")
    registry.add("2")
    registry.champion = "1"
    for poll_seconds, is_woken in ((60, True), (0.05, False)):
        follower = Follower(
            Deployment(), registry, Alias("name", "champion"), cache=tmp_path / "cache", poll_seconds=poll_seconds
        )
        follower.start()
        for version in "121":
            registry.champion = version
            if is_woken:
                follower.wake()
            end = time.monotonic() + 5
            while not (follower.deployment.model and follower.deployment.model.version == version):
                assert time.monotonic() < end, follower.deployment.error
                time.sleep(0.01)
        follower.stop()
        follower.join(5)
        assert follower not in threading.enumerate()
