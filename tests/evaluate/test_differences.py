"""Items of tasks, paired by id; verdicts."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmsmith.errors import DataError, UsageError
from lmsmith.evaluate.differences import (
    Difference,
    accuracies,
    item_differences,
    named_items,
    read_items,
)
from lmsmith.evaluate.significance import holm, mcnemar


def items(*right: int, n: int = 40, task: str = "t") -> list[dict[str, Any]]:
    return [{"task": task, "item": f"{i}", "correct": i in right} for i in range(n)]


def test_items_are_paired_by_id() -> None:
    a, b = items(*range(30)), items(*range(25, 33))
    for answers in (b, b[::-1]):
        (row,), notes = item_differences({"a": a, "b": answers})
        assert (row.difference, row.n, row.measure) == ((25 - 3) / 40, 40, "t")
        assert row.p == row.p_corrected == mcnemar(25, 3)
        assert (row.better, row.verdict, notes) == ("a", "a is better", [])
    (row,), (note,) = item_differences({"a": a, "b": items(*range(40), n=38)})
    assert (row.n, row.better) == (38, "b")
    assert note == "2 items of t that only one of a and b answered are not compared"
    (row,), _ = item_differences({"a": a, "b": items(*range(29))})
    assert (row.better, row.verdict) == ("", "no difference shown")


def test_all_tests_of_a_table_are_corrected_together() -> None:
    models = {
        name: [*items(*range(n)), *items(*range(n // 2), task="u")]
        for name, n in (("a", 30), ("b", 24), ("c", 10))
    }
    rows, _ = item_differences(models)
    assert [(row.a, row.b, row.measure) for row in rows] == [
        (a, b, task) for a, b in ("ab", "ac", "bc") for task in "tu"
    ]
    assert [row.p_corrected for row in rows] == holm([row.p or 0 for row in rows])
    assert not rows[0].better  # 6 of 6 discordant pairs, p = 0.03, times more than 2
    assert rows[0].p is not None
    assert rows[0].p < 0.05


def test_a_task_that_only_one_model_did() -> None:
    rows, notes = item_differences({"a": items(1), "b": items(1, task="u")})
    assert {row.verdict for row in rows} == {"not tested: no item in common"}
    assert len(notes) == 2


def test_fewer_bits_but_higher_accuracies_are_better() -> None:
    for measure, better in (("bits per byte", "b"), ("t", "a")):
        row = Difference("a", "b", measure, "documents", 30, 0.2, 0.1, 0.3, 0.01, 0.04)
        assert row.better == better
        assert row.as_dict()["verdict"] == f"{better} is better"


def test_accuracy_with_wilsons_interval() -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    (row,) = accuracies({"a": items(*range(15), n=148)})
    assert (row.accuracy, row.n_items) == (15 / 148, 148)
    assert (row.low, row.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_files_of_items(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = "\n".join(map(json.dumps, items(1, 2)))
        (tmp_path / f"{name}.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    found = named_items([tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")])
    assert list(found) == ["a", "b"]
    assert found["a"] == items(1, 2)
    assert named_items({"x": found["a"], "y": tmp_path / "b.jsonl"})["y"] == found["b"]
    with pytest.raises(UsageError, match="at least two models"):
        named_items([tmp_path / "a.jsonl"])
    with pytest.raises(UsageError, match="named twice"):
        named_items([tmp_path / "a.jsonl"] * 2)
    for content, what in (
        ("{", "line 1: not JSON"),
        ("3", r'line 1: expected \{"task"'),
    ):
        (tmp_path / "bad.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=what):
            read_items(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="cannot read the items"):
        read_items(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "there are none"),
        ([{"item": 1}], "found item 1 and correct None"),
        ([{"correct": True}], "found item None"),
        ([{"item": 1, "correct": "yes"}], "correct 'yes'"),
        ([{"item": 1, "correct": True}, {"item": 1, "correct": True}], "two results of item 1"),
    ],
)
def test_items_that_cannot_be_compared(rows: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(DataError, match=what):
        item_differences({"a": rows, "b": items(1)})
