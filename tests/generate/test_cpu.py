"""The compiled decoder against the model's own forward pass over the whole text."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.generate.cache import SlotCache
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decoders import StateDecoder, decoder_for
from lmsmith.generate.weights import pack
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

V, T = 101, 48
GPT2 = {
    "norm": "layernorm",
    "norm_gain": True,
    "positions": "learned",
    "feed_forward": "gelu-tanh",
    "bias": True,
    "tied_head": True,
    "qk_norm": False,
    "embedding_norm": False,
    "logit_softcap": 0.0,
    "dropout": 0.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": {"norm_gain": True, "feed_forward": "swiglu", "n_kv_head": 2, "logit_softcap": 0.0},
    "modern": {
        "ngram_tables": (2, 3),
        "ngram_table_size": 64,
        "value_embedding_every": 2,
        "residual_scalars": True,
        "vocab_multiple": 16,
    },
    "window": {"window": 8, "window_pattern": "SL", "n_kv_head": 1},
    "post-norm": {
        "norm": "layernorm",
        "norm_placement": "post",
        "feed_forward": "gelu",
        "bias": True,
        "positions": "none",
        "embedding_norm": False,
    },
    "odd widths": {"d_head": 10, "d_ff": 37, "feed_forward": "geglu", "attention_bias": "qkv"},
    "qwen3": {"qk_gain": "dimension", "n_kv_head": 2, "norm_eps": 0.1, "norm_gain": True},
    "olmo2": {"qk_gain": "projection", "n_kv_head": 2, "norm_placement": "output", "norm_eps": 0.1},
    "neox": {
        "norm": "layernorm",
        "norm_gain": True,
        "bias": True,
        "parallel_residual": True,
        "rope_fraction": 0.5,
        "qk_norm": False,
        "d_head": 12,
    },
    "parallel, norms of outputs": {"parallel_residual": True, "norm_placement": "output"},
    "nope": {"rope_pattern": "RN", "window": 8, "window_pattern": "SSL", "rope_fraction": 0.41},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 200},
    "longrope": {
        "rope_scaling": "longrope",
        "rope_factor": 4.0,
        "rope_original_context": 12,
        "rope_factors": (1.0, 1.5, 2.0, 3.0, 4.0),
        "rope_attention_factor": 1.3,
    },
    "no norm": {"norm": "none", "embedding_norm": False, "feed_forward": "silu"},
}


def _model(parts: dict[str, Any], dtype: torch.dtype = torch.float64) -> GPT:
    parts = {"n_layer": 3, "n_head": 4, "d_model": 40, "context_length": T} | parts
    model = GPT(GPTConfig(vocab_size=V, **parts)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def _texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, V, (5, T), generator=generator).tolist()


@torch.no_grad()
def _logits(model: GPT, text: list[int]) -> Tensor:
    return model(torch.tensor([text]))[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_ragged_batch_equals_the_whole_text(name: str) -> None:
    model = _model(VARIANTS[name])
    texts = _texts()
    expected = [_logits(model, text) for text in texts]
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
    model = _model(VARIANTS[name], torch.float32)
    pack(model, weights)
    texts = _texts()
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
    exact, model = _model(GPT2), _model(GPT2, torch.float32)
    text = _texts()[0]
    expected, torchs = _logits(exact, text), _logits(model, text)
    decoder = CpuDecoder(model, 1)
    decoder.prefill(0, text[:1])
    ours = torch.stack([decoder.step([0], [id])[0].clone() for id in text[1:]])
    error = (ours - expected[1:]).abs().max()
    assert error < 3 * (torchs - expected).abs().max() + 1e-6


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_packed_weights_are_those_that_pytorch_unpacks(weights: Any) -> None:
    model = _model(VARIANTS["llama"], torch.float32)
    before = model.blocks[0].feed_forward.up.weight.detach().clone()  # type: ignore[union-attr]
    assert pack(model, weights) == 3 * 4 + 2
    after = model.blocks[0].feed_forward.up.weight  # type: ignore[union-attr]
    if weights == "bf16":
        assert torch.equal(after, before.bfloat16().float())
    else:
        step = before.abs().amax(dim=1, keepdim=True) / 127
        assert ((after - before).abs() <= step / 2 * 1.001).all()
    text = _texts()[0]
    decoder = CpuDecoder(model, 1)
    decoder.prefill(0, text[:4])
    expected = _logits(model, text)
    for t in range(4, T):
        got = decoder.step([0], [text[t]])[0]
        assert (got - expected[t]).abs().max() < 1e-4


def test_copied_slots_go_separate_ways() -> None:
    model = _model(VARIANTS["window"])
    text = _texts()[0]
    decoder = CpuDecoder(model, 3)
    decoder.prefill(0, text[:20])
    decoder.copy(0, 2)
    decoder.step([0], [1])
    got = decoder.step([2], [text[20]])[0]
    assert (got - _logits(model, text[:21])[-1]).abs().max() < 1e-10


def test_a_freed_slot_holds_nothing_of_its_last_text() -> None:
    model = _model(VARIANTS["gpt2"])
    texts = _texts()
    decoder = CpuDecoder(model, 2)
    decoder.prefill(0, texts[0][:40])
    decoder.free(0)
    decoder.prefill(0, texts[1][:3])
    got = decoder.step([0], [texts[1][3]])[0]
    assert (got - _logits(model, texts[1][:4])[-1]).abs().max() < 1e-10


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
    assert isinstance(decoder_for(_model(GPT2), 1), CpuDecoder)
    assert isinstance(decoder_for(_model(GPT2, torch.bfloat16), 1), StateDecoder)


def test_both_decoders_agree() -> None:
    model = _model(VARIANTS["modern"])
    text = _texts()[0]
    compiled, plain = CpuDecoder(model, 2), StateDecoder(model, 2)
    for decoder in (compiled, plain):
        decoder.prefill(1, text[:7])
    for id in text[7:]:
        a, b = compiled.step([1], [id]), plain.step([1], [id])
        assert F.l1_loss(a, b) < 1e-10
