"""Beam search against transformers' generate, greedy decoding and the search of all texts."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmsmith.errors import CheckpointError, ConfigError, UsageError
from lmsmith.generate.beam import beam_search
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

ENDS = (3, 11)


def _model(V: int = 40, T: int = 32, seed: int = 0, scale: float = 0.5) -> GPT:
    config = GPTConfig(vocab_size=V, context_length=T, n_layer=2, n_head=2, d_model=16)
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, scale, generator=generator)
    return model


class Rereading:
    """A decoder without a cache: it reads the text of a slot from the beginning at each step."""

    def __init__(self, model: GPT, n_slots: int) -> None:
        self.model, self.n_slots = model, n_slots
        self.texts: list[list[int]] = [[] for _ in range(n_slots)]
        self.n_prefills = self.longest = 0

    def _read(self, slot: int) -> Tensor:
        self.longest = max(self.longest, len(self.texts[slot]))
        with torch.no_grad():
            return self.model(torch.tensor([self.texts[slot]]))[0, -1]

    def prefill(self, slot: int, ids: Sequence[int]) -> Tensor:
        self.n_prefills += 1
        self.texts[slot] = list(ids)
        return self._read(slot)

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Tensor:
        for slot, id in zip(slots, ids, strict=True):
            self.texts[slot].append(id)
        return torch.stack([self._read(slot) for slot in slots])

    def copy(self, source: int, target: int) -> None:
        self.texts[target] = list(self.texts[source])

    def free(self, slot: int) -> None:
        self.texts[slot] = []


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, GPT]:
    """A random GPT-2 of transformers, and the same model here."""
    transformers = pytest.importorskip("transformers")
    from lmsmith.interop.huggingface import read

    config = transformers.GPT2Config(
        vocab_size=61, n_positions=64, n_embd=24, n_layer=2, n_head=2, tie_word_embeddings=False
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, p in theirs.named_parameters():
        mean = 1.0 if p.dim() == 1 and name.endswith("weight") else 0.0
        p.data.normal_(mean, 0.15, generator=generator)
    folder: Path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    ours = GPT(read(folder)[0])
    ours.load_state_dict(read(folder)[1])
    return theirs, ours.eval()


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty"),
    [(False, 1.0), (True, 1.0), ("never", 1.0), (False, 0.0), ("never", 2.5), (False, -1.0)],
)
@pytest.mark.parametrize("ends", [(), (11,), (3, 11, 20)])
def test_texts_and_scores_are_those_of_transformers(
    pair: tuple[Any, GPT], ends: tuple[int, ...], length_penalty: float, early_stopping: Any
) -> None:
    theirs, ours = pair
    n_ended = 0
    for prompt, n_beams in (([1, 2, 5], 2), ([8, 9, 10, 11], 5)):
        found = theirs.generate(
            torch.tensor([prompt]),
            num_beams=n_beams,
            num_return_sequences=n_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(ends) or None,
            pad_token_id=60,
            output_scores=True,
            return_dict_in_generate=True,
        )
        beams = beam_search(
            CpuDecoder(ours, n_beams),
            prompt,
            n_beams=n_beams,
            n_best=n_beams,
            max_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            ends=ends,
        )
        for beam, ids, score in zip(beams, found.sequences, found.sequences_scores, strict=True):
            new = ids[len(prompt) :].tolist()
            assert list(beam.ids) == new[: len(beam.ids)]
            assert set(new[len(beam.ids) :]) <= {60}  # padding
            assert beam.score == pytest.approx(float(score), abs=1e-5, rel=5e-7)
            assert beam.ended == (beam.ids[-1] in ends)
            n_ended += beam.ended
    assert bool(n_ended) == bool(ends)


def test_one_beam_is_greedy() -> None:
    for seed in range(5):
        model, text = _model(seed=seed), [1, 2]
        total = 0.0
        while len(text) < 22 and text[-1] not in ENDS:
            with torch.no_grad():
                p = model(torch.tensor([text]))[0, -1].double().log_softmax(-1)
            text.append(int(p.argmax()))
            total += float(p.max())
        (beam,) = beam_search(CpuDecoder(model, 1), [1, 2], n_beams=1, max_tokens=20, ends=ENDS)
        assert list(beam.ids) == text[2:]
        assert beam.log_probability == pytest.approx(total, abs=1e-4)
        assert beam.score == pytest.approx(total / len(beam.ids), abs=1e-5)


def _all_texts(
    model: GPT, prompt: list[int], V: int, n: int, end: int
) -> dict[tuple[int, ...], float]:
    """The log-probability of each text that ends with `end` or has n tokens."""
    texts: dict[tuple[int, ...], float] = {}
    continuations = list(itertools.product(range(V), repeat=n))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids] for ids in continuations]))
    for ids, p in zip(continuations, logits.double().log_softmax(-1), strict=True):
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        texts[ids] = sum(float(p[len(prompt) - 1 + i, id]) for i, id in enumerate(ids))
    return texts


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
def test_a_wide_beam_finds_the_best_of_all_texts(length_penalty: float) -> None:
    V, n, end = 4, 4, 2
    model = _model(V, scale=0.35)
    scores = {
        ids: log_p / len(ids) ** length_penalty
        for ids, log_p in _all_texts(model, [0, 1], V, n, end).items()
    }
    best = sorted(scores, key=lambda ids: -scores[ids])[:8]
    beams = beam_search(
        CpuDecoder(model, V**n),
        [0, 1],
        n_beams=V**n,
        n_best=8,
        max_tokens=n,
        ends=[end],
        length_penalty=length_penalty,
        early_stopping="never",
    )
    assert [beam.ids for beam in beams] == best
    assert [beam.score for beam in beams] == pytest.approx([scores[ids] for ids in best], abs=1e-5)


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_pair() -> None:
    for seed in range(6):
        model = _model(6, seed=seed)
        texts = _all_texts(model, [3], 6, 2, end=-1)
        (beam,) = beam_search(
            CpuDecoder(model, 6), [3], n_beams=6, max_tokens=2, early_stopping="never"
        )
        assert beam.ids == max(texts, key=lambda ids: texts[ids])


def test_the_cache_and_the_sliding_window_change_nothing() -> None:
    model = _model(T=10)
    how: dict[str, Any] = {"n_beams": 4, "n_best": 4, "max_tokens": 14, "context_length": 10}
    compiled, rereading = CpuDecoder(model, 5), Rereading(model, 5)
    for prompt in ([1, 2, 3], list(range(14))):
        got = beam_search(compiled, prompt, **how)
        expected = beam_search(rereading, prompt, **how)
        assert [beam.ids for beam in got] == [beam.ids for beam in expected]
        for a, b in zip(got, expected, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-5)
        assert got == beam_search(compiled, prompt, **how)
    assert rereading.longest == 10


def test_the_prompt_is_read_once_and_the_slots_are_emptied() -> None:
    decoder = Rereading(_model(), 3)
    beam_search(decoder, [1, 2, 3], n_beams=3, max_tokens=9)
    assert decoder.n_prefills == 1
    assert decoder.texts == [[], [], []]


def test_forbidden_ids_are_not_generated() -> None:
    model = _model(12)
    free = beam_search(CpuDecoder(model, 3), [0], n_beams=3, max_tokens=6)[0]
    forbidden = {free.ids[0], 5}
    beams = beam_search(
        CpuDecoder(model, 3), [0], n_beams=3, n_best=3, max_tokens=6, forbidden=forbidden
    )
    assert len(beams) == 3
    assert not {id for beam in beams for id in beam.ids} & forbidden
    with torch.no_grad():  # what is forbidden stays in the model's distribution
        p = model(torch.tensor([[0, *beams[0].ids]]))[0].double().log_softmax(-1)
    exact = sum(float(p[i, id]) for i, id in enumerate(beams[0].ids))
    assert beams[0].log_probability == pytest.approx(exact, abs=1e-5)


def test_fewer_texts_than_beams() -> None:
    beams = beam_search(CpuDecoder(_model(3), 5), [0], n_beams=5, n_best=5, max_tokens=1)
    assert sorted(beam.ids for beam in beams) == [(0,), (1,), (2,)]
    assert math.fsum(math.exp(beam.log_probability) for beam in beams) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_beams": 0}, "n_beams = 0: expected 1 to 3"),
        ({"n_beams": 4}, "n_beams = 4: expected 1 to 3"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"n_best": 3}, "n_best = 3: expected 1 to the number of beams, 2"),
        ({"length_penalty": math.nan}, "length_penalty = nan"),
        ({"early_stopping": "always"}, "early_stopping = always"),
        ({"forbidden": range(40)}, "every token .* is forbidden"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    decoder = CpuDecoder(_model(), 3)
    with pytest.raises(ConfigError, match=message):
        beam_search(decoder, [1], **({"n_beams": 2, "max_tokens": 3} | changed))


def test_an_empty_prompt_and_broken_logits_are_refused() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        beam_search(CpuDecoder(_model(), 1), [], n_beams=1, max_tokens=3)
    model = _model()
    model.blocks[1].feed_forward.down.weight.data[0, 0] = math.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        beam_search(CpuDecoder(model, 1), [1], n_beams=1, max_tokens=3)
