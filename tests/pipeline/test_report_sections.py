"""Pictures, map, neighbors and validation on the page: escaped, self-contained, small, and absent where not given."""

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipelines.reporting.embedding_map import Point
from pipelines.reporting.examples import Example
from pipelines.reporting.neighbors import Neighborhood, Picture
from pipelines.reporting.page import render_page

HOSTILE = '"><script>alert(1)</script>'
CLASSES = ["cat", HOSTILE]
PIXEL = "data:image/png;base64,iVBORw0KGgo="
FAILED = {"success": False, "severity": "warning", "description": "images are large", "fix": "look", "samples": []}


class Tags(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def render(**more: Any) -> Tags:
    base: dict[str, Any] = {
        "evaluation": {"models": {"pretrain": {"accuracy": 0.5}, "grpo_rm": {"accuracy": 0.75}}},
        "histories": {},
        "reliability": {},
        "dataset": {"name": "pets", "source": "pets", "classes": CLASSES, "counts": {"test": {"cat": 2, HOSTILE: 2}}},
        "confusion": np.array([[1, 1], [0, 2]]),
        "lineage": {"seed": "0"},
    }
    return Tags(render_page(**base | more))


def everything() -> dict[str, Any]:
    example = Example(HOSTILE, PIXEL, "cat", HOSTILE, 0.987)
    picture = Picture("train 1", PIXEL, HOSTILE)
    return {
        "mistakes": [example],
        "confused": {("cat", HOSTILE): [example]},
        "embedding_map": {name: [Point(1.5, 2.5, 1, f"{HOSTILE}: cat")] for name in ("pretrain", "grpo_rm")},
        "neighborhoods": [Neighborhood(Picture("test 1", PIXEL, "cat"), {"pretrain": [(picture, 0.5)]})],
        "validation": validation([]),
        "robustness": {"grpo_rm": [{"strength": 1, "noise": 0.5}]},
    }


def validation(failed: list[dict[str, Any]]) -> dict[str, Any]:
    expectations = [{"success": True, "severity": "critical", "description": "fine", "fix": ""}, *failed]
    is_fine = not any(each["severity"] == "critical" for each in failed)
    return {"success": is_fine, "statistics": {"rows": 4, "evaluated": len(expectations)}, "expectations": expectations}


def test_pictures_hold_their_bytes_and_say_what_they_show() -> None:
    images = [attributes for tag, attributes in render(**everything()).found if tag == "img"]
    assert len(images) == 4 and {image["src"] for image in images} == {PIXEL}
    assert any(image["alt"] == f"predicted {HOSTILE}, actual cat" for image in images)


def test_hostile_ids_and_classes_are_text() -> None:
    assert not {"script", "iframe"} & {tag for tag, _ in render(**everything()).found}
    assert f"{HOSTILE}: cat" in render(**everything()).text


def test_dots_lie_where_the_map_says() -> None:
    dots = [attributes for tag, attributes in render(**everything()).found if attributes.get("r") == "3"]
    assert [(dot["cx"], dot["cy"]) for dot in dots] == [("1.5", "2.5")] * 2
    assert len({dot["fill"] for dot in dots}) == 1


def test_a_neighbor_of_another_class_is_marked() -> None:
    def marked(label: str) -> int:
        hood = Neighborhood(Picture("test", PIXEL, "cat"), {"grpo_rm": [(Picture("train", PIXEL, label), 0.5)]})
        return [attributes.get("class") for _, attributes in render(neighborhoods=[hood]).found].count("other-class")

    assert (marked("cat"), marked(HOSTILE)) == (0, 1)


def test_what_was_not_given_is_absent_or_said_to_be() -> None:
    page = render()
    ids = {attributes.get("id") for _, attributes in page.found}
    assert not {"map", "neighbors"} & ids and "img" not in {tag for tag, _ in page.found}
    assert "not validated" in page.text and "Not measured" in page.text
    links = {str(attributes["href"])[1:] for tag, attributes in page.found if tag == "a"}
    assert links <= ids


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        ([], "all 1 expectations hold"),
        ([FAILED], "1 of 2 expectations failed"),
        ([FAILED, FAILED | {"severity": "critical", "unexpected_count": 7}], "2 of 3 expectations failed"),
    ],
)
def test_the_data_section_says_what_validation_found(failed: list[dict[str, Any]], words: str) -> None:
    text = " ".join(render(validation=validation(failed)).text.split())
    assert words in text
    assert text.count("images are large") == len(failed)
    if len(failed) == 2:
        assert "criticalimages are large7look" in text
        assert text.index("criticalimages") < text.index("warningimages")
