"""Extra sets from the parameters to the gate: prepared, measured, compared; images known to models are left out."""

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
from pipelines.extra_results import ExtraSet, extra_metrics, extra_sums, measured_images, read_extra_sets
from pipelines.models import DIRECTORIES
from pipelines.tables import write_csv

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("cat", "cow", "dog")
FARM = {
    f"{name}/{place:02d}.png": encode(noise(20 * seed + place, (40, 40, 3)))
    for seed, name in enumerate(CLASSES)
    for place in range(12)
}
NEW = {f"cat/new {k}.png": encode(noise(700 + k)) for k in range(4)}
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


@pytest.fixture
def elsewhere(here, tmp_path, monkeypatch):
    """Another folder with the same prepared data, so that the extra sets of the others stay as they are."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(here / "data/prepared")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids_of(split: str) -> list[str]:
    return read_ids(Path("data/prepared"), split)


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
        (
            {"cat/1.png": encode(noise(1))},
            ValueError,
            r"^evaluate.extra_sets.new: got 1 image\(s\) to measure, expected at least 2: add others$",
        ),
        ({"wolf/1.png": encode(noise(1))}, ValueError, "1 class.* that the training data have not: 'wolf'"),
    ],
)
def test_what_is_refused_leaves_the_former_sets(elsewhere, files, error, message):
    parameters(old="folder:data/raw/old")
    write(elsewhere / "data/raw/old", SKETCHES)
    extra_sets.main()
    before = tree(elsewhere / "data/extra")
    write(elsewhere / "data/raw/new", files)
    parameters(old="folder:data/raw/old", new="folder:data/raw/new")
    with pytest.raises(error, match=message):
        extra_sets.main()
    assert before and tree(elsewhere / "data/extra") == before


@pytest.fixture(scope="module")
def evaluated(farm):
    """What stage evaluate says of three untrained models, one set with images that they know and one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(farm)
        write(farm / "data/raw/sketch", SKETCHES)
        copies = {name: FARM[name] for name in (*ids_of("train")[:2], ids_of("val")[0])}
        near = encode(Image.open(io.BytesIO(FARM[ids_of("train")[3]])), "JPEG", quality=90)
        write(farm / "data/raw/leaky", copies | NEW | {"cat/near.jpg": near})
        names = ("sketch", "leaky")
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
@pytest.mark.parametrize("model", DIRECTORIES)
def test_images_that_models_have_seen_are_left_out(evaluated, model):
    assert evaluated["extra_sets"] == {"sketch": {"images": 10, "left_out": 0}, "leaky": {"images": 4, "left_out": 4}}
    ids, probabilities, labels = predicted(model, "leaky")
    assert len(ids) == 8, "predictions keep all images"
    is_new = np.array([id_ in NEW for id_ in ids])
    metrics = evaluated["models"][model]
    assert metrics["leaky/accuracy"] == np.mean((probabilities.argmax(axis=1) == labels)[is_new])
    assert metrics["leaky/nll"] == pytest.approx(log_loss(labels[is_new], probabilities[is_new], labels=range(3)), 1e-5)
    of_set = {name for name in metrics if name.startswith("leaky/")}
    assert of_set == {f"leaky/{name}" for name in ("accuracy", "nll", "brier", "f1_macro")}


def test_which_images_are_measured():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
    answers = {"toy": Predictions(np.zeros((5, 2), np.float32), logits, np.array([0, 1, 0, 1, 2]))}
    toy = ExtraSet("toy", np.array([True, True, False, False, False]))
    assert toy.num_images == 3
    assert extra_metrics(answers, [toy])["toy/accuracy"] == 1 / 3
    assert extra_metrics(answers, [ExtraSet("toy", ~toy.is_left_out)])["toy/accuracy"] == 1
    assert {sums.terms.shape[1] for sums in extra_sums(answers, toy).values()} == {3}


@pytest.mark.usefixtures("here", "evaluated")
def test_the_number_of_measured_images():
    assert [extra.num_images for extra in read_extra_sets(["leaky", "sketch"])] == [4, 10]
    assert [measured_images(name) for name in ("leaky", "sketch", "of another name")] == [4, 10, 0]


@pytest.mark.parametrize("others", [0, 1])
def test_two_images_that_models_have_not_seen_are_needed(elsewhere, others):
    set_of_known(elsewhere, others)
    with pytest.raises(ValueError, match=r"^evaluate\.extra_sets\.known: ") as caught:
        extra_sets.main()
    assert str(caught.value) == (
        f"evaluate.extra_sets.known: got {others} image(s) to measure, expected at least 2: add others; "
        f"5 of {5 + others} images are, or nearly are, training or validation images and left out"
    )


def test_images_that_are_left_out_are_told_of(elsewhere, capsys):
    set_of_known(elsewhere, others=2)
    extra_sets.main()
    said = "5 of 7 images are, or nearly are, training or validation images: they are left out of all metrics"
    assert capsys.readouterr().err == f"warning: extra_sets: known, {said}\n"


def set_of_known(root: Path, others: int) -> None:
    """Name an extra set of five training and validation images, and so many test images."""
    names = [*ids_of("train")[:3], *ids_of("val")[:2], *ids_of("test")[:others]]
    write(root / "data/raw/known", {name: FARM[name] for name in names})
    parameters(known="folder:data/raw/known")


@pytest.mark.usefixtures("here")
def test_the_arms_are_compared_on_each_set_and_the_gate_knows_its_size(evaluated):
    sizes = read_candidate(read_dataset(Path("data/prepared"))).basis.num_images
    models, compared = evaluated["models"], evaluated["comparison"]
    assert sizes == {"": len(ids_of("test")), "sketch": 10, "leaky": 4}
    for name in ("sketch", "leaky"):
        for metric in (f"{name}/{each}" for each in ("accuracy", "nll", "brier", "f1_macro")):
            assert compared[metric]["num_samples"] == sizes[name]
            difference = models["grpo_rm"][metric] - models["cross_entropy"][metric]
            assert compared[metric]["difference"] == pytest.approx(difference, abs=1e-9)
    assert compared["accuracy"]["num_samples"] == sizes[""]
