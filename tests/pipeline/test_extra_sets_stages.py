"""Extra sets from the parameters to the gate: prepared, measured, compared; images that were trained on are counted."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from image_sets import encode, noise, tree, write
from PIL import Image
from sklearn.metrics import f1_score, log_loss

from grpo_rm.checkpoint import save_model
from grpo_rm.config import load_config
from grpo_rm.datasets import read_dataset, read_ids
from grpo_rm.inference import Predictions
from grpo_rm.model import Model, ModelConfig
from pipelines import extra_sets, prepare
from pipelines.candidate import read_candidate
from pipelines.evaluate import evaluate
from pipelines.extra_results import ExtraSet, extra_metrics, read_extra_sets
from pipelines.models import DIRECTORIES
from pipelines.tables import write_csv

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("cat", "cow", "dog")
FARM = {
    f"{name}/{place:02d}.png": encode(noise(20 * seed + place, (40, 40, 3)))
    for seed, name in enumerate(CLASSES)
    for place in range(12)
}
SKETCHES = {f"{name}/{place}.png": encode(noise(900 + place)) for name in ("cow", "dog") for place in range(5)}


def parameters(**sets: str) -> None:
    """Write params.yaml: a farm to train on, and these extra sets."""
    values = json.loads(json.dumps(PARAMS))
    values["data"]["source"] = "folder:data/raw/farm"
    values["evaluate"] |= {"knn_k": [2], "bootstrap_resamples": 100, "robustness": {"images": 0}, "extra_sets": sets}
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """A folder with prepared data."""
    root = tmp_path_factory.mktemp("farm")
    write(root / "data/raw/farm", FARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        parameters()
        prepare.main()
    return root


@pytest.fixture
def here(farm, monkeypatch):
    monkeypatch.chdir(farm)
    return farm


def trained_on() -> list[str]:
    return read_ids(Path("data/prepared"), "train")


def test_no_sets_leave_an_empty_folder(here):
    parameters()
    extra_sets.main()
    assert tree(here / "data/extra") == {"sets.json": b"{}\n"}


def test_sets_of_former_names_are_gone(here, capsys):
    write(here / "data/raw/sketch", SKETCHES)
    parameters(sketch="folder:data/raw/sketch", again="folder:data/raw/sketch")
    extra_sets.main()
    assert "extra_sets: sketch, 10 images, without 1 of the classes, 0 that cannot" in capsys.readouterr().out
    files = {"extra.json", "manifest.parquet", "test/00000.parquet"}
    of_sets = {f"{name}/{file}" for name in ("sketch", "again") for file in files}
    assert set(tree(here / "data/extra")) == {"sets.json", *of_sets}
    parameters(again="folder:data/raw/sketch")
    before = tree(here / "data/extra/again")
    extra_sets.main()
    assert {path.name for path in (here / "data/extra").iterdir()} == {"again", "sets.json"}
    assert tree(here / "data/extra/again") == before


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "evaluate.extra_sets.new: folder:data/raw/new, but .*data/raw/new does not exist"),
        ({"other.txt": b"text"}, (FileNotFoundError, ValueError), r"evaluate\.extra_sets\.new: "),
        ({"cat/1.png": encode(noise(1))}, ValueError, "evaluate.extra_sets.new has 1 image, expected at least 2"),
        ({"wolf/1.png": encode(noise(1))}, ValueError, "1 class.* that the training data have not: 'wolf'"),
    ],
)
def test_what_is_refused_leaves_the_former_sets(here, tmp_path, monkeypatch, files, error, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(here / "data/prepared")
    monkeypatch.chdir(tmp_path)
    parameters(old="folder:data/raw/old")
    write(tmp_path / "data/raw/old", SKETCHES)
    extra_sets.main()
    before = tree(tmp_path / "data/extra")
    write(tmp_path / "data/raw/new", files)
    parameters(old="folder:data/raw/old", new="folder:data/raw/new")
    with pytest.raises(error, match=message):
        extra_sets.main()
    assert before and tree(tmp_path / "data/extra") == before


@pytest.fixture(scope="module")
def evaluated(farm):
    """What stage evaluate says of three untrained models, with one set that has training images and one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(farm)
        write(farm / "data/raw/sketch", SKETCHES)
        copies = {name: FARM[name] for name in trained_on()[:3]}
        near = encode(Image.open(io.BytesIO(FARM[trained_on()[3]])), "JPEG", quality=90)
        new = {f"cat/new {k}.png": encode(noise(700 + k)) for k in range(4)}
        write(farm / "data/raw/leaky", copies | new | {"cat/near.jpg": near})
        write(farm / "data/raw/known", copies)
        names = ("sketch", "leaky", "known")
        parameters(**{name: f"folder:data/raw/{name}" for name in names})
        extra_sets.main()
        for seed, (name, directory) in enumerate(DIRECTORIES.items()):
            torch.manual_seed(seed)
            shape = ModelConfig("test_resnet", 3, 32, 1.0, "bilinear", [0.5] * 3, [0.25] * 3, list(CLASSES))
            save_model(Model(shape), directory)
            row = {"epoch": 1, "val_accuracy": 0.5, "val_nll": 1.0}
            write_csv(Path(f"reports/training/{name}.csv"), [row, row | {"epoch": 2}])
        return evaluate(load_config())


