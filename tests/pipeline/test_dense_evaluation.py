"""Stage evaluate in segmentation: its numbers follow from what it stores, whatever sizes images have."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dense_candidate import PREPARED, config_of, prepare_scenes, save_arms
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from grpo_rm.checkpoint import load_model
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.dense_inference import pixel_logits
from grpo_rm.transforms import decode
from pipelines.evaluate import evaluate, flat_metrics, write_metrics
from pipelines.models import DIRECTORIES

MODELS = list(DIRECTORIES)
METRICS = {
    "miou", "pixel_accuracy", "mean_class_accuracy", "boundary_f1", "nll", "ece", "knn_top1_k5_t0.07",
    "linear_probe_top1",
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """The content of evaluation.json; images have two sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dense"))
        prepare_scenes(60, sizes=((32, 32), (27, 38)))
        save_arms()
        result = evaluate(config_of())
        write_metrics(result["models"])
        yield json.loads(json.dumps(result))


def stored(model, split):
    table = pq.read_table(f"reports/predictions/{model}.parquet").to_pandas()
    return table[table["split"] == split].set_index("id")


def pixels_of(model, split):
    """Return the true and the predicted class of each pixel that counts, all images in one row."""
    rows, truth = stored(model, split), read_dense_split(PREPARED, split)
    assert list(rows.index) == list(truth.ids)
    said = [np.asarray(Image.open(io.BytesIO(mask))) for mask in rows["mask"]]
    assert {mask.shape for mask in said} == {(32, 32), (27, 38)}
    pairs = [(truth.masks[row], mask) for row, mask in enumerate(said)]
    return tuple(np.concatenate([pair[part][pair[0] >= 0] for pair in pairs]) for part in (0, 1))


