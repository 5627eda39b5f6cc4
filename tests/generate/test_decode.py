"""Generation with state, compared with a loop that reads its full window for every token."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate.decode import (
    continue_text,
    encode_prompt,
    generate,
    stream_text,
)
from lmsmith.generate.engine import window_start
from lmsmith.generate.sampling import Sampling, generator_for, sample
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import NeuralModel
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer
from lmsmith.train.hooks.sample import sample_texts

V = 11


class FromLogits(NeuralModel):
    """A model whose `hidden` is its logits."""

    head_weight = property(lambda self: torch.eye(self.vocab_size))  # type: ignore[assignment]

    def initialise(self, generator: torch.Generator) -> None: ...

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Echo(FromLogits):
    """A small recurrent model: its state is a vector a row, and it forgets nothing within its
    context.
    """

    def __init__(self, context_length: int, vocab_size: int = V) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.config = SimpleNamespace(context_length=context_length, vocab_size=vocab_size)
        self.read = nn.Parameter(
            torch.randn(vocab_size, 16, generator=generator, dtype=torch.float64)
        )
        self.turn = nn.Parameter(torch.randn(16, 16, generator=generator, dtype=torch.float64) / 3)
        self.write = nn.Parameter(
            torch.randn(16, vocab_size, generator=generator, dtype=torch.float64)
        )
        self.dropout = nn.Dropout(0.5)

    def new_state(self, batch_size: int) -> Any:
        return SimpleNamespace(position=0, h=torch.zeros(batch_size, 16, dtype=torch.float64))

    def hidden(self, ids: Tensor, state: Any = None, documents: None = None) -> Tensor:
        state = state or self.new_state(len(ids))
        state.position += ids.shape[1]
        assert state.position <= self.config.context_length
        logits = []
        for t in range(ids.shape[1]):
            state.h = torch.tanh(state.h @ self.turn + self.read[ids[:, t]])
            logits.append(self.dropout(state.h) @ self.write)
        return torch.stack(logits, dim=1)


class Fixed(FromLogits):
    """Says the same text over and over: the next id depends on the last one alone."""

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(context_length=64, vocab_size=vocab_size)
        self.table = torch.full((vocab_size, vocab_size), -20.0)
        self.table[list(ids), [*ids[1:], ids[0]]] = 20.0

    def new_state(self, batch_size: int) -> None:
        return None

    def hidden(self, ids: Tensor, state: None = None, documents: None = None) -> Tensor:
        return self.table[ids]


def _without_state(
    model: FromLogits | GPT, prompt: list[int], n_steps: int, sampling: Sampling, seed: int
) -> list[int]:
    """The definition: each token from the whole window, read anew."""
    text, generator = list(prompt), generator_for(seed, 0)
    model.eval()
    for _ in range(n_steps):
        window = text[window_start(len(text), model.context_length) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        text += sample(logits, sampling, [generator]).tolist()
    return text[len(prompt) :]


@pytest.mark.parametrize("context_length", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("prompt_length", [1, 5, 8, 23])
def test_with_state_equals_without_state_also_past_the_context(
    context_length: int, prompt_length: int
) -> None:
    model = Echo(context_length)
    prompt = [(3 * i * i + 1) % V for i in range(prompt_length)]
    for sampling in (Sampling(temperature=0), Sampling(temperature=1.2, top_k=6)):
        got = [id for (id,) in generate(model, prompt, max_tokens=40, sampling=sampling, seed=9)]
        assert got == _without_state(model, prompt, 40, sampling, seed=9)


@pytest.mark.parametrize(
    "parts",
    [
        {"positions": "rope", "ngram_tables": (2, 3)},
        {
            "positions": "learned",
            "norm": "layernorm",
            "bias": True,
            "tied_head": True,
            "dropout": 0.3,
        },
        {"positions": "rope", "n_kv_head": 1, "feed_forward": "swiglu", "vocab_multiple": 8},
    ],
    ids=["modern", "gpt2", "llama"],
)
def test_the_transformers_state_equals_none(parts: dict[str, Any]) -> None:
    model = GPT(
        GPTConfig(n_layer=2, n_head=2, d_model=16, context_length=8, vocab_size=V, **parts)
    ).double()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    for prompt in ([3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]):
        got = [id for (id,) in generate(model, prompt, max_tokens=30, seed=4)]
        assert got == _without_state(model, prompt, 30, Sampling(), seed=4)
    model.train()
    model(
        torch.zeros(1, 8, dtype=torch.int64)
    ).sum().backward()  # generation left nothing behind that training minds


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]])
def test_an_unbounded_state_is_kept_indefinitely(prompt: list[int]) -> None:
    network = RNN(RNNConfig(n_layer=1, d_model=8, context_length=4, vocab_size=V)).double()
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data.normal_(0, 1.0, generator=generator)
    assert [id for (id,) in generate(network, prompt, max_tokens=30, seed=4)] == _without_state(
        network, prompt, 30, Sampling(), seed=4
    )
    text = np.random.default_rng(0).integers(0, V, 200).astype(np.uint16)
    counts = Ngram.learn(NgramConfig(vocab_size=V, order=3), text)
    wanted, draws = list(prompt), generator_for(4, 0)
    for _ in range(30):
        two = torch.tensor([wanted[-2:]])
        wanted += sample(counts.next_logits(two, counts.new_state(1)), Sampling(), [draws]).tolist()
    assert [id for (id,) in generate(counts, prompt, max_tokens=30, seed=4)] == wanted[
        len(prompt) :
    ]
    three = list(generate(counts, prompt, max_tokens=30, n=3, seed=4))
    assert [ids[0] for ids in three] == wanted[len(prompt) :]
    assert len({tuple(ids[i] for ids in three) for i in range(3)}) == 3


def test_the_window_holds_half_to_all_of_the_context_and_slides_rarely() -> None:
    for T in (1, 2, 3, 8, 9, 64):
        sizes = [length - window_start(length, T) for length in range(1, 20 * T)]
        assert sizes[:T] == list(range(1, T + 1))
        assert set(sizes[T:]) <= set(range(max(1, T // 2), T + 1))
        slides = sum(b <= a for a, b in pairwise(sizes))
        assert slides <= 20 * T / (T + 1 - max(1, T // 2))


def test_continuing_generated_text_sees_the_same_windows() -> None:
    model, greedy = Echo(8), Sampling(temperature=0)
    whole = [id for (id,) in generate(model, [1, 2, 3], max_tokens=30, sampling=greedy)]
    for cut in (4, 5, 6, 12, 29):
        rest = [
            id
            for (id,) in generate(
                model, [1, 2, 3, *whole[:cut]], max_tokens=30 - cut, sampling=greedy
            )
        ]
        assert rest == whole[cut:]


def test_sample_i_does_not_depend_on_n() -> None:
    model = Echo(8)
    many = np.array(list(generate(model, [4, 2], n=5, max_tokens=25, seed=3)))
    assert len(set(map(tuple, many.T))) == 5
    for i in range(5):
        alone = [id for (id,) in generate(model, [4, 2], max_tokens=25, seed=3, first_index=i)]
        assert alone == many[:, i].tolist()
    assert many.tolist() != list(generate(model, [4, 2], n=5, max_tokens=25, seed=4))


def test_a_row_that_stopped_repeats_its_stop_id_and_affects_no_other() -> None:
    model, n = Echo(8), 6
    free = np.array(list(generate(model, [1], n=n, max_tokens=60, seed=1)))
    stopping = np.array(list(generate(model, [1], n=n, max_tokens=60, seed=1, stop_id=7)))
    ends = [int(np.flatnonzero(column == 7)[0]) for column in free.T]
    assert len(stopping) == max(ends) + 1 < 60
    for column, expected, end in zip(stopping.T, free.T, ends, strict=True):
        assert column[:end].tolist() == expected[:end].tolist()
        assert (column[end:] == 7).all()


def test_the_models_mode_is_restored_between_steps_and_after() -> None:
    model = Echo(8)
    steps = generate(model, [1], max_tokens=5)
    for _ in range(3):
        next(steps)
        assert model.training
        assert model.dropout.training
        assert torch.is_grad_enabled()
    steps.close()  # type: ignore[attr-defined]
    model.eval()
    list(generate(model, [1], max_tokens=2))
    assert not model.training


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [i % V for i in range(90)]
    whole = list(generate(Echo(100), prompt, n=2, max_tokens=20))
    monkeypatch.setattr("lmsmith.generate.decoders.PIECE", 14)
    model = Echo(100)
    sizes: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, state: (sizes.append(ids.shape[1]), hidden(ids, state))[1]
    )
    assert list(generate(model, prompt, n=2, max_tokens=20)) == whole
    assert sizes[:8] == [14] * 6 + [6, 1]  # once for both samples


def test_text_comes_in_complete_characters() -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    said = "naïve 猫🙂"  # no two bytes alike, so that each has one successor
    data = said.encode()
    assert len(set(data)) == len(data)
    model = Fixed([256, *data], tokenizer.vocab_size)
    pieces = list(stream_text(model, tokenizer, "", max_tokens=99))
    assert pieces == list(said)  # and the end of text ended it
    cut = list(stream_text(model, tokenizer, "", max_tokens=len(data) - 1))
    assert cut == [*said[:-1], "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "abcdefghij"),
        (("def",), "abc"),
        (("hx", "ij"), "abcdefgh"),
        (("jk",), "abcdefghij"),  # begun at the very end, never completed
        (("cdeZ",), "abcdefghij"),
        (("abcd", "bc"), "a"),  # "bc" is complete first
        (("ghij", "hij"), "abcdef"),
        (("a",), ""),
    ],
)
def test_stop_strings(stop: tuple[str, ...], expected: str) -> None:
    tokenizer = CharTokenizer("abcdefghij", end_of_text=True)
    model = Fixed([10, *range(10)], tokenizer.vocab_size)
    pieces = list(stream_text(model, tokenizer, "", max_tokens=50, stop=stop))
    assert "".join(pieces) == expected
    assert all(pieces)
    assert continue_text(model, tokenizer, "", n=3, max_tokens=50, stop=stop) == [expected] * 3
    # A piece is given out at once unless it may begin a stop string.
    if not stop:
        assert pieces == list(expected)


class Pieces(ByteTokenizer):
    """Tokens of several bytes, cut without regard to characters, as BPE has them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(end_of_text=False)
        self.pieces, self.vocab_size = pieces, len(pieces)

    def encode(self, text: str) -> Any:
        return np.array([[piece.decode() for piece in self.pieces[:1]].index(text)])

    def decode_bytes(self, ids: Any) -> bytes:
        return b"".join(self.pieces[id] for id in ids)


