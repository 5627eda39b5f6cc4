"""Continuous batching: a sequence is the same alone and beside others that come and go."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decode import generate
from lmsmith.generate.engine import Engine, Request
from lmsmith.generate.sampling import Sampling
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig

V = 23


def _gpt(**parts: object) -> GPT:
    parts = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16} | parts
    model = GPT(GPTConfig(vocab_size=V, **parts))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.4, generator=generator)
    return model.eval()


def _ngram(order: int = 3) -> Ngram:
    ids = np.random.default_rng(0).integers(0, V, 4000).astype(np.uint16)
    ids[::2] = ids[0]  # something to predict
    return Ngram.learn(NgramConfig(order=order, vocab_size=V), ids)


def _rnn() -> RNN:
    model = RNN(RNNConfig(cell="gru", n_layer=1, d_model=16, context_length=8, vocab_size=V))
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def _alone(model: LanguageModel, request: Request) -> list[int]:
    got = []
    for (id,) in generate(
        model,
        request.ids,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        seed=request.seed,
        first_index=request.index,
    ):
        got.append(id)
        if id in request.ends:
            break
    return got


def _requests(n: int) -> list[Request]:
    return [
        Request(
            [(3 * i + j) % V for j in range(1 + 5 * i % 21)],
            max_tokens=5 + 7 * i % 30,
            sampling=Sampling(temperature=[0.0, 0.7, 1.3][i % 3]),
            seed=i % 4,
            index=i % 2,
            ends=(3,) if i % 5 == 0 else (),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("make", [_gpt, _ngram, _rnn])
def test_a_crowd_of_requests_that_come_and_go(make) -> None:
    model = make()
    requests = _requests(14)
    engine = Engine(model, n_slots=4)
    got, numbers, late = defaultdict(list), [], list(requests)
    while engine.busy or late:
        numbers += [engine.submit(request) for request in late[:2]]  # two more at every step
        late = late[2:]
        for token in engine.step():
            got[token.sequence].append(token.id)
    for number, request in zip(numbers, requests, strict=True):
        assert got[number] == _alone(model, request)


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    engine = Engine(_gpt(), n_slots=4)
    assert isinstance(engine.decoder, CpuDecoder)
    n_rows = []
    run = engine.decoder._pass
    engine.decoder._pass = lambda slots, ids: (n_rows.append(len(slots)), run(slots, ids))[1]  # type: ignore[method-assign]
    for index in range(4):
        engine.submit(Request([1, 2, 3], max_tokens=2, index=index))
    assert len(engine.step()) == 4
    assert n_rows == [3]


def test_a_long_prompt_does_not_stop_the_others() -> None:
    """It is read in parts; one that is cancelled meanwhile gives its slot back."""
    model = _gpt(context_length=2048)
    engine = Engine(model, n_slots=3)
    requests = [
        Request([1, 2], max_tokens=12),
        Request([i % V for i in range(1500)], max_tokens=4),
        Request([i % 7 for i in range(1500)], max_tokens=4),
        Request([5, 6, 7], max_tokens=3),
    ]
    numbers = [engine.submit(request) for request in requests[:3]]
    got = defaultdict(list)
    n_steps = 0
    while engine.busy:
        n_steps += 1
        if n_steps == 3:
            engine.cancel(numbers[2])
            numbers.append(engine.submit(requests[3]))
        for token in engine.step():
            got[token.sequence].append(token.id)
        assert len(got[numbers[0]]) == min(n_steps, 12)
        assert bool(got[numbers[1]]) == (n_steps >= 11)  # five pieces, 220 tokens by 32
        assert len(got) < 4 or n_steps >= 3
        if n_steps == 3:
            assert len(got[numbers[3]]) == 1
    for i in (0, 1, 3):
        assert got[numbers[i]] == _alone(model, requests[i])


def test_a_cancelled_sequence_leaves_the_others_alone() -> None:
    model = _gpt()
    requests = _requests(3)
    engine = Engine(model, n_slots=2)
    numbers = [engine.submit(request) for request in requests]
    engine.step()
    engine.cancel(numbers[0])
    got = defaultdict(list)
    while engine.busy:
        for token in engine.step():
            got[token.sequence].append(token.id)
    assert numbers[0] not in got
    assert got[numbers[2]] == _alone(model, requests[2])


def test_why_a_sequence_finished() -> None:
    engine = Engine(_gpt(), n_slots=1)
    first = engine.submit(Request([1], max_tokens=3, ends=range(V)))
    second = engine.submit(Request([1], max_tokens=3))
    finished = {}
    while engine.busy:
        for token in engine.step():
            finished[token.sequence] = token.finished
    assert finished == {first: "end", second: "length"}


def test_wrong_requests() -> None:
    engine = Engine(_gpt(), n_slots=1)
    with pytest.raises(UsageError, match="prompt is empty"):
        engine.submit(Request([], max_tokens=1))
    with pytest.raises(ConfigError, match="max_tokens = 0"):
        engine.submit(Request([1], max_tokens=0))


@pytest.mark.parametrize("n_requests", [1, 3])
@pytest.mark.parametrize("parts", [{}, {"ngram_tables": (2, 3), "ngram_table_size": 50}])
def test_drafts_change_the_speed_and_never_the_text(n_requests: int, parts: dict) -> None:
    model, draft = _gpt(**parts), _ngram()
    requests = _requests(n_requests)
    engine = Engine(model, n_slots=n_requests, draft=draft)
    numbers = [engine.submit(request) for request in requests]
    got, n_steps = defaultdict(list), 0
    while engine.busy:
        n_steps += 1
        for token in engine.step():
            got[token.sequence].append(token.id)
    for number, request in zip(numbers, requests, strict=True):
        assert got[number] == _alone(model, request)


def test_good_drafts_save_steps() -> None:
    """A model that repeats one token, and a draft that knows it."""
    model = _gpt(context_length=64, tied_head=False)
    model.head.weight.data.zero_()  # type: ignore[union-attr]
    engine = Engine(
        model,
        n_slots=1,
        draft=Ngram.learn(NgramConfig(order=2, vocab_size=V), np.zeros(1000, np.uint16)),
    )
    engine.submit(Request([0], max_tokens=30, sampling=Sampling(temperature=0)))
    n_steps, ids = 0, []
    while engine.busy:
        n_steps += 1
        ids += [token.id for token in engine.step()]
    assert ids == [0] * 30  # equal logits: the lowest id
    assert n_steps < 12


def test_drafts_that_cannot_work() -> None:
    other = Ngram.learn(NgramConfig(order=2, vocab_size=V + 1), np.zeros(100, np.uint16))
    with pytest.raises(UsageError, match="same tokenizer"):
        Engine(_gpt(), 1, draft=other)
    with pytest.raises(UsageError, match="must be an n-gram model"):
        Engine(_gpt(), 1, draft=_gpt())
    with pytest.raises(UsageError, match="sliding windows"):
        Engine(_gpt(window=4, window_pattern="S"), 1, draft=_ngram())


def test_memory_stays_constant_over_many_tokens() -> None:
    """The window slides again and again, and the cache does not grow with the text."""
    model = _gpt(context_length=32)
    engine = Engine(model, n_slots=1)
    engine.submit(Request([1], max_tokens=1500))
    sizes = []
    while engine.busy:
        engine.step()
        sizes.append(sum(layer.cache.keys.nbytes for layer in engine.decoder.layers))  # type: ignore[attr-defined]
    assert len(sizes) == 1500
    assert len(set(sizes)) == 1
