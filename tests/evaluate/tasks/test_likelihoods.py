"""Log-likelihoods of endings against one plain forward pass for each."""

import math
import random
from collections.abc import Sequence

import pytest
import torch

from lmsmith.evaluate.tasks import likelihoods
from lmsmith.evaluate.tasks.encode import Pair
from lmsmith.evaluate.tasks.likelihoods import log_likelihoods, n_cut
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn_config import RNNConfig

V = 29
SMALL = {"vocab_size": V, "d_model": 16, "n_layer": 2, "context_length": 24}
KINDS = {
    "learned positions": GPTConfig(**SMALL, n_head=2, positions="learned"),
    "n-gram tables and windows": GPTConfig(
        **SMALL, n_head=2, ngram_tables=(2, 3), ngram_table_size=64, window=8, window_pattern="SL"
    ),
    "lstm": RNNConfig(**SMALL, cell="lstm"),
}


def model_of(kind: str) -> NeuralModel:
    model = KINDS[kind].build()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.4, generator=generator)
    return model.double().eval()


def random_pairs(longest: int, seed: int = 0) -> list[Pair]:
    """Items of one to four endings, contexts of 1 ... `longest` tokens."""
    draw = random.Random(seed)
    pairs: list[Pair] = []
    for _ in range(12):
        context = tuple(draw.randrange(V) for _ in range(draw.randint(1, longest)))
        lengths = [draw.randint(1, 9) for _ in range(draw.randint(1, 4))]
        pairs += [(context, tuple(draw.randrange(V) for _ in range(n))) for n in lengths]
    return pairs


def plain(model: LanguageModel, pair: Pair) -> tuple[float, bool]:
    """One row, no state, no padding."""
    context, ending = pair
    ids = torch.tensor([context + ending])
    if isinstance(model, NeuralModel):
        logits = model(ids[:, :-1])[0, len(context) - 1 :]
    else:
        state, n = model.new_state(1), len(context + ending)
        rows = [model.next_logits(ids[:, at : at + 1], state)[0] for at in range(n - 1)]
        logits = torch.stack(rows)[len(context) - 1 :]
    logs = logits.double().log_softmax(-1)
    targets = torch.tensor(ending)
    nats = float(logs.gather(1, targets[:, None]).sum())
    return nats, bool((logits.argmax(-1) == targets).all())


def compare(model: LanguageModel, pairs: Sequence[Pair]) -> None:
    with torch.no_grad():
        wanted = [plain(model, pair) for pair in pairs]
    found = log_likelihoods(model, pairs)
    for one, (nats, greedy), (_, ending) in zip(found, wanted, pairs, strict=True):
        assert one.log_likelihood == pytest.approx(nats, abs=1e-9)
        assert (one.greedy, one.n_tokens) == (greedy, len(ending))


@pytest.mark.parametrize("kind", KINDS)
def test_shared_contexts_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind)
    pairs = random_pairs(15)
    compare(model, pairs)
    monkeypatch.setattr(likelihoods, "READ_AGAIN", 1.0)  # contexts of all lengths in one batch
    compare(model, pairs)
    monkeypatch.setattr(likelihoods, "TOKENS_AT_ONCE", 1)
    compare(model, pairs)


def n_gram() -> LanguageModel:
    ids = torch.randint(V, (3000,), generator=torch.Generator().manual_seed(1)).numpy()
    return Ngram.learn(NgramConfig(vocab_size=V, order=3), ids.astype("uint16"))


def test_an_n_gram_model() -> None:
    compare(n_gram(), random_pairs(6)[:9])


@pytest.mark.parametrize("kind", ["learned positions", "n-gram"])
def test_a_greedy_ending_is_greedy(kind: str) -> None:
    model = n_gram() if kind == "n-gram" else model_of(kind)
    context, ending = (3, 1, 4), list[int]()
    with torch.no_grad():
        for _ in range(4):
            ids = torch.tensor([[*context, *ending]])
            logits = model.next_logits(ids, model.new_state(1))
            ending.append(int(logits[0].argmax()))
    other = (*ending[:3], (ending[3] + 1) % V)
    found = log_likelihoods(model, [(context, tuple(ending)), (context, other)])
    assert [one.greedy for one in found] == [True, False]


def test_long_contexts_lose_tokens_on_the_left() -> None:
    model = model_of("learned positions")  # reads 24 tokens
    long = tuple(range(20)) * 2
    pairs: list[Pair] = [(long, (1, 2, 3)), (long, (5,))]
    found = log_likelihoods(model, pairs)
    with torch.no_grad():
        cut = [plain(model, (long[-22:], (1, 2, 3))), plain(model, (long[-24:], (5,)))]
    assert [one.log_likelihood for one in found] == pytest.approx([nats for nats, _ in cut])
    assert [n_cut(pair, 24) for pair in pairs] == [18, 16]
    assert n_cut((long[:22], (1, 2, 3)), 24) == 0


def test_each_token_of_an_ending_longer_than_the_context_counts_once() -> None:
    model = model_of("learned positions")
    context, ending = (1, 2, 3), tuple(range(28)) * 2
    (found,) = log_likelihoods(model, [(context, ending)])
    wanted = 0.0
    with torch.no_grad():
        for start in range(0, len(ending), 12):
            part = ending[start : start + 12]
            before = (context + ending[:start])[-(25 - len(part)) :]
            wanted += plain(model, (before, part))[0]
    assert found.log_likelihood == pytest.approx(wanted)
    assert found.n_tokens == len(ending)


def test_without_any_context_the_first_token_is_a_uniform_guess() -> None:
    model = model_of("learned positions")
    (found,) = log_likelihoods(model, [((), (7, 8))])
    with torch.no_grad():
        wanted = plain(model, ((7,), (8,)))[0] - math.log(V)
    assert found.log_likelihood == pytest.approx(wanted)
    assert log_likelihoods(model, [((1,), ())])[0].log_likelihood == 0
