"""Runs of n-gram models: the same folder as other runs, with the results of counting."""

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import TEXT

from lmsmith.data.corpus import load
from lmsmith.errors import ConfigError, UsageError
from lmsmith.evaluate.likelihood import score_ids
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.report.runs import write_report
from lmsmith.run_folder import load_for_use, open_run, score_validation, summary_of
from lmsmith.train.request import asked
from lmsmith.train.start import resume, train

NGRAM: dict[str, Any] = {"preset": "ngram"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    Path("book.txt").write_text(TEXT, encoding="utf-8")


def count(
    changes: dict[str, Any], out: str = "run", source: str = "book.txt"
) -> tuple[Path, dict[str, Any], str]:
    said = io.StringIO()
    run, summary = train(
        [source], NGRAM | changes, out=Path(out), console=Console(file=said, width=100)
    )
    return run, summary, said.getvalue()


@pytest.mark.parametrize("smoothing", ["kneser-ney", "add-k", "mle"])
def test_a_run_equals_counting_directly(smoothing: str) -> None:
    run, summary, said = count({"model.smoothing": smoothing, "model.order": 3})
    config, corpus = open_run(run)
    assert (config.model.order, config.model.vocab_size) == (3, corpus.tokenizer.vocab_size)
    shown = {path.name for path in run.iterdir() if path.name[0] != "."}
    assert shown == {"config.toml", "model", "samples.md", "summary.json", "tokens"}
    oracle = Ngram.learn(config.model, np.asarray(corpus.train))
    wanted = score_ids(
        oracle,
        np.asarray(corpus.validation),
        n_bytes=corpus.counts.n_val_bytes,
        left_out=corpus.tokenizer.skips_unknown,
    )
    model, tokenizer, content = load_for_use(run)
    assert tokenizer == corpus.tokenizer
    assert content["data"] == {"documents": "stream"}
    assert score_validation(run, model, stride=None) == wanted
    assert summary == summary_of(run)
    assert (summary["finished"], summary["n_params"], summary["steps"]) == (
        "counted",
        oracle.n_parameters(),
        0,
    )
    assert summary["tokens_seen"] == len(corpus.train)
    assert summary["val_impossible_share"] == wanted.n_impossible / wanted.n_tokens
    if math.isinf(wanted.nats):
        assert smoothing == "mle"
        assert summary["val_loss"] is summary["val_bits_per_byte"] is None
    else:
        assert summary["val_loss"] == pytest.approx(wanted.nats_per_token, rel=1e-12)
    assert set(summary["baselines"]) == {"gzip", "xz"}
    assert f"3-grams, smoothing {smoothing}; {oracle.n_parameters():,} counted" in said
    page = write_report([run], run / "report.html").read_text(encoding="utf-8")
    assert f"N-gram model, counted in one pass: 3-grams, smoothing {smoothing}" in page
    assert "incomplete" not in page


def test_compilation_does_not_count_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation may take longer than counting; comparisons and reports show the time of counting."""
    learn, n_calls = Ngram.learn, 0

    def slow_at_first(*inputs: Any) -> Ngram:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            time.sleep(1)
        return learn(*inputs)

    learn(NgramConfig(vocab_size=9), np.arange(8, dtype=np.uint16))  # this process may be the first
    monkeypatch.setattr(Ngram, "learn", slow_at_first)
    assert count({})[1]["train_seconds"] < 0.9


def test_a_killed_run_is_counted_again() -> None:
    run, summary, _ = count({})
    weights = (run / "model" / "model.safetensors").read_bytes()
    for missing in ("summary.json", "samples.md", "model/model.safetensors"):
        (run / missing).unlink()
    again = resume(run, console=Console(file=io.StringIO()))
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    same = {
        name
        for name in summary
        if not name.endswith("_seconds") and name not in ("tokens_per_second", "mfu")
    }
    assert {name: again[name] for name in same - {"peak_memory_bytes"}} == {
        name: summary[name] for name in same - {"peak_memory_bytes"}
    }
    said = io.StringIO()
    assert resume(run, console=Console(file=said)) == again
    assert "counted once and cannot continue" in said.getvalue()


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({"tokenizer": "char"}, 8),
        ({"tokenizer": "byte"}, 8),
        ({"tokenizer": "word"}, 5),
        ({"tokenizer": "char", "model.order": 5}, 5),
        ({"tokenizer": "char", "model.smoothing": "add-k"}, 5),
    ],
)
def test_the_default_order_depends_on_the_tokenizer(changes: dict[str, Any], order: int) -> None:
    run, _, _ = count(changes)
    assert open_run(run)[0].model.order == order
    repeated, given = asked([str(run / "config.toml")], {})
    assert repeated.model.order == order
    assert "model.order" in given


def test_documents_form_one_stream_with_end_of_text_tokens() -> None:
    lines = [json.dumps({"text": f"{line} {i}"}) for i, line in enumerate(TEXT.split("\n")[:60])]
    Path("book.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run, _, _ = count({"tokenizer": "char", "model.order": 2}, source="book.jsonl")
    model, tokenizer, _ = load_for_use(run)
    end = tokenizer.end_of_text
    assert end is not None
    first = model.next_logits(torch.tensor([[end]]), model.new_state(1)).exp()[0]
    corpus = load(run / "tokens")
    train_ids = np.asarray(corpus.train)
    follows = np.bincount(train_ids[1:][train_ids[:-1] == end], minlength=model.vocab_size)
    assert (first[follows > 0].min() > first[follows == 0].max()).item()


def test_unsupported_settings_are_refused_and_leave_no_folder() -> None:
    for changes, what in (
        ({"data.documents": "packed"}, "kind|one stream"),
        ({"data.documents": "rows"}, "one stream"),
        ({"model.vocab_size": 3}, "tokenizer has"),
        (
            {"model.n_layer": 3},
            "is a setting of model.kind gpt and rnn, but this model is of kind ngram",
        ),
        ({"train.truncated_bptt": True}, r"train\.truncated_bptt"),
    ):
        with pytest.raises(ConfigError, match=what):
            count(changes)
        assert not Path("run").exists()
    count({})
    with pytest.raises(UsageError, match="already holds a run"):
        count({})
