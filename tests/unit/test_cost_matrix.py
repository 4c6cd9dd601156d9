"""The cost matrix: read in any order, and never read wrongly."""

import random

import pytest
import torch

from grpo_rm.cost_matrix import read_cost_matrix

CLASSES = ("cat", "dog", "red fox")
GOLDEN = [[0, 1, 10], [2, 0, 0.5], [4, 5, 0]]
TEXT = "true,cat,dog,red fox\ncat,0,1,10\ndog,2,0,.5\nred fox,4,5,0\n"


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "costs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT.rstrip("\n"),
        TEXT.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("true,", ","),
        "\n" + TEXT.replace("\n", "\n\n") + ",,,\n",
        TEXT.replace(",", " , "),
        '"true","cat","dog","red fox"\n"cat","0","1","1e1"\n"dog",2,0,0.5\n"red fox",4,5,-0\n',
        "true,dog,red fox,cat\nred fox,5,0,4\ncat,1,10,0\ndog,0,.5,2\n",
    ],
)
def test_golden(write, content):
    costs = read_cost_matrix(write(content), CLASSES)
    assert costs.dtype == torch.float32
    assert costs.tolist() == GOLDEN


def test_names_with_commas_quotes_and_accents(write):
    classes = ("a, b", 'the "c"', "Füchse")
    text = 'x,"a, b","the ""c""",Füchse\n"the ""c""",3,4,5\nFüchse,6,7,8\n"a, b",0,1,2\n'
    assert read_cost_matrix(write(text), classes).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_any_order_gives_the_same_matrix(write):
    rng = random.Random(0)
    classes = tuple(f"class {index}" for index in range(12))
    costs = [[rng.randint(0, 99) for _ in classes] for _ in classes]
    for _ in range(5):
        rows, columns = rng.sample(range(12), 12), rng.sample(range(12), 12)
        lines = [["", *(classes[k] for k in columns)]]
        lines += [[classes[y], *(str(costs[y][k]) for k in columns)] for y in rows]
        text = "\n".join(",".join(line) for line in lines)
        assert read_cost_matrix(write(text), classes).tolist() == costs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no header, expected a first line like: true,cat,dog"),
        (TEXT.replace(",", ";"), "has no header, expected a first line like"),
        (TEXT.replace("dog,red", "dgo,red"), "column 2 is of 'dgo', which is no class; did you mean 'dog'"),
        (TEXT.replace("dog,2", "bird,2"), "row 2 is of 'bird', which is no class; expected one of cat, dog, red fox"),
        (TEXT.replace("Cat", "cat").replace("\ncat", "\nCat"), "row 1 is of 'Cat', which is no class"),
        (TEXT.replace("dog,red", "cat,red"), "'cat' has more than one column, expected one for each class"),
        (TEXT + "dog,1,1,1\n", "'dog' has more than one row"),
        ("true,cat,dog\ncat,0,1\ndog,1,0\n", "1 of 3 classes have no column: red fox"),
        (TEXT.replace("dog,2,0,.5\n", ""), "1 of 3 classes have no row: dog"),
        (TEXT.replace("2,0,.5", "2,0"), "line 3: 2 costs in the row of 'dog', expected 3, one a column"),
        (TEXT.replace("2,0,.5", "2,0,.5,7"), "line 3: 4 costs in the row of 'dog', expected 3"),
        (
            TEXT.replace("2,0,.5", "2,0,much"),
            "line 3: the cost of 'red fox' where 'dog' is true is 'much', expected a n",
        ),
        (TEXT.replace("2,0,.5", "2,,.5"), "line 3: the cost of 'dog' where 'dog' is true is '', expected a number"),
        (TEXT.replace("2,0,.5", "nan,0,.5"), "the cost of 'cat' where 'dog' is true is nan, expected a finite number"),
        (TEXT.replace("2,0,.5", "inf,0,.5"), "is inf, expected a finite number"),
        (TEXT.replace("2,0,.5", "1e300,0,.5"), "is 1e300, expected a finite number"),
        (TEXT.replace("red fox,4", '"red fox,4'), "is no CSV file in UTF-8: unexpected end of data"),
        (TEXT.replace("red fox", "rød").encode("latin-1"), "is no CSV file in UTF-8: 'utf-8' codec can't decode"),
    ],
)
def test_mistakes(write, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_cost_matrix(write(content), CLASSES)
    assert "costs.csv" in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cost matrix .*missing\.csv not found"):
        read_cost_matrix(tmp_path / "missing.csv", CLASSES)
