"""Every kind of model implements the interface: all methods describe one distribution."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lmsmith.checkpoint import load_model, save_model
from lmsmith.models import interface
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn_config import RNNConfig

V, T = 9, 8
CONFIGS = {
    "gpt": GPTConfig(
        n_layer=1, n_head=2, d_model=8, context_length=T, vocab_size=V, vocab_multiple=4
    ),
    "tied": GPTConfig(
        n_layer=1, n_head=2, d_model=8, context_length=T, vocab_size=V, tied_head=True
    ),
    "elman": RNNConfig(cell="elman", n_layer=2, d_model=8, vocab_size=V, vocab_multiple=4),
    "lstm": RNNConfig(n_layer=1, d_model=8, vocab_size=V, tied_head=True),
    "kneser-ney": NgramConfig(vocab_size=V, order=3),
    "add-k": NgramConfig(vocab_size=V, order=3, smoothing="add-k"),
    "mle": NgramConfig(vocab_size=V, order=3, smoothing="mle"),
}


def made(name: str) -> LanguageModel:
    config = CONFIGS[name]
    if config.kind == "ngram":
        return Ngram.learn(config, np.random.default_rng(0).integers(0, V, 300).astype(np.uint16))
    model = config.build().double().eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_all_methods_describe_one_distribution(name: str) -> None:
    model = made(name)
    assert isinstance(model, LanguageModel)
    assert (model.vocab_size, model.device) == (V, torch.device("cpu"))
    assert model.context_length == (T if CONFIGS[name].kind == "gpt" else None)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, V, (3, T + 1)))
    with torch.no_grad():
        whole = model.log_probabilities(ids)
        assert whole.shape == (3, T)
        state = model.new_state(3)
        for t in range(T):
            p = model.next_logits(ids[:, t : t + 1], state).double().softmax(-1)
            assert p.shape == (3, V)
            assert p.sum(-1).tolist() == pytest.approx([1.0] * 3)
            torch.testing.assert_close(
                p.gather(1, ids[:, t + 1 :][:, :1])[:, 0].log(), whole[:, t].double()
            )
        at_once = model.next_logits(ids[:, :-1], model.new_state(3)).double().softmax(-1)
        torch.testing.assert_close(at_once, p)
        for n_given in (1, 4, T):
            torch.testing.assert_close(
                model.log_probabilities(ids, n_given), whole[:, n_given - 1 :]
            )
        state = model.new_state(3)
        parts = [
            model.log_probabilities(ids[:, a : b + 1], 1, state)
            for a, b in ((0, 3), (3, 4), (4, T))
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize(
    ("at_once", "limit"),
    [
        (1, "LOGITS_AT_ONCE"),
        (3 * V, "LOGITS_AT_ONCE"),
        (6 * V, "LEAST_LOGITS"),
        (7 * V, "LEAST_LOGITS"),
    ],
)
def test_logits_of_a_long_window_are_computed_in_chunks(
    at_once: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("gpt")
    assert isinstance(model, NeuralModel)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, V, (3, T + 1)))
    with torch.no_grad():
        wanted = [model.log_probabilities(ids, n_given) for n_given in (1, 4, T + 1)]
        monkeypatch.setattr(interface, limit, at_once)
        monkeypatch.setattr(interface, "LEAST_ROWS", 1)
        sizes, logits = [], model.logits
        monkeypatch.setattr(
            model, "logits", lambda x: sizes.append(x.size(0) * x.size(1) * V) or logits(x)
        )
        found = [model.log_probabilities(ids, n_given) for n_given in (1, 4, T + 1)]
    assert max(sizes) <= max(at_once, 3 * V)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_written_and_read_back(name: str, tmp_path: Path) -> None:
    model = made(name)
    tensors = model.tensors() if isinstance(model, Ngram) else model.float().state_dict()  # type: ignore[attr-defined]
    save_model(tmp_path / "model", tensors, {})
    loaded, _ = load_model(tmp_path / "model")
    again = CONFIGS[name].restore(loaded)
    if isinstance(again, NeuralModel):
        assert not again.training
        assert again.n_parameters() == sum(tensor.numel() for tensor in loaded.values())
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, V, (1, T)))
    assert again.log_probabilities(ids).equal(model.log_probabilities(ids))
    assert again.n_parameters() == model.n_parameters()
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        CONFIGS["add-k" if CONFIGS[name].kind != "ngram" else "gpt"].restore(loaded)
