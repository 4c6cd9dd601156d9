"""The tables that `make bench` writes into the documentation, and the clock of the training's benchmark."""

import pytest

from benchmarks import loop
from benchmarks.training_table import format_table, machine_name, with_table

MACHINE = {"cpu": "Some(R) CPU @ 2 GHz", "cores": 2, "gpu": None, "system": "Linux", "python": "3.11"}
END = "<!-- end of training -->"


def test_a_machine_has_one_table():
    first = with_table(f"before\n{END}\nafter\n", "a", "one")
    both = with_table(first, "b", "two")
    assert [both.count(text) for text in ("one", "two", END)] == [1, 1, 1]
    again = with_table(both, "a", "three")
    assert "one" not in again
    assert again.index("before") < again.index("three") < again.index("two") < again.index(END) < again.index("after")
    assert with_table(again, "a", "three") == again


def test_a_document_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="has no line <!-- end of training -->"):
        with_table("before", "a", "one")


def test_machine_name():
    assert machine_name(MACHINE) == "some-r-cpu-2-ghz-2-cores"
    assert machine_name(MACHINE | {"gpu": "Some H1"}) == "some-r-cpu-2-ghz-2-cores-some-h1"


def test_what_was_skipped_is_said():
    table = format_table(
        {
            "machine": MACHINE,
            "commit": "abc",
            "packages": {"torch": "2"},
            "gpu": {"skipped": "no CUDA device"},
            "peers": {
                "settings": {"model": "m", "train_images": 1000, "batch_size": 8},
                "rounds": [{"ours": {"seconds": s, "accuracy": 0.5}} for s in (3.0, 1.0, 2.0)],
                "over": {},
                "versions": {"ours": {}},
                "workers": {"ours": 1},
                "missing": {"timm": "no network"},
            },
        }
    )
    assert "| gpu | not measured: no CUDA device |  |" in table
    assert "| epoch, timm | not measured: no network |  |" in table
    assert "| epoch, ours, 1 workers | 2.00 (1.00-3.00) s, accuracy 0.500 |  |" in table


def test_trainer_and_bare_loop_take_turns(monkeypatch):
    monkeypatch.setattr(loop, "TURN", 2)
    monkeypatch.setattr(loop, "ROUNDS", 3)
    subject = loop.Subject("test_vit", 32, 4, num_classes=5)
    result = loop.measure(subject)
    assert result["rounds"] == 3
    for part in ("loop", "step"):
        ratio = result[part]["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


def test_turns_are_compared_with_their_neighbors():
    """A machine that gets ten times slower half way changes no ratio."""
    subject = loop.Subject("test_vit", 32, 1)
    first, second = [1.0] * 10 + [10.0] * 10, [2.0] * 10 + [20.0] * 10
    result = loop.rates(first, second, subject, names=("a", "b"))
    assert result["ratio"] == {"median": 2.0, "min": 2.0, "max": 2.0}
