"""`lmsmith compare`: the table, the JSON and the page."""

import json
from pathlib import Path

import pytest
from conftest import Lmsmith


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
        ((), "name runs and --text FILE"),
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
