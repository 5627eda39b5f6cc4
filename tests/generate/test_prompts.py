"""Prompts are read in parts, beside each other and beside running sequences: no bit changes."""

from typing import Any

import pytest
import torch
from decoder_models import VARIANTS, T, full_logits, model_of, random_texts

from lmsmith.generate import prompts
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.prefix import PIECE
from lmsmith.generate.weights import pack

NAMES = ["gpt2", "modern", "window"]


def read_alone(decoder: CpuDecoder, ids: list[int]) -> torch.Tensor:
    """The logits after a prompt that has the decoder for itself."""
    decoder.free(0)
    return decoder.prefill(0, ids).clone()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_same_bits_alone_and_beside_others(
    name: str, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five prompts that come one after the other, in passes of 32 and of 3 tokens."""
    model = model_of(VARIANTS[name], torch.float32)
    pack(model, weights)
    alone, texts = (
        CpuDecoder(model, 1),
        [text[: 4 + 5 * i] for i, text in enumerate(random_texts())],
    )
    expected = [read_alone(alone, text) for text in texts]
    for most in (32, 3):
        monkeypatch.setattr(prompts, "PASS_TOKENS", most)
        decoder = CpuDecoder(model, 5)
        waiting, reading, running = list(enumerate(texts)), [], []
        found: dict[int, torch.Tensor] = {}
        while waiting or reading:
            if waiting:
                reading.append(decoder.open(*waiting.pop(0)))
            logits = decoder.read(reading, running, [1] * len(running))
            done = [prompt for prompt in reading if prompt.done]
            found |= {p.slot: row.clone() for p, row in zip(done, logits, strict=False)}
            reading = [prompt for prompt in reading if not prompt.done]
            running = [slot for slot in [*running, *(p.slot for p in done)] if slot % 2]
        for slot, row in enumerate(expected):
            assert torch.equal(found[slot], row), (most, slot)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_in_parts_is_the_models_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VARIANTS[name])
    monkeypatch.setattr(prompts, "PASS_TOKENS", 3)
    text = random_texts()[0][: T - 2]
    got = CpuDecoder(model, 1).prefill(0, text)
    assert (got - full_logits(model, text)[-1]).abs().max() < 1e-10


def rows_of(decoder: CpuDecoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the number of tokens of each pass."""
    rows: list[int] = []
    run = decoder._pass

    def counted(slots: Any, ids: Any) -> None:
        rows.append(len(slots))
        run(slots, ids)

    monkeypatch.setattr(decoder, "_pass", counted)
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_in_another_slot_is_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VARIANTS[name], torch.float32)
    first = random_texts()[0][:12]
    other = [*first[:7], (first[7] + 1) % 20, 3]
    decoder, alone = CpuDecoder(model, 4), CpuDecoder(model, 1)
    room = decoder.n_in_place
    decoder.prefill(0, first)
    rows = rows_of(decoder, monkeypatch)
    for slot, ids, n_read in ((1, other, 2), (2, first, 1), (3, first[:5], 1)):
        got = decoder.prefill(slot, ids).clone()
        assert torch.equal(got, read_alone(alone, ids))
        if room >= 12:
            assert rows.pop() == n_read
        assert torch.equal(decoder.step([slot], [4])[0], alone.step([0], [4])[0])
    assert decoder.n_tokens_copied == (22 if room >= 12 else decoder.n_tokens_copied)
    decoder.free(0)
    decoder.free(2)
    before = decoder.n_tokens_copied
    decoder.prefill(0, [9, *first])
    assert decoder.n_tokens_copied == before  # freed slots and other texts hold nothing of it


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VARIANTS["gpt2"], torch.float32)
    ids, different = random_texts()[0][:9], random_texts()[1][:4]
    decoder = CpuDecoder(model, 4)
    rows = rows_of(decoder, monkeypatch)
    opened = [decoder.open(slot, text) for slot, text in enumerate([ids, different, ids, ids])]
    logits = decoder.read(opened, [], []).clone()
    assert rows == [len(ids) + len(different)]
    alone = CpuDecoder(model, 1)
    for slot, text in enumerate([ids, different, ids, ids]):
        assert torch.equal(logits[slot], read_alone(alone, text))
    following = decoder.step(range(4), [5] * 4)
    assert torch.equal(following[0], following[3])


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """The long one is read piece by piece; the running sequence gets a token each time."""
    model = model_of(VARIANTS["gpt2"] | {"context_length": 4 * PIECE}, torch.float32)
    text = [i % 19 for i in range(3 * PIECE + 70)]
    alone = CpuDecoder(model, 1)
    expected = read_alone(alone, text)
    decoder = CpuDecoder(model, 3, prefix_bytes=1 << 24)
    decoder.prefill(0, [1, 2])
    long, short = decoder.open(1, text), decoder.open(2, [3, 4])
    assert len(decoder.read([long, short], [0], [5])) == 2
    assert (long.done, short.done) == (False, True)
    n_calls = 1
    while not long.done:
        logits = decoder.read([long], [0, 2], [5, 5])
        n_calls += 1
    assert n_calls == 5  # three pieces with 32 more tokens, then 32 and 6 tokens
    assert torch.equal(logits[0], expected)
    decoder.free(0)
    decoder.free(1)
    assert torch.equal(decoder.prefill(1, text), expected)  # from the prefix cache
