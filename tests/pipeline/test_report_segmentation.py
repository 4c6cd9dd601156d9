"""The page of a segmentation, from the files of a made-up run: what it shows, says, and leaves out."""

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from image_sets import encode, noise, prepare_made, segmentation
from PIL import Image
from segmentation_run import write_run
from test_report import Page, interval

from grpo_rm.datasets import read_dataset
from grpo_rm.dense_datasets import read_dense_split
from grpo_rm.masks import VOID
from pipelines import report
from pipelines.batches import PREPARED
from pipelines.dense_predictions import read_dense_predictions
from pipelines.models import predictions_of
from pipelines.reporting.class_bars import class_panels, share_text
from pipelines.reporting.figures import confusion_figure, learning_panels
from pipelines.reporting.mask_pictures import mask_colors, mask_picture
from pipelines.reporting.page import largest_confusions, render_page
from pipelines.reporting.segmentations import NUM_SAMPLES, SIDE, choose_rows, image_ious
from pipelines.reporting.thumbnails import thumbnail

HOSTILE = '"><script>alert(1)</script>'
CLASSES = ["road", "car", HOSTILE]
HEIGHT, WIDTH, IMAGES, VOID_VALUE = 24, 40, 40, 9


def draw(index: int) -> np.ndarray:
    """A mask: road, a car in most, the third class in some, void on the left."""
    rng = np.random.default_rng(index)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    if index % 4:
        mask[4:14, 10 : 20 + rng.integers(10)] = 1
    if index % 3 == 0:
        mask[16:, 20:] = 2
    mask[:, : rng.integers(1, 5)] = VOID_VALUE
    return mask


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All arguments of `render_page`, read in the directory of the run."""
    names = [f"{index:02d}.png" for index in range(IMAGES)]
    plain = [np.full((HEIGHT, WIDTH, 3), (5 * index, 9, 200), np.uint8) for index in range(IMAGES)]  # kept as PNG
    files = {name: encode(pixels) for name, pixels in zip(names, plain, strict=True)}
    masks = {name: encode(draw(index)) for index, name in enumerate(names)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        prepare_made(segmentation(files, masks, [0, 1, 2]), PREPARED, void_index=VOID_VALUE)
        models = write_run(CLASSES)
        dataset = read_dataset(PREPARED)
        counts = {split: dict(zip(CLASSES, each.values(), strict=True)) for split, each in dataset["counts"].items()}
        curve = [{"epoch": epoch, "val_miou": 0.1 * epoch, "val_nll": 1.0} for epoch in (1, 2)]
        yield {
            "evaluation": {"models": models, "comparison": COMPARISON},
            "histories": {"cross_entropy": curve, "grpo_rm": curve},
            "dataset": dataset | {"classes": CLASSES, "counts": counts},
            "reliability": report.read_plots("reliability", texts=("kind",)),
            "lineage": {"seed": "0"},
            **report.read_segmentation(CLASSES, seed=0),
        }


COMPARISON = {
    "nll": interval(-0.03, -0.01),
    "ece": interval(-0.01, 0.01),
    "pixel_accuracy": interval(0.01, 0.03),
    "boundary_f1": interval(-0.01, 0.01),
    "miou": interval(0.01, 0.03),
}


@pytest.fixture(scope="module")
def html(content: dict[str, Any]) -> str:
    return render_page(**content)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def pictures(page: Page) -> list[dict[str, Any]]:
    return [attributes for tag, attributes in page.tags if tag == "img"]


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_page_is_well_formed_needs_nothing_and_is_small(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert not re.search(r"https?:|//cdn|@import", html) and "script" not in {tag for tag, _ in page.tags}
    assert all(picture["src"].startswith("data:image/") for picture in pictures(page))
    assert len(html.encode()) < 500_000


def test_the_same_input_gives_the_same_bytes(html: str, content: dict[str, Any]) -> None:
    assert render_page(**content) == html


def test_it_says_pixels_and_leaves_out_what_classification_has(page: Page, content: dict[str, Any]) -> None:
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert sections == {"models", "learning", "calibration", "classes", "confusion", "segmentations", "data", "lineage"}
    for word in ("McNemar", "Worst mistakes", "temperature", "retrieval", "Robustness", "test images are classified"):
        assert word not in page.words
    confusion = content["confusion"]
    wrong = confusion.sum() - np.trace(confusion)
    assert f"{wrong:,} of {confusion.sum():,} pixels of the test images, void left out" in page.words
    assert "Largest confusions, by share of the class’s pixels" in page.words
    assert "Fine-tuning: validation mIoU, %" in page.words and "Reliability" in page.words


def test_the_headline_begins_with_mean_iou(html: str) -> None:
    match = re.search(r"<h1>.*?</h1>", html, re.DOTALL)
    assert match
    assert Page(match[0]).words == (
        "GRPO-RM is better than the cross-entropy control in mean IoU (+1.00 to +3.00 points), pixel accuracy "
        "(+1.00 to +3.00 points) and NLL (-0.0300 to -0.0100); no difference is shown in boundary F1 "
        "(-1.00 to +1.00 points)."
    )


def test_images_are_counted_once_however_many_classes_they_have(page: Page, content: dict[str, Any]) -> None:
    sizes = content["dense"].num_images
    assert sum(sizes.values()) == IMAGES
    assert "Images in which the class occurs" in page.words
    for split, size in sizes.items():
        assert f"Images, {split}{size} " in page.words
        assert sum(content["dataset"]["counts"][split].values()) > size


def test_pictures_are_of_the_image_named_and_its_masks(content: dict[str, Any]) -> None:
    test, colors = read_dense_split(PREPARED, "test"), [tuple(bytes.fromhex(c[1:])) for c in mask_colors(3)]
    for group in content["dense"].segmentations.groups:
        for sample in group.samples:
            row = list(test.ids).index(sample.id)
            image = np.asarray(Image.open(io.BytesIO(test.files[row])))
            assert np.array_equal(np.asarray(opened(sample.image).convert("RGB")), image)
            truth, mask = np.asarray(opened(sample.truth.image).convert("RGBA")), test.masks[row]
            assert np.array_equal(truth[..., 3] == 0, mask == VOID)
            for label, color in enumerate(colors):
                assert (truth[mask == label][:, :3] == color).all()


def test_predictions_and_ious_are_those_of_the_model(content: dict[str, Any], page: Page) -> None:
    ids, outputs = zip(
        *(read_dense_predictions(predictions_of(name)) for name in ("cross_entropy", "grpo_rm")), strict=True
    )
    test = read_dense_split(PREPARED, "test")
    shown = [sample for group in content["dense"].segmentations.groups for sample in group.samples]
    for sample in shown:
        for name, of_ids, of_model in zip(("cross_entropy", "grpo_rm"), ids, outputs, strict=True):
            row = of_ids["test"].index(sample.id)
            predicted = np.asarray(Image.open(io.BytesIO(of_model["test"].masks[row])))
            picture = np.asarray(opened(sample.predictions[name].image))
            assert np.array_equal(picture, predicted)
            assert sample.ious[name] == pytest.approx(naive_iou(predicted, test.masks[row]))
            assert f"IoU {100 * sample.ious[name]:.1f} %" in page.words
    assert len(pictures(page)) == 4 * len(shown)


def naive_iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    valid = mask != VOID
    shares = [
        (valid & (predicted == label) & (mask == label)).sum()
        / (valid & ((predicted == label) | (mask == label))).sum()
        for label in np.unique(mask[valid])
    ]
    return float(np.mean(shares))


def test_image_ious_are_of_the_classes_in_the_truth() -> None:
    confusion = np.zeros((3, 3, 3), dtype=np.int64)
    confusion[0] = [[6, 2, 0], [0, 0, 0], [0, 0, 4]]  # class 1 is predicted and never true
    confusion[1] = [[0, 0, 0], [0, 5, 0], [0, 0, 0]]
    found = image_ious(confusion)
    assert found[:2].tolist() == [pytest.approx((6 / 8 + 1) / 2), 1.0]
    assert np.isnan(found[2])  # void alone


def test_which_images_are_shown() -> None:
    candidate = np.array([0.5, 0.9, np.nan, 0.1, 0.7, 0.8, 0.3])
    control = np.array([0.5, 0.2, np.nan, 0.4, 0.6, 0.9, 0.1])
    ids = [str(index) for index in range(7)]
    found = {title: rows for title, _, rows in choose_rows(candidate, control, ids, seed=0)}
    assert found["Best of GRPO-RM"] == [1, 5, 4, 0] and found["Worst of GRPO-RM"] == [3, 6, 0, 4]
    assert found["Where GRPO-RM gains most against the control"] == [1, 6, 4]
    assert found["Where GRPO-RM loses most against the control"] == [3, 5]
    random = [choose_rows(values, control, ids, seed=0)[2][2] for values in (candidate, 1 - candidate)]
    assert random[0] == random[1] and len(random[0]) == NUM_SAMPLES
    assert choose_rows(candidate, control, ids, seed=1)[2][2] != random[0]
    same = [title for title, _, _ in choose_rows(candidate, candidate, ids, seed=0)]
    assert same == ["Best of GRPO-RM", "Worst of GRPO-RM", "At random"]


def test_hostile_class_names_are_text(page: Page, html: str) -> None:
    assert HOSTILE not in html and HOSTILE in page.text
    assert any(HOSTILE in str(picture["alt"]) for picture in pictures(page))


def test_void_is_said_where_there_is_some(content: dict[str, Any], page: Page) -> None:
    assert "Void is hatched in the truth" in page.words
    dataset = content["dataset"] | {"void_index": None}
    assert "hatched" not in Page(render_page(**content | {"dataset": dataset})).words


def rows(ious: list[float | None], pixels: list[int]) -> list[dict[str, Any]]:
    return [
        {"class": f"class {label}", "pixels": float(count)} | ({} if iou is None else {"iou": iou})
        for label, (iou, count) in enumerate(zip(ious, pixels, strict=True))
    ]


def bar_widths(svg: str, color: str) -> list[float]:
    """Widths of the bars of a model from the top down; the legend is not clipped to the axes."""
    found = re.findall(rf'<path d="M (\S+) \S+\s+L (\S+) [^"]*" clip-path="[^"]*" style="fill: var\(--{color}, ', svg)
    return [float(right) - float(left) for left, right in found]


def test_bars_are_as_long_as_the_ious_in_the_order_of_the_classes() -> None:
    measured = {
        "grpo_rm": rows([0.5, 1.0, None], [300, 100, 0]),
        "pretrain": rows([0.25, 0.5, 0.75], [300, 100, 0]),
    }
    (panel,) = class_panels(measured)
    first, second, third = bar_widths(panel.svg, "grpo-rm")
    assert second == pytest.approx(2 * first, rel=1e-3) and third == 0 and first > 50
    assert bar_widths(panel.svg, "pretrain") == pytest.approx([first / 2, first, 1.5 * first], rel=1e-2)
    assert panel.note == "–: neither in the truth nor predicted."
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", panel.svg)
    assert {"75.0 %", "25.0 %", "0.0 %", "50.0", "100.0", "–", "class 2"} <= set(texts)
    assert texts.index("class 0") < texts.index("class 1") < texts.index("class 2")


def test_of_many_classes_those_with_the_most_pixels_have_bars() -> None:
    (panel,) = class_panels({"grpo_rm": rows([0.5] * 70, list(range(70)))})
    assert panel.note == "The 60 of 70 classes with the most pixels."
    assert ">class 10<" in panel.svg and ">class 9<" not in panel.svg and len(panel.svg) < 200_000
    assert class_panels({}) == []


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.0001, "<0.1 %"), (0.0005, "0.1 %"), (0.123, "12.3 %")])
def test_a_small_share_is_not_called_zero(share: float, text: str) -> None:
    assert share_text(share) == text


def test_largest_confusions_by_share_of_the_class() -> None:
    counts = np.array([[8000, 2000, 0], [1, 5, 4], [0, 0, 0]])
    found = largest_confusions(counts, ["a", "b", "c"], by_share=True)
    assert [(row["actual"], row["predicted"], row["count"], row["share"]) for row in found] == [
        ("b", "c", 4, 0.4),
        ("a", "b", 2000, 0.2),
        ("b", "a", 1, 0.1),
    ]


def test_cells_of_pixels_are_percent_and_what_rounds_to_none_is_left_out() -> None:
    svg = confusion_figure(np.array([[997_000, 3_000], [123_000, 877_000]]), ["a", "b"], in_percent=True)
    texts = re.findall(r"<text[^>]*>(\d+)</text>", svg)
    assert texts == ["100", "12", "88"]


def test_curves_are_drawn_of_what_was_recorded() -> None:
    history = [{"epoch": 1, "val_miou": 0.5, "val_pixel_accuracy": 0.7, "val_nll": 0.3}]
    titles = [panel.title for panel in learning_panels({"grpo_rm": history})]
    assert titles == [f"Fine-tuning: validation {name}" for name in ("mIoU, %", "pixel accuracy, %", "NLL")]


def test_noise_is_the_worst_and_the_page_stays_small() -> None:
    mask = mask_picture(np.random.default_rng(0).integers(0, 20, (600, 800)), side=SIDE)
    image = thumbnail(encode(noise(0, (600, 800, 3))), side=SIDE)
    assert 5 * NUM_SAMPLES * (3 * len(mask) + len(image)) < 2_500_000
