"""The prefix cache: fewer tokens are read, and the logits are the same to the last bit."""

import numpy as np
import pytest
import torch

from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.prefix import PIECE
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

V = 50


def _gpt(**parts: object) -> GPT:
    parts = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 1024} | parts
    model = GPT(GPTConfig(vocab_size=V, **parts))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "parts",
    [{}, {"window": 100, "window_pattern": "SL"}, {"ngram_table_size": 64}, {"n_kv_head": 1}],
)
def test_logits_are_the_same_to_the_last_bit(parts: dict[str, object]) -> None:
    model = _gpt(**parts)
    cached, plain = CpuDecoder(model, 1, prefix_bytes=1 << 24), CpuDecoder(model, 1)
    assert cached.prefixes is not None
    first = np.random.default_rng(0).integers(0, V, 900).tolist()
    for length, other, n_found in (
        (900, 900, 0),
        (900, 900, 3 * PIECE),
        (700, 300, PIECE),
        (2 * PIECE, 2 * PIECE, PIECE),  # the last token is always read
        (2 * PIECE + 1, 2 * PIECE + 1, 2 * PIECE),
        (10, 5, 0),
    ):
        ids = first[:other] + [(id + 1) % V for id in first[other:length]]
        before = cached.prefixes.n_tokens_found
        a, b = cached.prefill(0, ids).clone(), plain.prefill(0, ids).clone()
        assert torch.equal(a, b), (length, other)
        assert cached.prefixes.n_tokens_found - before == n_found, (length, other)
        for id in (3, 4, 5):
            assert torch.equal(cached.step([0], [id]), plain.step([0], [id]))


def test_the_memory_is_bounded() -> None:
    model = _gpt()
    piece = 2 * 2 * 32 * PIECE * 4
    decoder = CpuDecoder(model, 1, prefix_bytes=3 * piece)
    assert decoder.prefixes is not None
    for seed in range(4):
        decoder.prefill(0, np.random.default_rng(seed).integers(0, V, 900).tolist())
        assert decoder.prefixes.n_bytes == 3 * piece
    decoder.prefill(0, np.random.default_rng(3).integers(0, V, 900).tolist())
