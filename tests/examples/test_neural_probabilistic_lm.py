"""The model of Bengio et al. 2003: its formula, its state, and all commands with it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.models.interface import LanguageModel

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/neural_probabilistic_lm.py"
LOADED = {"LMSMITH_EXTENSIONS": str(EXAMPLE)}
TINY = [
    *("--preset=nplm", "--tokenizer=char", "--model.d_embedding=8", "--model.d_hidden=16"),
    *("--model.context_length=16", "--train.batch_size=4", "--train.threads=1"),
    *("--train.dtype=float32", "--train.matmul=default", "--train.save_every=10"),
]


@pytest.fixture
def model(example: Callable[[str], ModuleType]) -> Any:
    """A model with 7 tokens in float64, every weight random."""
    config = example("neural_probabilistic_lm").NPLMConfig(
        vocab_size=7, order=3, d_embedding=4, d_hidden=5, vocab_multiple=4
    )
    model = config.build().double()
    model.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


def test_the_formula_of_the_paper(model: Any) -> None:
    """y = b + W x + U tanh(d + H x), written out in NumPy for each position."""
    of = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    n, width, ids = 3, 12, [2, 0, 6, 6, 1]
    weights, hidden = of["head.weight"][:7, :width], of["head.weight"][:7, width:-1]
    bias = of["head.weight"][:7, -1]
    wanted = []
    for t in range(len(ids)):
        before = ([7] * n + ids[: t + 1])[-n:]  # 7 stands for "no token"
        x = np.concatenate([of["token_embedding.weight"][i] for i in before])
        inner = np.tanh(of["blocks.0.bias"] + of["blocks.0.weight"] @ x)
        wanted.append(bias + weights @ x + hidden @ inner)
    found = model(torch.tensor([ids]))[0].detach().numpy()
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-12)


def test_probabilities_sum_to_one(model: Any) -> None:
    assert isinstance(model, LanguageModel)
    texts = torch.cartesian_prod(*[torch.arange(7)] * 3)  # all texts of two tokens after token 4
    texts[:, 0] = 4
    texts = texts.unique(dim=0)
    total = model.log_probabilities(texts).sum(dim=1).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("parts", [[1] * 9, [4, 5], [2, 1, 6]])
def test_reading_in_parts_equals_reading_at_once(model: Any, parts: list[int]) -> None:
    ids = torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(3))
    whole, state, at = model(ids), model.new_state(2), 0
    for n in parts:
        found = model.next_logits(ids[:, at : at + n], state)
        at += n
        torch.testing.assert_close(found, whole[:, at - 1], rtol=1e-12, atol=0)
    scores = model.log_probabilities(ids[:, 4:], state=(given := model.new_state(2)))
    assert scores.shape == (2, 4)
    given = model.new_state(2)
    model.next_logits(ids[:, :4], given)
    later = model.log_probabilities(ids[:, 4:], state=given)
    torch.testing.assert_close(later, model.log_probabilities(ids, n_given=5), rtol=1e-12, atol=0)


def test_costs(model: Any) -> None:
    """Counts from the config, which the plan and the MFU use."""
    config = model.config
    assert config.n_parameters() == sum(p.numel() for p in model.parameters())
    assert config.matrix_parameters() == 5 * 12 + 8 * (12 + 5 + 1)
    with pytest.raises(Exception, match=r"model\.order = 0: expected at least 1"):
        replace(config, order=0)


def test_trained_killed_resumed_and_used(lmsmith: Any) -> None:
    def saved(run: str) -> bytes:
        return (lmsmith.cwd / run / "model/model.safetensors").read_bytes()

    train = ["train", "book.txt", *TINY, "--steps=50", "--out"]
    whole = lmsmith(*train, "whole", environment=LOADED)
    assert whole.status == 0, whole.err
    assert "nplm: 5 tokens, 8 wide, 16 hidden units" in whole.out
    losses = [float(loss) for loss in re.findall(r"val loss ([\d.]+)", whole.out)]
    assert losses[-1] < 0.85 * losses[0]

    killed = lmsmith.start(*train, "run", environment=LOADED, slow={"os:fsync": 0.02})
    killed.until((lmsmith.cwd / "run/checkpoints/step-00000020").is_dir)
    killed.send(9)
    assert killed.wait().status == -9
    assert not (lmsmith.cwd / "run/summary.json").exists()
    resumed = lmsmith("resume", "run", environment=LOADED)
    assert resumed.status == 0, resumed.err
    assert saved("run") == saved("whole")

    for words, shown in (
        (["generate", "run", "The cat", "--max-tokens=9"], "The cat"),
        (["eval", "run"], r"bits_per_byte +[\d.]+"),
        (["compare", "run", "--text", "book.txt"], r"run +feed-forward neural language model"),
        (["train", "--help", "--preset", "nplm"], r"--model\.d_hidden"),
    ):
        done = lmsmith(*words, environment=LOADED)
        assert (done.status, done.err) == (0, "")
        assert re.search(shown, done.out), done.out


def test_a_run_without_its_extension(lmsmith: Any) -> None:
    done = lmsmith("train", "book.txt", *TINY, "--steps=12", "--out=run", environment=LOADED)
    assert done.status == 0, done.err
    (lmsmith.cwd / "run/summary.json").unlink()
    wanted = (
        f"needs the model kind 'nplm' of an extension from {EXAMPLE}, which is not loaded. "
        f"Set LMSMITH_EXTENSIONS={EXAMPLE} (or the file's present path), or register it before"
    )
    for words in (
        ["generate", "run", "The"],
        ["resume", "run"],
        ["eval", "run"],
        ["compare", "run", "--text", "book.txt"],
        ["train", "book.txt", "--from", "run"],
        ["export", "run", "--to", "hf", "--out", "hf"],
    ):
        done = lmsmith(*words)
        assert done.status != 0
        assert wanted in " ".join(done.err.split()), (words, done.err)
        assert "Traceback" not in done.err
    # A report reads the run's files and needs no model.
    assert lmsmith("report", "run").status == 0
    assert "nplm" in (lmsmith.cwd / "run/report.html").read_text(encoding="utf-8")


def test_a_setting_of_another_kind(lmsmith: Any) -> None:
    for kind, option in (("nplm", "--model.n_head"), ("lstm", "--model.d_hidden")):
        done = lmsmith("train", "book.txt", f"--preset={kind}", f"{option}=4", environment=LOADED)
        of = {"nplm": "gpt, but this model is of kind nplm", "lstm": "nplm, but"}[kind]
        assert done.status == 2
        said = " ".join(done.err.split())
        assert f"{option[2:]} in the command line is a setting of model.kind {of}" in said
