"""`lmsmith eval --tasks` as a user calls it, and tasks during training."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, TINY

ITEMS = [
    {"query": f"Which is {n}?", "choices": ["this", "that one"], "gold": n % 2} for n in range(3)
]


@pytest.fixture
def run(lmsmith: Any) -> str:
    (lmsmith.cwd / "book.txt").write_text(TEXT)
    write_items(lmsmith.cwd / "data")
    done = lmsmith(
        *("train", "book.txt", "--steps", "4", "--out", "run", "--tokenizer", "byte", *TINY),
        *("--train.eval_every", "2", "--train.tasks", "piqa", "--train.task_data", "data"),
    )
    assert done.status == 0, done.err
    return "run"


def write_items(folder: Path) -> None:
    folder.mkdir()
    lines = (json.dumps(item) + "\n" for item in ITEMS)
    (folder / "piqa.jsonl").write_text("".join(lines))


def test_tasks_of_a_run(lmsmith: Any, run: str) -> None:
    """Numbers of the command, of each item, and those that training wrote are the same."""
    asked = ["eval", run, "--tasks", "piqa,story_object", "--task-data", "data"]
    done = lmsmith(*asked, "--limit", 3, "--json", "--per-item", "items.jsonl")
    assert done.status == 0, done.err
    found = json.loads(done.out)["tasks"]
    lines = [json.loads(x) for x in (lmsmith.cwd / "items.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["piqa"] * 3 + ["story_object"] * 3
    for task in ("piqa", "story_object"):
        grades = [line["acc"] for line in lines if line["task"] == task]
        assert found[task]["acc"] == pytest.approx(sum(grades) / 3)
    assert found["story_object"]["ceiling"] == 1.0
    for line in lines[:3]:
        best = line["log_likelihoods"].index(max(line["log_likelihoods"]))
        assert line["acc"] == float(best == line["gold"])
    metrics = (lmsmith.cwd / run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, metrics) if row["kind"] == "tasks"]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1]["piqa.acc"] == pytest.approx(found["piqa"]["acc"])
    assert "piqa, acc" in (lmsmith.cwd / run / "report.html").read_text()
    # ---- the table, and what was cut: the model reads 16 bytes ----
    done = lmsmith(*asked)
    assert "piqa" in done.out.splitlines()[1]
    assert "note: piqa: 3 of 3 items are longer than the model's context" in " ".join(
        done.out.split()
    )
    # ---- wrong use ----
    for words, said in (
        (["--tasks", "pika"], "Did you mean 'piqa'?"),
        (["--tasks", "piqa", "--limit", "0"], "--limit"),
        (["--tasks", "piqa", "--shots", "-1"], "--shots -1: "),
        (["--tasks", "piqa", "--text", "book.txt"], "--text is for texts"),
        (["--tasks", "piqa", "--task-data", "nowhere"], "there is no folder nowhere"),
        (["--limit", "3"], "--limit is for tasks"),
        (["--per-document", "x.jsonl"], "there is no --text"),
        (["--tasks", "core", "--task-data", "data"], "needs nanochat's eval bundle"),
    ):
        done = lmsmith("eval", run, *words)
        assert done.status != 0
        assert said in " ".join(done.err.split()), done.err
        assert "Traceback" not in done.err
    # ---- each document ----
    (lmsmith.cwd / "two.jsonl").write_text('{"text": "A bird."}\n{"text": "My aunt saw it."}\n')
    asked = ["eval", run, "--text", "two.jsonl", "--json"]
    done = lmsmith(*asked, "--per-document", "each.jsonl")
    each = [json.loads(x) for x in (lmsmith.cwd / "each.jsonl").read_text().splitlines()]
    assert [one["n_bytes"] for one in each] == [7, 15]
    whole = json.loads(done.out)
    assert whole == json.loads(lmsmith(*asked).out)
    assert sum(one["n_tokens"] for one in each) == whole["n_tokens"]
    nats = whole["nats_per_token"] * whole["n_tokens"]
    assert sum(one["nats"] for one in each) == pytest.approx(nats, rel=1e-6)


def test_training_with_an_unknown_task_is_refused_before_the_text_is_read(lmsmith: Any) -> None:
    (lmsmith.cwd / "book.txt").write_text(TEXT)
    done = lmsmith("train", "book.txt", "--out", "run", "--train.tasks", "pika", *TINY)
    assert done.status == 2
    assert "Did you mean 'piqa'?" in " ".join(done.err.split())
    assert not (lmsmith.cwd / "run").exists()
