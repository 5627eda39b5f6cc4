"""Decoding with a KV cache against the model on the full text, alone and in batches."""

from __future__ import annotations

import itertools

import torch

from lmsmith.generate.decode import generate
from lmsmith.generate.decoders import Decoder, StateDecoder, decoder_for
from lmsmith.generate.sampling import Sampling
from lmsmith.models.gpt import GPT
from lmsmith.verify.models import VARIANTS, T, device, log_softmax, random_ids, small_model
from lmsmith.verify.registry import apart, equivalence, unequal


def by_cache(decoder: Decoder, texts: list[list[int]], n_given: list[int]) -> list[torch.Tensor]:
    """Logits after each token of each text from its `n_given`-th on: prompts of different lengths,
    then one token of each text per step, as long as the text lasts."""
    found = [
        [decoder.prefill(slot, ids[:n]).clone()]
        for slot, (ids, n) in enumerate(zip(texts, n_given, strict=True))
    ]
    for step in itertools.count():
        slots = [s for s, ids in enumerate(texts) if n_given[s] + step < len(ids)]
        if not slots:
            return [torch.stack(rows) for rows in found]
        logits = decoder.step(slots, [texts[s][n_given[s] + step] for s in slots])
        for slot, row in zip(slots, logits.clone(), strict=True):
            found[slot].append(row)
    raise AssertionError


def _texts() -> tuple[list[list[int]], list[int]]:
    return random_ids(4, T).tolist(), [1, 5, T - 3, 12]


@equivalence("cached decoding", "with a KV cache; the full text", bound=1e-10, cuda=1e-9)
def cached_decoding() -> float:
    """Log-probabilities of all variants, by the compiled decoder and by the model's own cache."""
    texts, n_given = _texts()
    worst = 0.0
    with torch.no_grad():
        for variant in VARIANTS:
            model = small_model(variant)
            full = log_softmax(model(torch.tensor(texts, device=device())))
            for decoder in (decoder_for(model, 4), StateDecoder(model, 4)):
                found = by_cache(decoder, texts, n_given)
                for row, (logits, n) in enumerate(zip(found, n_given, strict=True)):
                    worst = max(worst, apart(log_softmax(logits), full[row, n - 1 :]))
    return worst


@equivalence("batch invariance", "bits in a batch; bits alone", bound=0.0)
def batch_invariance() -> float:
    """In float32 by the compiled decoder."""
    texts, n_given = _texts()
    worst = 0.0
    with torch.no_grad():
        for variant in VARIANTS:
            model = small_model(variant, torch.float32)
            together = by_cache(decoder_for(model, 4), texts, n_given)
            for row, logits in enumerate(together):
                alone = by_cache(decoder_for(model, 1), [texts[row]], [n_given[row]])
                worst = max(worst, unequal(alone[0], logits))
    return worst


@equivalence("greedy text", "temperature 0; argmax of full text", bound=0.0, cuda=0.0)
def greedy_text() -> float:
    worst = 0.0
    for variant in VARIANTS:
        model, prompt = small_model(variant), random_ids(6, seed=7).tolist()
        steps = generate(model, prompt, max_tokens=T - 6, sampling=Sampling(temperature=0))
        worst = max(worst, unequal([ids[0] for ids in steps], _argmax(model, prompt)))
    return worst


@torch.no_grad()
def _argmax(model: GPT, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) < T:
        ids.append(int(model(torch.tensor([ids], device=device()))[0, -1].argmax()))
    return ids[len(prompt) :]
