"""The comparison as table and page; models trained for it, on the same text for the same time."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmsmith.errors import ConfigError, UsageError
from lmsmith.evaluate.comparison import Entry, Text, read_text
from lmsmith.evaluate.differences import Difference
from lmsmith.report.comparison import (
    HEAD,
    compare_runs,
    comparison_notes,
    comparison_page,
    comparison_rows,
    equal_time,
    run_names,
    train_all,
)
from lmsmith.report.differences import difference_notes, difference_rows
from lmsmith.run_folder import load_for_use, open_run, score_validation, summary_of

TEXT = (
    "".join(
        f"{who} {did} the {what}.\n"
        for who in ("A cat", "Nobody")
        for did in ("saw", "hid")
        for what in "xyz"
    )
    * 30
)
TEXT = TEXT[:-300] + TEXT[-300:].replace("t", "ß")  # held out, and unknown

ENTRIES = [
    Entry("mine", "lstm, 1 layer of 64", 2.25, 41_300, 900, 2, 0, 61.0, 0.5, 2e6, 24.3),
    Entry("xz <&>", "compressor", 3.0, score_seconds=1.0, bytes_per_second=1e6),
    Entry("uniform", "every byte equally likely", 8.0),
    Entry("mle", "3-gram, mle", math.inf, 100, 1000, 0, 25, 0.1, 0.5, 2e6),
]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_the_cells_of_the_table() -> None:
    rows = comparison_rows(ENTRIES)
    assert all(len(row) == len(HEAD) for row in rows)
    assert rows[0] == ["mine", "lstm, 1 layer of 64", "2.250", "41.3k", "1 min 1 s", "2"]
    assert rows[2][2:] == ["8.000", "—", "—", "—"]
    assert rows[3][2] == "infinite"
    unknown, impossible = comparison_notes(ENTRIES)
    assert unknown == (
        "2 units of the text unknown to the tokenizer of mine cost 8 bits per byte and their "
        "positions, 24 bits in total"
    )
    assert "mle gives 2.50% of the tokens probability zero" in impossible
    (wasted,) = comparison_notes([Entry("gap", "Transformer", 4.0, n_ids_without_token=7)])
    assert (
        wasted
        == "7 ids of gap without a token: probability assigned to them counts against the model"
    )


def test_the_page_has_a_bar_for_each_finite_entry() -> None:
    page = comparison_page(ENTRIES, Text("a<b", b"x" * 12_345, ()))
    assert page.count('class="bar"') == 3
    assert f"width:{100 * 2.25 / 8:.2f}%" in page
    assert "width:100.00%" in page
    assert "12,345 bytes, the same for all models. Fewer" in page
    odd = comparison_page(ENTRIES, Text("t", b"x\xff\xff", ()))
    assert (
        "3 bytes, the same for all models; 2 of them are not valid UTF-8 and count unchanged."
        in odd
    )
    assert "xz &lt;&amp;&gt;" in page
    assert "<&>" not in page
    assert "<script" not in page
    assert "Learning" not in page


def test_differences_are_shown_with_their_intervals() -> None:
    rows = [
        Difference("mine", "a<b", "bits per byte", "blocks", 98, -0.0434, -0.05, -0.04, 1e-5, 3e-5),
        Difference("mine", "mle", "bits per byte", "blocks", 98, 0.01, -0.02, 0.04, 0.3, 0.3),
        Difference("a<b", "mle", "bits per byte", "blocks", 98, reason="infinite"),
    ]
    assert difference_rows(rows) == [
        ["mine vs a<b", "bits per byte", "-0.0434", "-0.0500 to -0.0400", "< 0.001",
         "mine is better"],
        ["mine vs mle", "bits per byte", "+0.0100", "-0.0200 to +0.0400", "0.300",
         "no difference shown"],
        ["a<b vs mle", "bits per byte", "—", "—", "—", "not tested: infinite"],
    ]  # fmt: skip
    page = comparison_page(ENTRIES, Text("t", b"text", ()), differences=rows)
    assert "<b>mine is better</b>" in page
    assert page.count("<circle") == 2
    assert "a<b" not in page
    assert "paired bootstrap over 98 blocks into which the text was cut" in page
    assert "corrected for 2 tests (Holm)" in page
    assert difference_notes(rows[2:]) == []


def test_a_run_that_was_cut_short_is_marked() -> None:
    early = replace(
        ENTRIES[0],
        not_comparable="cut short by its time limit after 2 of 9 planned steps",
    )
    note = (
        "mine is not comparable with the others: cut short by its time limit after 2 of 9 "
        "planned steps"
    )
    assert note in comparison_notes([early])
    page = comparison_page([early, *ENTRIES[1:]], Text("it", b"it", ()))
    assert "lstm, 1 layer of 64; not comparable" in page
    assert note in page


def test_models_are_trained_first_on_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("lmsmith.train.start.CLOSING_SECONDS", 0.0)
    monkeypatch.setattr("lmsmith.train.start.LEAST_SECONDS", 0.01)
    changes: dict[str, Any] = {
        "train.threads": 1,
        "train.matmul": "default",
        "train.dtype": "float32",
    }
    changes |= {"train.eval_every": 5, "train.stop_at_val_loss": 10.0}  # long before the time is up
    runs = train_all(
        ["book.txt"],
        changes,
        ["ngram", "gru"],
        minutes=0.5,
        out=None,
        console=Console(file=io.StringIO()),
    )
    assert runs == [Path("runs/comparison-1/ngram"), Path("runs/comparison-1/gru")]
    found = [open_run(run) for run in runs]
    assert len({(run / "tokens" / "train.bin").read_bytes() for run in runs}) == 1
    assert [config.preset for config, _ in found] == ["ngram", "gru"]
    assert all(config.train.minutes == 0.5 for config, _ in found)
    text = read_text(runs[0] / "tokens" / "validation.txt")
    said = equal_time(runs, ["book.txt"], 0.5)
    assert (
        said == "each model trained on book.txt for 0.5 minutes on this machine; ngram read the "
        "text once"
    )
    page = comparison_page(compare_runs(runs, text), text, runs, said)
    assert "<h2>Learning curves</h2>" in page  # the curves of gru
    assert "Loss by training time" in page
    assert "Each model trained on book.txt for 0.5 minutes" in page
    assert page.count("</svg>gru</li>") == 1
    assert "</svg>ngram</li>" not in page
    entries = {entry.name: entry for entry in compare_runs(runs, text)}
    assert list(entries) == sorted(entries, key=lambda name: entries[name].bits_per_byte)
    assert set(entries) == {"ngram", "gru", "uniform", "gzip", "xz"}
    for run in runs:
        summary = summary_of(run)
        assert entries[run.name].bits_per_byte == pytest.approx(
            summary["best_val_bits_per_byte"], rel=0.02
        )
        assert entries[run.name].unknown_bits > 8 * entries[run.name].n_unknown * 2 > 0
        own = score_validation(run, load_for_use(run)[0], stride=None)
        assert own.bits_per_byte == pytest.approx(summary["best_val_bits_per_byte"], rel=1e-6)
        assert own.unknown_bits == entries[run.name].unknown_bits
        assert entries[run.name].train_seconds == summary["train_seconds"]
        assert entries[run.name].n_params == summary["n_params"]
    assert len({entry.name for entry in compare_runs([runs[0], tmp_path / runs[0]], text)}) == 5


def test_runs_have_distinct_names() -> None:
    def names(*runs: str) -> list[str]:
        return run_names([Path(run) for run in runs])

    assert names("runs/a", "b") == ["a", "b"]
    assert names("one/a", "two/a", "b") == [str(Path("one/a")), str(Path("two/a")), "b"]
    assert names("a", "a", "./a") == ["a", "a (2)", "a (3)"]
    assert names("runs/gzip", "uniform") == ["gzip (2)", "uniform (2)"]


def test_missing_runs_are_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lmsmith.report.comparison.baselines", lambda text: pytest.fail("some minutes of work")
    )
    with pytest.raises(UsageError, match="nowhere is not a run"):
        compare_runs([tmp_path / "nowhere"], Text("it", b"it", ("it",)))


def test_errors_before_training(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(UsageError, match=r"no preset 'gpt5'.*gpt, "):
        train_all(
            ["book.txt"], {}, ["ngram", "gpt5"], minutes=1, out=tmp_path / "out", console=console
        )
    with pytest.raises(ConfigError, match="above 0"):
        train_all(["book.txt"], {}, ["ngram"], minutes=0, out=tmp_path / "out", console=console)
    assert not (tmp_path / "out").exists()