def predicted(model: str, name: str):
    table = pq.read_table(f"reports/predictions/{model}.parquet").to_pandas()
    rows = table[table.split == name]
    return rows.id.tolist(), np.stack(rows.probabilities), rows.label.to_numpy()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("model", DIRECTORIES)
def test_metrics_follow_from_the_predictions(evaluated, model):
    metrics = evaluated["models"][model]
    ids, probabilities, labels = predicted(model, "sketch")
    assert sorted(ids) == sorted(SKETCHES)
    assert [CLASSES[label] for label in labels] == [id_.split("/")[0] for id_ in ids]
    answers = probabilities.argmax(axis=1)
    expected = {
        "sketch/accuracy": np.mean(answers == labels),
        "sketch/nll": log_loss(labels, probabilities, labels=range(3)),
        "sketch/brier": np.square(probabilities - np.eye(3)[labels]).sum(axis=1).mean(),
        "sketch/f1_macro": f1_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0),
    }
    assert {name: metrics[name] for name in metrics if name.startswith("sketch/")} == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("here")
def test_images_that_were_trained_on_are_told_apart(evaluated):
    assert evaluated["extra_sets"] == {
        "sketch": {"images": 10, "trained_on": 0},
        "leaky": {"images": 8, "trained_on": 4},
        "known": {"images": 3, "trained_on": 3},
    }
    metrics = evaluated["models"]["grpo_rm"]
    assert [name for name in metrics if name.endswith("without_copies")] == ["leaky/accuracy_without_copies"]
    is_trained_on = dict(
        zip(read_ids(Path("data/extra/leaky"), "test"), read_extra_sets(["leaky"])[0].is_trained_on, strict=True)
    )
    assert [id_ for id_, is_known in is_trained_on.items() if not is_known] == [f"cat/new {k}.png" for k in range(4)]


def test_accuracy_without_copies():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
    answers = {"toy": Predictions(np.zeros((5, 2), np.float32), logits, np.array([0, 1, 0, 1, 2]))}
    metrics = extra_metrics(answers, [ExtraSet("toy", np.array([True, True, False, False, False]))])
    assert metrics["toy/accuracy"] == 3 / 5
    assert metrics["toy/accuracy_without_copies"] == 1 / 3


@pytest.mark.usefixtures("here")
def test_the_arms_are_compared_on_each_set_and_the_gate_knows_its_size(evaluated):
    sizes = read_candidate(read_dataset(Path("data/prepared"))).basis.num_images
    models, compared = evaluated["models"], evaluated["comparison"]
    assert sizes == {"": len(read_ids(Path("data/prepared"), "test")), "sketch": 10, "leaky": 8, "known": 3}
    for name in ("sketch", "leaky", "known"):
        for metric in (f"{name}/{each}" for each in ("accuracy", "nll", "brier", "f1_macro")):
            assert compared[metric]["num_samples"] == sizes[name]
            difference = models["grpo_rm"][metric] - models["cross_entropy"][metric]
            assert compared[metric]["difference"] == pytest.approx(difference, abs=1e-9)
    assert compared["accuracy"]["num_samples"] == sizes[""]
