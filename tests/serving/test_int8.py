"""The int8 file of a version, by choice. The registry here is a folder."""

import pytest
from server_process import picture, serving
from test_follower import Folder, follow
from tiny_onnx import describe, sha256, write_onnx, write_self_test

from serving.deployment import Deployment, load_file
from serving.follower import Alias, Follower
from serving.registry import Version
from serving.settings import read_settings


class Int8Folder(Folder):
    """A registry whose versions may have an int8 file, which is another one than float32's."""

    def add_int8(self, number: str, *, error=0.0, bias=(0.0, 0.5, 0.0)):
        directory = self.root / number
        onnx = write_onnx(directory / "extra_files/model.int8.onnx", bias=bias, metadata=describe(precision="int8"))
        proof = write_self_test(
            directory / "extra_files/self_test.int8.npz", bias=bias, error=error, max_abs_error=0.05, min_cosine=0.999
        )
        with (directory / "MLmodel").open("a") as file:
            file.write("path: extra_files/model.int8.onnx\npath: extra_files/self_test.int8.npz\n")
        tags = {"onnx.int8.sha256": sha256(onnx), "self_test.int8.sha256": sha256(proof)}
        self.versions[number] = Version("name", number, {**self.versions[number].tags, **tags})
        return onnx


@pytest.fixture
def registry(tmp_path):
    registry = Int8Folder(tmp_path / "registry")
    registry.add("1")
    return registry


def new_follower(registry, tmp_path, precision):
    alias = Alias("name", "champion")
    return Follower(Deployment(), registry, alias, cache=tmp_path / precision, poll_seconds=30, precision=precision)


def test_the_chosen_file_is_served(registry, tmp_path):
    registry.add_int8("1")
    for precision, middle in (("fp32", 0.0), ("int8", 0.5)):
        follower = new_follower(registry, tmp_path, precision)
        assert follow(follower, "1") == ("1", None)
        live = follower.deployment.model
        assert live.onnx.precision == precision and not live.warnings
        assert live.onnx.predict([picture((0, 0, 0))]).logits[0].tolist() == [0, middle, 0]
    fetched = registry.fetched[3:]
    assert fetched == ["1/MLmodel", "1/extra_files/model.int8.onnx", "1/extra_files/self_test.int8.npz"]


def test_a_version_without_int8_changes_nothing(registry, tmp_path):
    registry.add_int8("1")
    registry.add("2")
    follower = new_follower(registry, tmp_path, "int8")
    assert follow(follower, "1") == ("1", None)
    version, error = follow(follower, "2")
    assert version == "1"
    assert "name version 2 has no int8 model (extra_files/model.int8.onnx): set `export.int8: true`" in error
    downloads = len(registry.fetched)
    assert follow(follower, "2") == ("1", error)
    assert len(registry.fetched) == downloads
    registry.add_int8("2")
    assert follow(follower, "2") == ("2", None), "it was registered anew"


@pytest.mark.parametrize(
    ("error", "damage", "reason"),
    [
        (0.1, None, "the self-test failed: on its 5 images the largest difference from what is stored is 0.1"),
        (0.0, lambda onnx: onnx.write_bytes(b"x"), "the SHA-256 of model.int8.onnx is "),
        (0.0, lambda onnx: write_onnx(onnx.with_name("self_test.int8.npz")), "the SHA-256 of self_test.int8.npz is "),
    ],
)
def test_a_bad_int8_file_is_refused(registry, tmp_path, error, damage, reason):
    onnx = registry.add_int8("1", error=error)
    if damage:
        damage(onnx)
    version, said = follow(new_follower(registry, tmp_path, "int8"), "1")
    assert version is None and reason in said
    assert follow(new_follower(registry, tmp_path, "fp32"), "1") == ("1", None)


def test_other_kernels_may_answer_a_little_else(registry, tmp_path):
    registry.add_int8("1", error=0.01)
    assert follow(new_follower(registry, tmp_path, "int8"), "1") == ("1", None)


def test_an_int8_file_made_anew_is_another_one(registry, tmp_path):
    registry.add_int8("1")
    follower = new_follower(registry, tmp_path, "int8")
    follow(follower, "1")
    first = follower.deployment.model
    registry.add_int8("1", bias=(0, 0, 0.5))
    assert follow(follower, "1") == ("1", None)
    assert follower.deployment.model is not first


def test_the_setting(monkeypatch):
    monkeypatch.delenv("GRPO_RM_PRECISION", raising=False)
    arguments = ["--model", "models:/name@champion"]
    assert read_settings(arguments).precision == "fp32"
    monkeypatch.setenv("GRPO_RM_PRECISION", "int8")
    assert read_settings(arguments).precision == "int8"
    assert read_settings([*arguments, "--precision", "fp32"]).precision == "fp32"
    with pytest.raises(ValueError, match="the precision is 'int4', expected fp32 or int8"):
        read_settings([*arguments, "--precision", "int4"])


def test_readyz_names_the_precision_of_a_file(tmp_path):
    path = write_onnx(tmp_path / "encoder.int8.onnx", metadata=describe(precision="int8"))
    assert load_file(path).onnx.precision == "int8"
    with serving(path, tmp_path) as server:
        assert server.wait_for(lambda content: content["model"])["model"]["precision"] == "int8"
