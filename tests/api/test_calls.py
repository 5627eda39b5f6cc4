"""`import lmsmith` as a notebook uses it."""

import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import TINY

import lmsmith
from lmsmith import cli
from lmsmith.errors import CheckpointError, ConfigError, LmsmithError, UsageError
from lmsmith.extend import Context, Hook


def test_train_returns_a_run_with_its_numbers(run: lmsmith.Run) -> None:
    assert run.summary["steps"] == 20
    assert run.config.model.n_layer == 1  # type: ignore[attr-defined]
    assert run.config.train.batch_size == 4
    assert (run.path / "report.html").is_file()
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert run.metrics == [json.loads(line) for line in lines]
    assert {row["kind"] for row in run.metrics} >= {"train", "eval"}
    assert os.fspath(run) == str(run.path)
    assert run == lmsmith.Run(run.path)
    assert re.search(r"Run\('.*run', finished: steps, steps: 20, parameters: [\d,]+", repr(run))
    assert "<td" in run._repr_html_()


def test_the_weights_are_those_of_the_command(
    run: lmsmith.Run,
    book: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"--{name}={value}" for name, value in TINY.items()]
    out = book.parent / "by-command"
    status = cli.run(["train", str(book), "--steps=20", *options, f"--out={out}"], started=0.0)
    assert (status, capsys.readouterr().err) == (0, "")
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (run.path, out))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_progress_is_printed_if_asked(
    quick: None, book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lmsmith.train(book, out=book.parent / "told", preset="ngram", progress=True)
    assert "gram" in capsys.readouterr().out


def test_arguments_and_settings_are_checked_together(book: Path) -> None:
    with pytest.raises(UsageError, match=r"minutes=1 and settings\['train.minutes'\] = 2"):
        lmsmith.train(book, minutes=1, settings={"train": {"minutes": 2}})
    with pytest.raises(ConfigError, match=r"train.steps = 'x' in the arguments: expected a whole"):
        lmsmith.train(book, steps="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"unknown setting 'model.layers' in the arguments"):
        lmsmith.train(book, settings={"model.layers": 2})
    with pytest.raises(UsageError, match=r"Save a tokenizer first"):
        lmsmith.train(book, tokenizer=lmsmith.Tokenizer.train(book, 258))  # type: ignore[arg-type]


def test_resume_extends_a_run(quick: None, run: lmsmith.Run, book: Path) -> None:
    shutil.copytree(run.path, copy := book.parent / "longer")
    assert lmsmith.resume(copy, steps=25).summary["steps"] == 25
    with pytest.raises(ConfigError, match=r"model.n_layer"):
        lmsmith.resume(copy, steps=30, settings={"model.n_layer": 2})
    with pytest.raises(ConfigError, match="in the arguments"):
        lmsmith.resume(copy, steps="x")  # type: ignore[arg-type]


class _Interrupt(Hook):
    name = "interrupt"

    def after_step(self, context: Context) -> None:
        if context.step == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals reach the main thread",
)
def test_ctrl_c_saves_the_run_and_raises(quick: None, book: Path) -> None:
    out = book.parent / "interrupted"
    with pytest.raises(KeyboardInterrupt, match=r"saved at step 3. lmsmith.resume\("):
        lmsmith.train(book, out=out, steps=20, settings=TINY, hooks=[_Interrupt()])
    assert lmsmith.resume(out, hooks=[_Interrupt()]).summary["steps"] == 20


def test_generate_stream_and_generate_batch_agree(lm: lmsmith.LM) -> None:
    text = lm.generate("It was", max_tokens=30, seed=3)
    assert len(text) == 30
    assert "".join(lm.stream("It was", max_tokens=30, seed=3)) == text
    batch = lm.generate_batch(["It was", "A bird"], n=2, max_tokens=30, seed=3)
    alone = [
        [lm.generate(prompt, max_tokens=30, seed=3, index=i) for i in range(2)]
        for prompt in ("It was", "A bird")
    ]
    assert batch == alone
    assert (
        lm.generate("It was", max_tokens=30, seed=3, stop=text[5:7])
        == text[: text.index(text[5:7])]
    )
    with pytest.raises(UsageError, match="takes a list of prompts"):
        lm.generate_batch("It was")
    with pytest.raises(ConfigError, match="temperature"):
        lm.stream("It was", temperature=-1)
    with pytest.raises(ConfigError, match="expected 'text' or 'control'"):
        lm.generate("It was", special_tokens=True)  # type: ignore[arg-type]


def test_logits_next_tokens_and_scores_agree(lm: lmsmith.LM) -> None:
    """Three ways to compute the same probabilities; the score follows its definition."""
    ids = lm.tokenizer.encode("It was lo")
    logits = lm.logits(ids)
    assert logits.shape == (len(ids), lm.model.vocab_size)
    assert not logits.requires_grad
    p = logits.double().log_softmax(-1)
    top = lm.next_token("It was lo", top=3, bos=False)
    found = [
        (lm.tokenizer.decode([int(i)]), float(p[-1, i].exp()))
        for i in p[-1].argsort(descending=True)[:3]
    ]
    assert [text for text, _ in top] == [text for text, _ in found]
    assert [value for _, value in top] == pytest.approx([value for _, value in found], abs=1e-6)
    assert sum(value for _, value in lm.next_token("It", top=10**6)) == pytest.approx(1)
    score = lm.score("It was lo", bos=False)
    nats = math.log(lm.model.vocab_size) - sum(
        float(p[i, int(ids[i + 1])]) for i in range(len(ids) - 1)
    )
    assert score.n_tokens == len(ids) == score.n_bytes
    assert score.nats_per_token == pytest.approx(nats / len(ids), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len(ids), rel=1e-5)
    assert torch.allclose(lm.logits([ids.tolist()] * 2)[1], logits, atol=1e-5)
    assert lm.module is lm.model
    with pytest.raises(UsageError, match="context length of 16"):
        lm.logits([0] * 17)
    with pytest.raises(UsageError, match="vocabulary"):
        lm.logits([lm.model.vocab_size])
    with pytest.raises(UsageError, match="at least one"):
        lm.logits([])


def test_an_ngram_model_has_everything_but_a_module(ngram: lmsmith.Run) -> None:
    lm = lmsmith.load(ngram)
    ids = lm.tokenizer.encode("It was").tolist()
    logits = lm.logits(ids)
    assert logits.shape == (6, lm.model.vocab_size)
    (text, probability), *_ = lm.next_token("It was", bos=False)
    assert probability == pytest.approx(float(logits[-1].double().softmax(-1).max()), abs=1e-6)
    assert lm.generate("It was", max_tokens=5, temperature=0).startswith(text)
    with pytest.raises(UsageError, match="no torch module: it is of kind ngram"):
        _ = lm.module
    assert ngram.metrics == [] or ngram.metrics[0]["kind"]


def test_evaluate_is_score_on_a_file(lm: lmsmith.LM, run: lmsmith.Run, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("It was x.\nNobody hid y.\n", encoding="utf-8")
    score = lmsmith.evaluate(run, text=tmp_path / "some.txt")
    assert score == lm.score("It was x.\nNobody hid y.\n")
    own = lmsmith.evaluate(lm)
    assert own.nats_per_token == pytest.approx(run.summary["best_val_loss"], rel=1e-5)


def test_compare_export_and_report(
    run: lmsmith.Run, ngram: lmsmith.Run, book: Path, tmp_path: Path
) -> None:
    found = lmsmith.compare([run, ngram], text=book, out=tmp_path / "page.html")
    assert [row["name"] for row in found.rows()] == [entry.name for entry in found.entries]
    assert {"run", "ngram", "uniform", "xz"} <= {entry.name for entry in found.entries}
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == found.page()
    assert "uniform" in repr(found)
    (difference,) = found.differences
    assert {difference.a, difference.b} == {"run", "ngram"}
    assert difference.verdict in repr(found)
    items = [{"item": i, "correct": i % 3 > 0} for i in range(30)]
    answers = {"a": items, "b": [*items[:-1], {"item": 29, "correct": False}]}
    on_items = lmsmith.compare(items=answers)
    assert [row["accuracy"] for row in on_items.rows()] == [20 / 30, 19 / 30]
    assert "no difference shown" in repr(on_items)
    assert len(lmsmith.compare([run, ngram], text=book, items=answers).differences) == 2
    assert lmsmith.report([run, ngram], out=tmp_path / "both.html").is_file()
    with pytest.raises(UsageError, match="pass runs and text=FILE"):
        lmsmith.compare([run])
    with pytest.raises(UsageError, match="expected 'hf', 'gguf', 'llmc', 'onnx' or 'peft'"):
        lmsmith.export(run, to="tflite")  # type: ignore[arg-type]


def test_inspect(run: lmsmith.Run, ngram: lmsmith.Run, lm: lmsmith.LM, tmp_path: Path) -> None:
    found = lm.inspect(out=tmp_path / "page.html")
    assert found.trace.attention is not None
    assert found.trace.attention.shape == (1, 2, 16, 16)
    # The text has no token before its first one, which costs ln V in the summary and is not shown.
    n, first = found.n_tokens, math.log(lm.model.vocab_size)
    wanted = (n * run.summary["best_val_loss"] - first) / (n - 1)
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert "Attention" in (tmp_path / "page.html").read_text(encoding="utf-8")
    short = lm.inspect("The cat", text=tmp_path / "page.html")
    assert short.tokens[-3:] == ("c", "a", "t")
    likely, p = lm.next_token("The cat", top=1)[0]
    lens = short.trace.lens
    assert short.texts[lens.ids[-1, -1]] == likely.replace(" ", "·").replace("\n", "↵")
    assert lens.probabilities[-1, -1] == pytest.approx(p, rel=1e-5)
    counts = lmsmith.load(ngram).inspect()
    assert counts.trace.attention is None
    assert counts.loss is not None
    assert counts.loss > 0.9 * (n * ngram.summary["val_loss"] - first) / (n - 1)
    assert any("no attention" in note for note in counts.notes)
    (tmp_path / "imported").mkdir()
    for file in (run.path / "model").iterdir():
        (tmp_path / "imported" / file.name).write_bytes(file.read_bytes())
    weights_only = lmsmith.load(tmp_path / "imported")
    assert weights_only.inspect("The").loss is None
    with pytest.raises(UsageError, match="no validation text"):
        weights_only.inspect()
    with pytest.raises(UsageError, match="is a folder"):
        lm.inspect(out=tmp_path)
    both = lmsmith.report(run, out=tmp_path / "report.html", inspect=True)
    assert {"Learning curves", "Logit lens"} <= set(
        re.findall(r"<h2>(.*?)</h2>", both.read_text(encoding="utf-8"))
    )
    with pytest.raises(UsageError, match="name a single run"):
        lmsmith.report([run, ngram], inspect=True)


def test_a_tokenizer_is_trained_saved_and_loaded(book: Path, tmp_path: Path) -> None:
    tok = lmsmith.Tokenizer.train(book, vocab_size=270)
    assert tok.decode(tok.encode("It was x.")) == "It was x."
    tok.save(tmp_path / "tok")
    assert lmsmith.Tokenizer.load(tmp_path / "tok") == tok
    assert isinstance(tok, lmsmith.Tokenizer)
    lmsmith.Tokenizer.train([book], 270, out=tmp_path / "also")
    assert lmsmith.Tokenizer.load(tmp_path / "also") == tok


def test_prepare_writes_shards(book: Path, tmp_path: Path) -> None:
    tok = lmsmith.Tokenizer.train(book, vocab_size=270)
    manifest = lmsmith.prepare(book, tmp_path / "shards", tokenizer=tok, workers=1)
    assert manifest.splits["train"].n_tokens > 0
    assert (tmp_path / "shards").is_dir()


def test_missing_and_damaged_runs(run: lmsmith.Run, book: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run: it is not a folder"):
        lmsmith.Run(tmp_path / "none")
    with pytest.raises(LmsmithError, match="no model in it"):
        lmsmith.load(tmp_path)
    shutil.copytree(run.path, tmp_path / "copy")
    copy = lmsmith.Run(tmp_path / "copy")
    path = copy.path / "metrics.jsonl"
    n = len(copy.metrics)
    path.write_text(path.read_text() + '{"kind": "tr')
    assert len(copy.metrics) == n
    path.write_text('{"kind": "tr\n' + path.read_text())
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        _ = copy.metrics


def test_frame_names_the_package_to_install(
    run: lmsmith.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        run.metrics.frame()

    class Pandas:
        DataFrame = list

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    frame: Any = run.metrics.frame()
    assert frame == run.metrics
