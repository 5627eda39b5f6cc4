"""Sampling against the definitions of temperature, top-k, top-p, min-p and penalties."""

from __future__ import annotations

import numpy as np
import torch

from lmsmith.generate.sampling import Sampler, Sampling, distributions, generator_for, sample
from lmsmith.verify.models import V
from lmsmith.verify.registry import apart, equivalence

SETTINGS = (
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_p=0.6),
    Sampling(min_p=0.1),
    Sampling(temperature=1.4, top_k=20, top_p=0.9, min_p=0.02),
    Sampling(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
)
PROMPT, GENERATED = [3, 4, 4], [4, 5, 5, 6]


def _logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return 2 * torch.randn(3, V, generator=generator, dtype=torch.float64)


def _definition(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The distribution of one row: penalties, temperature, then top-k, top-p and min-p."""
    x = logits.copy()
    for id in {*PROMPT, *GENERATED}:
        x[id] = x[id] / s.repetition_penalty if x[id] > 0 else x[id] * s.repetition_penalty
    for id in set(GENERATED):
        x[id] -= s.frequency_penalty * GENERATED.count(id) + s.presence_penalty
    x = x / s.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: s.top_k or V]
    within = p[kept] / p[kept].sum()
    n = int(np.searchsorted(np.cumsum(within), s.top_p - 1e-12)) + 1
    kept = kept[:n] if s.top_p < 1 else kept
    kept = kept[p[kept] >= s.min_p * p.max()]
    found = np.zeros(V)
    found[kept] = p[kept]
    return np.asarray(found / found.sum())


@equivalence("sampling", "filters, penalties; definitions", bound=1e-9)
def sampling() -> float:
    logits, worst = _logits(), 0.0
    for settings in SETTINGS:
        samplers = [Sampler(settings, torch.Generator(), None, PROMPT) for _ in logits]
        for sampler in samplers:
            for id in GENERATED:
                sampler.add(id)
        found = distributions(logits.clone(), samplers)
        for row, p in zip(logits.numpy(), found, strict=True):
            worst = max(worst, apart(p, _definition(row, settings)))
    return worst


@equivalence("drawn tokens", "20,000 draws; share of six sigma", bound=1.0)
def drawn_tokens() -> float:
    """The largest deviation of a frequency, as a share of six standard deviations."""
    logits, settings, n = _logits()[:1], Sampling(temperature=1.2, top_k=12), 20_000
    samplers = [Sampler(settings, torch.Generator(), None)]
    p = distributions(logits.clone(), samplers)[0].numpy()
    generators = [generator_for(5, index) for index in range(n)]
    drawn = sample(logits.expand(n, V).clone(), settings, generators).numpy()
    counts = np.bincount(drawn, minlength=V)
    if counts[p == 0].any():
        return float("inf")
    sigma = np.sqrt(n * p * (1 - p))[p > 0]
    return float((np.abs(counts - n * p)[p > 0] / (6 * sigma)).max())