def test_stop_strings_within_tokens() -> None:
    data = [b"<", b"abcd", b"ef\xc3", b"\xa9g"]
    for stop, expected in [
        ((), "abcdefégabcdef\ufffd"),
        (("abcd", "bc"), "a"),  # as if the characters came one by one
        (("f",), "abcde"),  # the half character after it is not text that was cut
        (("é",), "abcdef"),
        (("dé", "egg"), "abcdefégabcdef\ufffd"),
    ]:
        model = Fixed([0, 1, 2, 3], 4)
        model.table[3] = model.table[0]
        text = "".join(stream_text(model, Pieces(data), "<", max_tokens=5, stop=stop))
        assert text == expected, stop


def test_texts_of_a_batch_equal_the_streams() -> None:
    tokenizer = ByteTokenizer(end_of_text=False)
    model = Echo(16, tokenizer.vocab_size)
    for stop in ((), ("\x00", "a", "\x80")):
        batch = continue_text(model, tokenizer, "é", n=4, max_tokens=60, seed=2, stop=stop)
        streams = [
            "".join(stream_text(model, tokenizer, "é", max_tokens=60, seed=2, stop=stop, index=i))
            for i in range(4)
        ]
        assert batch == streams
        assert len(set(batch)) == 4


def _untrained(kind: str, vocab_size: int) -> GPT | RNN | Ngram:
    """A model that gives every id about the same probability."""
    if kind == "ngram":
        config = NgramConfig(vocab_size=vocab_size, order=2, smoothing="add-k")
        return Ngram.learn(config, np.array([97, 98] * 5, dtype=np.uint16))
    sizes = {"n_layer": 1, "d_model": 8, "context_length": 16, "vocab_size": vocab_size}
    model: GPT | RNN = (
        GPT(GPTConfig(n_head=2, **sizes)) if kind == "gpt" else RNN(RNNConfig(**sizes))
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("kind", ["gpt", "rnn", "ngram"])
def test_ids_without_a_token_are_never_sampled(kind: str) -> None:
    """Holes between tokens, and rows of the model's table beyond the tokenizer."""
    tokens = [*(bytes([b]) for b in range(256)), *[None] * 300]
    tokenizer = BpeTokenizer(tokens, [], "gpt2", {"<|endoftext|>": 400})
    model = _untrained(kind, 700)
    hot = Sampling(temperature=50.0)
    free = {
        i for ids in generate(model, [97], max_tokens=60, n=4, sampling=hot, seed=1) for i in ids
    }
    assert free & set(range(256, 400))
    assert free & set(range(556, 700))
    for sampling in (hot, Sampling(temperature=0), Sampling(temperature=9, top_k=600, top_p=0.99)):
        steps = generate(
            model, [97], max_tokens=60, n=4, sampling=sampling, seed=1, tokenizer=tokenizer
        )
        assert {i for ids in steps for i in ids} <= {*range(256), 400}
    for seed in range(3):
        texts = continue_text(model, tokenizer, "a", n=2, max_tokens=60, sampling=hot, seed=seed)
        assert texts[0] == "".join(
            stream_text(model, tokenizer, "a", max_tokens=60, sampling=hot, seed=seed)
        )
        assert any(texts)
    texts = sample_texts(model, tokenizer, 3, seconds=60.0, seed=1)  # of a run, while it trains
    assert any(texts)


def test_prompts() -> None:
    assert encode_prompt(ByteTokenizer(end_of_text=True), "a") == [256, 97]
    assert encode_prompt(ByteTokenizer(end_of_text=True), "") == [256]
    assert encode_prompt(ByteTokenizer(end_of_text=False), "a") == [97]
    with pytest.raises(UsageError, match="no character: "):
        encode_prompt(ByteTokenizer(end_of_text=False), "")
    with pytest.raises(UsageError, match="char tokenizer knows"):
        encode_prompt(CharTokenizer("ab", end_of_text=False), "xyz")


def test_bad_calls_are_refused_at_once() -> None:
    model = Echo(8)
    with pytest.raises(UsageError, match="empty"):
        generate(model, [], max_tokens=1)
    for bad in ({"n": 0}, {"max_tokens": -1}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            generate(model, [1], **{"max_tokens": 1, **bad})
    for stop in ("abc", ["a", ""]):
        with pytest.raises(ConfigError, match="stop"):
            stream_text(model, ByteTokenizer(False), "a", max_tokens=1, stop=stop)
    assert list(generate(model, [1], max_tokens=0)) == []
