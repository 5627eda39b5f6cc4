"""Logits to the next id: greedy, temperature, top-k, top-p, min-p.

The steps, in this order, each on what the one before it left:

1. temperature t: p_i proportional to exp(logit_i / t). At t = 0 the id with the largest logit is
   taken (greedy; of equal ones the lowest id), and nothing below matters, for every filter keeps
   that id.
2. top-k (Fan et al. 2018): the k likeliest ids stay; of equally likely ones the lower ids. 0 keeps
   all.
3. top-p (Holtzman et al. 2020): the smallest set of likeliest ids whose share of what is left
   reaches p stays, at least one id; of equally likely ones the lower ids. 1 keeps all.
4. min-p (Nguyen et al. 2024): ids at least min-p times as likely as the likeliest stay. 0 keeps
   all.

Ids that no token has are `forbidden`: they get no probability before any of these steps, greedy or
not.

What stays is scaled to sum to one. One uniform number u from a row's own generator then picks the
first id at which the cumulative probability exceeds u: a token costs one random number whatever the
vocabulary, and two runs that differ in the logits' last bits alone nearly always agree.

Probabilities are computed on the CPU in float64 on every device: one definition, the same samples
everywhere, and the running sum is exact enough that an id of probability zero is never drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from lmsmith.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. The defaults draw from the model's own distribution. Raises
    ConfigError.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        _check(
            0 <= self.temperature < float("inf"),
            "temperature",
            self.temperature,
            "0 (greedy) or more",
        )
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all)")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 (all) and 1")


def sample(
    logits: Float[Tensor, "n V"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    forbidden: Int64[Tensor, " F"] | None = None,
) -> Int64[Tensor, " n"]:
    """The next id of each row, on the CPU; row i draws one number from `generators[i]`, greedy rows
    none.

    Ids in `forbidden` are never drawn. Raises CheckpointError for logits that are not numbers.
    """
    assert len(generators) == len(logits)
    if sampling.temperature == 0:
        return _finite(logits, forbidden).argmax(dim=-1)
    cumulative = probabilities(logits, sampling, forbidden).cumsum(dim=-1)
    u = torch.cat(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    )
    # u is at most 1 - 2**-53, so u * total rounds to less than total: there always is a first id
    # that exceeds it.
    threshold = u[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def probabilities(
    logits: Float[Tensor, "n V"], sampling: Sampling, forbidden: Int64[Tensor, " F"] | None = None
) -> Float64[Tensor, "n V"]:
    """The distribution `sample` draws from, zeros for what was filtered out. Wants a temperature
    above 0.
    """
    assert sampling.temperature > 0
    logits = _finite(logits, forbidden)
    # The largest becomes 0 before the division, which then cannot overflow upwards however small
    # the temperature.
    p = ((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature).softmax(dim=-1)
    if 0 < sampling.top_k < p.shape[-1]:
        p = p * _top_k(p, sampling.top_k)
    if sampling.top_p < 1:
        p = p * _top_p(p / p.sum(dim=-1, keepdim=True), sampling.top_p)
    if sampling.min_p > 0:
        p = p * (p >= sampling.min_p * p.amax(dim=-1, keepdim=True))
    return p / p.sum(dim=-1, keepdim=True)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The randomness of sample `index`: a function of (seed, index) alone. Raises ConfigError
    for a negative seed.
    """
    _check(seed >= 0, "seed", seed, "0 or more")
    # Hashed together, so that neighbouring seeds share no samples as they would by seed + index.
    mixed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _top_k(p: Float64[Tensor, "n V"], k: int) -> Bool[Tensor, "n V"]:
    least = p.topk(k, dim=-1).values[:, -1:]
    above, tied = p > least, p == least
    return above | (tied & (tied.cumsum(dim=-1) <= k - above.sum(dim=-1, keepdim=True)))


def _top_p(p: Float64[Tensor, "n V"], mass: float) -> Bool[Tensor, "n V"]:
    ordered, ids = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1).roll(1, dims=-1)  # the mass of all likelier ids
    before[:, 0] = 0
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, before < mass)


def _finite(
    logits: Float[Tensor, "n V"], forbidden: Int64[Tensor, " F"] | None
) -> Float64[Tensor, "n V"]:
    """The logits on the CPU in float64; -inf is a forbidden id, but each row needs one that is
    allowed.
    """
    logits = logits.detach().to("cpu").to(torch.float64)
    if forbidden is not None and len(forbidden):
        logits = logits.index_fill(-1, forbidden, -math.inf)
    if not logits.amax(dim=-1).isfinite().all():
        raise CheckpointError(
            "the model's logits are not numbers (NaN or infinite): its weights are damaged or its "
            "training diverged. "
            "Take an earlier checkpoint."
        )
    return logits


def _check(good: bool, name: str, found: float, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {found}: wanted {wanted}.")


@dataclass
class Sampler:
    sampling: Sampling
    generator: torch.Generator
    forbidden: Tensor | None = None
    prompt_ids: Sequence[int] = ()

    def add(self, id: int) -> None: ...


@dataclass(frozen=True)
class Choice:
    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


def choose(
    logits: Float[Tensor, "n V"], samplers: Sequence[Sampler], *, with_log_probabilities: bool
) -> list[Choice]:
    return [
        Choice(
            int(sample(row[None], s.sampling, [s.generator], s.forbidden)),
            float("nan"),
        )
        for row, s in zip(logits, samplers, strict=True)
    ]