@pytest.mark.parametrize("model", MODELS)
def test_metrics_follow_from_the_masks(evaluation, model):
    for said, split in ((evaluation["models"], "test"), (evaluation["validation"], "val")):
        truth, predicted = pixels_of(model, split)
        assert said[model]["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
        assert said[model]["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
        assert said[model]["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert set(evaluation["models"][model]) == METRICS
    assert set(evaluation["validation"][model]) == {name for name in METRICS if not name.startswith(("knn", "linear"))}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_stored_is_what_the_model_says(evaluation, model):
    """Image by image, alone in its batch."""
    network, split, rows = load_model(DIRECTORIES[model]), read_dense_split(PREPARED, "test"), stored(model, "test")
    nll, pixels = 0.0, 0
    for row, id_ in enumerate(split.ids):
        image = np.asarray(decode(split.files[row], channels=3))
        logits = pixel_logits(network, torch.from_numpy(image.copy())[None])[0].double()
        said = np.asarray(Image.open(io.BytesIO(rows.loc[id_, "mask"])))
        assert (said == logits.argmax(dim=0).numpy()).mean() > 0.999
        truth = split.masks[row]
        counts = truth >= 0
        log_probs = logits.log_softmax(dim=0).numpy()
        of_image = -np.take_along_axis(log_probs, truth.clip(0)[None].astype(np.int64), axis=0)[0][counts].sum()
        assert rows.loc[id_, "nll"] == pytest.approx(of_image, rel=1e-4)
        nll, pixels = nll + of_image, pixels + counts.sum()
    assert evaluation["models"][model]["nll"] == pytest.approx(nll / pixels, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_calibration_and_boundary_follow_from_the_columns(evaluation, model):
    rows, said = stored(model, "test"), evaluation["models"][model]
    confidence, right, count = (np.stack(rows[name].to_list()) for name in ("confidence", "right", "count"))
    gaps = np.abs((confidence - right).sum(axis=0))
    assert said["ece"] == pytest.approx(gaps.sum() / count.sum())
    boundary = np.stack([np.array(row, dtype=float) for row in rows["boundary_f1"]])
    assert said["boundary_f1"] == pytest.approx(np.nanmean(np.nanmean(boundary, axis=1)))
    table = pq.read_table(f"reports/predictions/{model}.parquet", columns=["boundary_f1"])
    assert table["boundary_f1"].combine_chunks().flatten().null_count > 0, "a class that an image lacks"


@pytest.mark.parametrize("model", MODELS)
def test_places(evaluation, model):
    table = pq.read_table(f"reports/predictions/patches/{model}.parquet").to_pandas()
    (train, test), labels = zip(*((table[table["split"] == s], s) for s in ("train", "test")), strict=True)
    assert labels == ("train", "test")
    counts = {split: rows.groupby("id").size() for split, rows in table.groupby("split")}
    assert counts["test"].eq(10).all() and counts["val"].eq(10).all()
    assert counts["train"].le(64 + 7).all() and counts["train"].gt(50).all(), "8 x 8 or 7 x 10 places, some are void"
    points = [normalize(np.stack(rows["embedding"].to_list())) for rows in (train, test)]
    knn = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    accuracy = knn.fit(points[0], train["label"]).score(points[1], test["label"])
    assert evaluation["models"][model]["knn_top1_k5_t0.07"] == pytest.approx(accuracy, abs=1.5 / len(test))


def test_the_arms_are_compared_by_images(evaluation):
    num_images = len(read_dense_split(PREPARED, "test").ids)
    assert set(evaluation["comparison"]) == set(evaluation["over_pretrained"]) == METRICS, "no McNemar of pixels"
    for name, interval in evaluation["comparison"].items():
        models = evaluation["models"]
        assert interval["num_samples"] == num_images
        assert interval["difference"] == pytest.approx(models["grpo_rm"][name] - models["cross_entropy"][name])
        assert interval["p_corrected"] >= interval["p_value"]
    assert flat_metrics(evaluation)["comparison/miou/low"] == evaluation["comparison"]["miou"]["low"]
    better = evaluation["over_pretrained"]["miou"]
    assert better["low"] > 0, "the test would say nothing of models that are alike"


def test_the_tables_for_plots(evaluation):
    def read(folder):
        with Path(f"reports/plots/{folder}/grpo_rm.csv").open() as file:
            return list(csv.DictReader(file))

    truth, predicted = pixels_of("grpo_rm", "test")
    rows = read("classes")
    assert [list(row) for row in rows] == [["class", "iou", "recall", "pixels"]] * 3
    assert [float(row["iou"]) for row in rows] == pytest.approx(jaccard_score(truth, predicted, average=None))
    assert [int(row["pixels"]) for row in rows] == np.bincount(truth).tolist()
    assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(evaluation["models"]["grpo_rm"]["miou"])
    confused = [row for row in read("confusion") if row["actual"] == "class 1"]
    share = sum(row["predicted"] == "class 1" for row in confused) / len(confused)
    assert share == pytest.approx(float(rows[1]["recall"]), abs=0.02)
    points = read("reliability")
    assert sum(int(point["count"]) for point in points) == len(truth)
    assert read("validation_classes")[0]["class"] == "class 0"


def test_windows_and_further_seeds(evaluation, tmp_path, monkeypatch):
    """The same models with windows say something else; what a second seed adds is there."""
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    for name in ("data", "models"):
        shutil.copytree(root / name, name)
    for arm, other in (("grpo_rm", "cross_entropy"), ("cross_entropy", "grpo_rm")):
        shutil.copytree(DIRECTORIES[other], f"models/finetune/seeds/{arm}/7")
    config = config_of(window=16)
    config.finetune.seeds.append(7)
    result = evaluate(config)
    assert result["models"]["grpo_rm"]["miou"] != evaluation["models"]["grpo_rm"]["miou"]
    assert set(result["seeds"]) == {"seeds/grpo_rm-7", "seeds/cross_entropy-7"}
    assert result["seed_spread"]["miou"]["mean"] == pytest.approx(0) and set(result["seed_spread"]) == METRICS


@pytest.mark.usefixtures("evaluation")
def test_outlines_that_void_pixels_hide(tmp_path, monkeypatch):
    """As in the embedded shapes: the boundary F1 would be of false outlines alone, so it is left out for all models."""
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    prepare_scenes(60, is_ringed=True)
    shutil.copytree(root / "models", "models")
    result = evaluate(config_of())
    for measured in (result["models"]["grpo_rm"], result["validation"]["grpo_rm"], result["comparison"]):
        assert "miou" in measured and "boundary_f1" not in measured
