"""`lmsmith compare`: the table, the JSON and the page."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Lmsmith


def test_runs_and_compressors_on_one_text(lmsmith: Lmsmith, run: Path) -> None:
    text = (run / "tokens" / "validation.txt").read_bytes()
    (lmsmith.cwd / "text.txt").write_bytes(text)
    done = lmsmith("train", "book.txt", "--preset", "ngram", "--model.order", 3, "--out", "counts")
    assert done.status == 0, done.err
    assert "bits per byte" in done.out
    done = lmsmith("generate", "counts", "The cat", "--max-tokens", 20)
    assert done.status == 0, done.err
    assert done.out.startswith("The cat")
    done = lmsmith("compare", "run", "counts", "--text", "text.txt", "--json")
    assert done.status == 0, done.err
    entries = {entry["name"]: entry for entry in json.loads(done.out)}
    assert entries["uniform"]["bits_per_byte"] == 8
    for name, place in (("run", run), ("counts", lmsmith.cwd / "counts")):
        summary = json.loads((place / "summary.json").read_text())
        assert entries[name]["bits_per_byte"] == pytest.approx(
            summary["best_val_bits_per_byte"], rel=1e-5
        )
        assert entries[name]["n_params"] == summary["n_params"]
        assert entries[name]["train_seconds"] == pytest.approx(summary["train_seconds"])
    (pair,) = entries["run"]["differences"]
    assert {pair["a"], pair["b"]} == {"run", "counts"}
    assert pair["verdict"].startswith("not tested: a test needs 20 documents or 20,000 bytes")
    assert entries["uniform"]["differences"] == []
    (lmsmith.cwd / "text.txt").write_bytes(text + b"\xff")
    done = lmsmith("compare", "run", "counts", "--text", "text.txt", "--out", "comparison.html")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    odd = "1 of them are not valid UTF-8 and count unchanged"
    assert lines[0] == f"text.txt: {len(text) + 1:,} bytes, the same for all models; {odd}"
    assert (
        "note: 1 unit of the text unknown to the tokenizer of run cost 8 bits per byte and their"
        in done.out
    )
    assert {"run", "counts", "gzip", "xz", "uniform"} <= {
        line.split()[0] for line in lines[2:] if line
    }
    assert "text.txt" in (lmsmith.cwd / "comparison.html").read_text(encoding="utf-8")


def test_missing_arguments_and_files_are_named(lmsmith: Lmsmith) -> None:
    for words, what in (
        ((), "name runs and --text FILE or --tasks NAMES"),
        (("nothing",), "nothing to compare"),
        (("nothing", "--tasks", "piqa"), "at least two runs"),
        (("a", "b", "--tasks", "pika"), "Did you mean 'piqa'?"),
        (("a", "b", "--tasks", "story_object"), "a is not a run"),
        (("a", "b", "--text", "book.txt", "--limit", "3"), "limit is for tasks"),
        (("a", "b", "--tasks", "piqa", "--items", "a.jsonl", "b.jsonl"), "do not go together"),
        (("nothing", "--text", "book.txt"), "nothing is not a run"),
        (("nothing", "--text", "none.txt"), "there is no file or folder none.txt"),
        (
            ("nothing", "--text", "book.txt", "--out", "no/such/page.html"),
            "there is no folder no/such",
        ),
        (
            ("nothing", "--text", "book.txt", "--out", "."),
            "--out . is a folder: name the HTML file",
        ),
        (
            ("--train", "book.txt", "--models", "gpt7", "--out", "no/page.html"),
            "there is no folder no",
        ),
        (
            ("--train", "book.txt", "--models", "gpt7", "--text", "none.txt"),
            "there is no file or folder none.txt",
        ),
        (("--train", "book.txt", "--models", "gpt7"), "no preset 'gpt7'"),
    ):
        done = lmsmith("compare", *words)
        assert done.status != 0
        assert what in done.err, done.err
        assert "Traceback" not in done.err


def test_items_of_tasks(lmsmith: Lmsmith) -> None:
    for name, right in (("a", 30), ("b", 12)):
        rows = [{"task": "piqa", "item": i, "correct": i < right} for i in range(40)]
        (lmsmith.cwd / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("compare", "--items", "a.jsonl", "b.jsonl")
    done = lmsmith(*words, "--out", "items.html")
    assert done.status == 0, done.err
    assert "a is better" in done.out
    assert "75.0%" in done.out
    assert "McNemar's test" in done.out
    page = (lmsmith.cwd / "items.html").read_text(encoding="utf-8")
    assert "<b>a is better</b>" in page
    first, second = json.loads(lmsmith(*words, "--json").out)
    assert (first["name"], first["accuracy"], second["accuracy"]) == ("a", 0.75, 0.3)
    assert first["differences"] == second["differences"]
    assert first["differences"][0]["low"] > 0.2
    done = lmsmith("compare", "--items", "a.jsonl")
    assert done.status == 2
    assert "at least two models" in done.err


def test_tasks_on_several_runs(lmsmith: Lmsmith, run: Path) -> None:
    """Accuracies are those of `eval`, and the test is McNemar's, computed here from the items."""
    shutil.copytree(run, lmsmith.cwd / "same")
    done = lmsmith("train", "book.txt", *("--steps", 2, "--seed", 5, "--out", "other"), *TINY)
    assert done.status == 0, done.err
    draw = random.Random(0)
    rows = [
        {
            "query": "The cat saw it.",
            "choices": ["".join(draw.choices("tesh", k=4)) for _ in "ab"],
            "gold": 0,
        }
        for _ in range(60)
    ]
    (lmsmith.cwd / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("--tasks", "piqa", "--task-data", "piqa.jsonl", "--limit", 50)
    done = lmsmith("compare", "run", "other", "same", *asked, "--json", "--out", "tasks.html")
    assert done.status == 0, done.err
    found = {row["name"]: row for row in json.loads(done.out)}
    right = {}
    for name in ("run", "other"):
        done = lmsmith("eval", name, *asked, "--json", "--per-item", f"{name}.jsonl")
        numbers = json.loads(done.out)["tasks"]["piqa"]
        assert found[name]["accuracy"] == pytest.approx(numbers["acc"])
        assert found[name]["n_items"] == 50
        lines = map(json.loads, (lmsmith.cwd / f"{name}.jsonl").read_text().splitlines())
        right[name] = [line["acc"] == 1 for line in lines]
    pairs = {(d["a"], d["b"]): d for row in found.values() for d in row["differences"]}
    one, two = (
        sum(x and not y for x, y in zip(right[a], right[b], strict=True))
        for a, b in (("run", "other"), ("other", "run"))
    )
    few, n = min(one, two), one + two
    assert n > 0
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    tested = pairs["run", "other"]
    assert tested["p"] == pytest.approx(p)
    assert tested["difference"] == pytest.approx((one - two) / 50)
    assert tested["low"] <= tested["difference"] <= tested["high"]
    assert pairs["run", "same"]["p"] == 1
    assert pairs["run", "same"]["verdict"] == "no difference shown"
    assert "no difference shown" in (lmsmith.cwd / "tasks.html").read_text()
    # ---- saved results of the same items give the same test ----
    done = lmsmith("compare", "--items", "run.jsonl", "other.jsonl", "--json")
    saved = json.loads(done.out)[0]["differences"][0]
    assert {key: saved[key] for key in ("p", "low", "high")} == {
        key: tested[key] for key in ("p", "low", "high")
    }
    # ---- beside a text, and in words ----
    done = lmsmith("compare", "run", "other", "--text", "book.txt", *asked)
    assert done.status == 0, done.err
    assert "no difference shown" in done.out
    assert "McNemar's test" in done.out
    assert "gzip" in done.out
    assert "run, piqa: 50 of 50 items are longer than the model's context" in " ".join(
        done.out.split()
    )
