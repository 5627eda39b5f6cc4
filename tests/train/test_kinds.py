"""Recurrent networks are chosen, trained, resumed and used like Transformers."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TEXT

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.corpus import Corpus
from lmsmith.errors import ConfigError
from lmsmith.generate.decode import continue_text
from lmsmith.interop.exporting import export_model
from lmsmith.models.sizes import RNN_SIZES
from lmsmith.run_folder import load_for_use, open_run, score_validation
from lmsmith.train.choose import resolve
from lmsmith.train.describe import describe
from lmsmith.train.device import Machine, survey
from lmsmith.train.request import asked
from lmsmith.train.start import train

MACHINE = Machine(torch.device("cpu"), 1, "default", "float32", 1e11, "as asked")


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("carry", [False, True])
def test_sizes_fit_the_budget_and_the_text(corpus: Corpus, name: str, carry: bool) -> None:
    base = preset(name).changed({"train.truncated_bptt": carry, "train.steps": 7}, where="a test")
    config = resolve(base, {"preset", "train.truncated_bptt", "train.steps"}, corpus, MACHINE, 60.0)
    model = config.model
    size = next(size for size in RNN_SIZES if size.budget >= 3e13)
    assert (model.kind, model.n_layer, model.d_model) == ("rnn", size.n_layer, size.d_model)
    assert (config.train.batch_size + 1) * model.context_length <= len(corpus.train)
    (line,) = (line for line in describe(config, corpus, MACHINE) if line.startswith("model"))
    assert f"{model.cell} cells, width {model.d_model}" in line
    assert "heads" not in line


def test_a_recurrent_width_needs_no_heads() -> None:
    config, _ = asked(["book.txt"], {"preset": "gru", "model.d_model": "24"})
    assert config.model.d_model == 24
    with pytest.raises(
        ConfigError, match=r"model\.n_head in the command line is a setting of model\.kind gpt"
    ):
        asked(["book.txt"], {"preset": "gru", "model.n_head": "2"})


def test_precision() -> None:
    found = survey(
        preset("lstm").changed({"train.threads": 1, "train.matmul": "default"}, where="a test")
    )
    assert found.dtype == "float32"


def test_trained_resumed_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    changes: dict[str, Any] = {
        "preset": "lstm",
        "tokenizer": "char",
        "model.d_model": 16,
        "model.context_length": 16,
        "train.batch_size": 8,
        "train.steps": 60,
        "train.threads": 1,
        "train.matmul": "default",
    }
    run, summary = train(
        ["book.txt"], changes, out=Path("run"), console=Console(file=io.StringIO())
    )
    losses = [
        json.loads(line)["loss"] for line in (run / "metrics.jsonl").open() if '"train"' in line
    ]
    assert losses[-1] < 0.7 * losses[0]
    config = open_run(run)[0]
    assert isinstance(config, RunConfig)
    assert "n_head" not in (run / "config.toml").read_text(encoding="utf-8")
    model, tokenizer, _ = load_for_use(run)
    assert model.n_parameters() == summary["n_params"]
    score = score_validation(run, model, stride=None)
    assert score.nats_per_token == pytest.approx(summary["best_val_loss"], rel=1e-4)
    assert len(continue_text(model, tokenizer, "The cat", max_tokens=100)[0]) == 100
    receipt = export_model(run, tmp_path / "hf", to="hf")
    assert receipt["architecture"] == "LmsmithRNNForCausalLM"
    with pytest.raises(ConfigError):
        export_model(run, tmp_path / "llmc", to="llmc")
