"""The compiled decoder against the model's own forward pass over the whole text."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decoder_models import GPT2, VARIANTS, T, full_logits, model_of, random_texts

from lmsmith.generate import kernels
from lmsmith.generate.cache import SlotCache
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decoders import StateDecoder, decoder_for
from lmsmith.generate.weights import pack


@pytest.mark.parametrize("name", VARIANTS)
def test_a_ragged_batch_equals_the_whole_text(name: str) -> None:
    model = model_of(VARIANTS[name])
    texts = random_texts()
    expected = [full_logits(model, text) for text in texts]
    decoder = CpuDecoder(model, n_slots=6)
    lengths = [1, 17, 5, 30, 9]
    slots = [4, 0, 2, 5, 1]
    for text, length, slot, logits in zip(texts, lengths, slots, expected, strict=True):
        assert (decoder.prefill(slot, text[:length]) - logits[length - 1]).abs().max() < 1e-10
    for t in range(T - max(lengths)):
        got = decoder.step(slots, [text[n + t] for text, n in zip(texts, lengths, strict=True)])
        for row, n, logits in zip(got, lengths, expected, strict=True):
            assert (row - logits[n + t]).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "modern", "window"])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_the_same_bits_alone_and_in_a_batch(name: str, weights: Any) -> None:
    model = model_of(VARIANTS[name], torch.float32)
    pack(model, weights)
    texts = random_texts()
    many, alone = CpuDecoder(model, 5), CpuDecoder(model, 1)
    for slot, text in enumerate(texts):
        many.prefill(slot, text[: 3 + slot])
    together = [
        many.step(range(5), [text[3 + slot + t] for slot, text in enumerate(texts)]).clone()
        for t in range(20)
    ]
    for slot, text in enumerate(texts):
        alone.prefill(0, text[: 3 + slot])
        for t in range(20):
            assert torch.equal(alone.step([0], [text[3 + slot + t]])[0], together[t][slot])


def test_float32_is_as_near_as_pytorch() -> None:
    """Both are compared with float64; the decoder's error is of the size of PyTorch's."""
    exact, model = model_of(GPT2), model_of(GPT2, torch.float32)
    text = random_texts()[0]
    expected, torchs = full_logits(exact, text), full_logits(model, text)
    decoder = CpuDecoder(model, 1)
    decoder.prefill(0, text[:1])
    ours = torch.stack([decoder.step([0], [id])[0].clone() for id in text[1:]])
    error = (ours - expected[1:]).abs().max()
    assert error < 3 * (torchs - expected).abs().max() + 1e-6


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_packed_weights_are_those_that_pytorch_unpacks(weights: Any) -> None:
    model = model_of(VARIANTS["llama"], torch.float32)
    before = model.blocks[0].feed_forward.up.weight.detach().clone()  # type: ignore[union-attr]
    assert pack(model, weights) == 3 * 4 + 2
    after = model.blocks[0].feed_forward.up.weight  # type: ignore[union-attr]
    if weights == "bf16":
        assert torch.equal(after, before.bfloat16().float())
    else:
        step = before.abs().amax(dim=1, keepdim=True) / 127
        assert ((after - before).abs() <= step / 2 * 1.001).all()
    text = random_texts()[0]
    decoder = CpuDecoder(model, 1)
    decoder.prefill(0, text[:4])
    expected = full_logits(model, text)
    for t in range(4, T):
        got = decoder.step([0], [text[t]])[0]
        assert (got - expected[t]).abs().max() < 1e-4


def test_copied_slots_go_separate_ways() -> None:
    model = model_of(VARIANTS["window"])
    text = random_texts()[0]
    decoder = CpuDecoder(model, 3)
    decoder.prefill(0, text[:20])
    decoder.copy(0, 2)
    decoder.step([0], [1])
    got = decoder.step([2], [text[20]])[0]
    assert (got - full_logits(model, text[:21])[-1]).abs().max() < 1e-10


def test_a_freed_slot_holds_nothing_of_its_last_text() -> None:
    model = model_of(VARIANTS["gpt2"])
    texts = random_texts()
    decoder = CpuDecoder(model, 2)
    decoder.prefill(0, texts[0][:40])
    decoder.free(0)
    decoder.prefill(0, texts[1][:3])
    got = decoder.step([0], [texts[1][3]])[0]
    assert (got - full_logits(model, texts[1][:4])[-1]).abs().max() < 1e-10


def test_the_cache_is_a_ring_of_its_capacity() -> None:
    cache = SlotCache(2, 1, 4, 3, np.float64)
    keys = np.arange(18, dtype=np.float64).reshape(1, 6, 3)
    cache.fill(1, keys, -keys)
    for position in (2, 3, 4, 5):
        assert (cache.keys[1, 0, position % 4, :3] == keys[0, position]).all()
        assert (cache.values[1, 0, position % 4, :3] == -keys[0, position]).all()
    assert not cache.keys[0].any()
    assert not cache.keys[..., 3:].any()


def test_free_gives_pages_back() -> None:
    cache = SlotCache(2, 4, 1024, 64, np.float32)
    cache.keys[:] = 1
    cache.free(0, 1024)
    if cache._key_pages is not None:
        assert not cache.keys[0].any()  # fresh pages are zero
    assert cache.keys[1].all()


def test_which_decoder() -> None:
    assert isinstance(decoder_for(model_of(GPT2), 1), CpuDecoder)
    assert isinstance(decoder_for(model_of(GPT2, torch.bfloat16), 1), StateDecoder)


def test_both_decoders_agree() -> None:
    model = model_of(VARIANTS["modern"])
    text = random_texts()[0]
    compiled, plain = CpuDecoder(model, 2), StateDecoder(model, 2)
    for decoder in (compiled, plain):
        decoder.prefill(1, text[:7])
    for id in text[7:]:
        a, b = compiled.step([1], [id]), plain.step([1], [id])
        assert F.l1_loss(a, b) < 1e-10


@pytest.mark.parametrize("n", [1, 4, 6, 8, 16])
def test_attention_reads_and_writes_nothing_beyond_the_last_position(n: int) -> None:
    """Numba does not check bounds: a score too many would be another head's, or other memory."""
    H, G, K, C = 4, 2, 16, 16
    rng = np.random.default_rng(n)
    q = rng.normal(size=(H, K))
    keys, values = rng.normal(size=(2, 1, G, C, K))
    keys[:, :, n:] = values[:, :, n:] = np.nan
    scores, y = np.full((H, C + 8), 7.0), np.zeros((1, H * K))
    positions, slots = np.array([n - 1]), np.array([0])
    kernels.attend(q, 1, K, positions, slots, 0.25, keys, values, scores, y)
    for h in range(H):
        k, v = keys[0, h // 2, :n], values[0, h // 2, :n]
        weights = np.exp(0.25 * k @ q[h])
        found = y[0, h * K : (h + 1) * K]
        np.testing.assert_allclose(found, weights @ v / weights.sum(), rtol=1e-12)
    assert (scores[:, n:] == 7).all()
