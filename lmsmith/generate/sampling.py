"""Samples the next id from logits: greedy, temperature, top-k, top-p, min-p.

Ids without a token are `forbidden`: they get probability zero first, also in greedy decoding. Then
these steps are applied in order:

1. temperature t: p_i is proportional to exp(logit_i / t). t = 0 is greedy decoding: the id with the
   largest logit (of ties, the lowest id). The filters below all keep that id.
2. top-k (Fan et al. 2018): keeps the k most likely ids (of ties, the lower ids). 0 keeps all.
3. top-p (Holtzman et al. 2020): keeps the smallest set of most likely ids whose share of the
   remaining probability reaches p, at least one id (of ties, the lower ids). 1 keeps all.
4. min-p (Nguyen et al. 2024): keeps ids at least min-p times as likely as the most likely one. 0
   keeps all.

The remaining probabilities are normalized. One uniform number u from the row's generator picks the
first id whose cumulative probability exceeds u. So a token uses one random number whatever the
vocabulary, and two runs whose logits differ only by rounding almost always agree.

Probabilities are computed on the CPU in float64 for all devices, so that samples do not depend on
the device, and the cumulative sum is exact enough that an id of probability zero is never sampled.
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
    """Sampling parameters. The defaults sample from the model's unchanged distribution. Raises
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
    """The next id of each row, on the CPU. Row i uses one random number from `generators[i]`;
    greedy decoding uses none.

    Ids in `forbidden` are never sampled. Raises CheckpointError for logits that are not finite.
    """
    assert len(generators) == len(logits)
    if sampling.temperature == 0:
        return _finite(logits, forbidden).argmax(dim=-1)
    cumulative = probabilities(logits, sampling, forbidden).cumsum(dim=-1)
    u = torch.cat(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    )
    # u is at most 1 - 2**-53, so u * total rounds to less than total, and some id exceeds it.
    threshold = u[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def probabilities(
    logits: Float[Tensor, "n V"], sampling: Sampling, forbidden: Int64[Tensor, " F"] | None = None
) -> Float64[Tensor, "n V"]:
    """The distribution that `sample` uses, with zeros for ids that were filtered out. The
    temperature must be above 0.
    """
    assert sampling.temperature > 0
    logits = _finite(logits, forbidden)
    # Subtracting the maximum first prevents overflow at small temperatures.
    p = ((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature).softmax(dim=-1)
    if 0 < sampling.top_k < p.shape[-1]:
        p = p * _top_k(p, sampling.top_k)
    if sampling.top_p < 1:
        p = p * _top_p(p / p.sum(dim=-1, keepdim=True), sampling.top_p)
    if sampling.min_p > 0:
        p = p * (p >= sampling.min_p * p.amax(dim=-1, keepdim=True))
    return p / p.sum(dim=-1, keepdim=True)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The random generator of sample `index`, a function of (seed, index). Raises ConfigError for a
    negative seed.
    """
    _check(seed >= 0, "seed", seed, "0 or more")
    # Hashed together, because with seed + index neighbouring seeds would share samples.
    mixed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _top_k(p: Float64[Tensor, "n V"], k: int) -> Bool[Tensor, "n V"]:
    least = p.topk(k, dim=-1).values[:, -1:]
    above, tied = p > least, p == least
    return above | (tied & (tied.cumsum(dim=-1) <= k - above.sum(dim=-1, keepdim=True)))


def _top_p(p: Float64[Tensor, "n V"], mass: float) -> Bool[Tensor, "n V"]:
    ordered, ids = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1).roll(1, dims=-1)  # the probability of all likelier ids
    before[:, 0] = 0
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, before < mass)


def _finite(
    logits: Float[Tensor, "n V"], forbidden: Int64[Tensor, " F"] | None
) -> Float64[Tensor, "n V"]:
    """The logits on the CPU in float64, -inf for forbidden ids. Raises CheckpointError if the
    largest logit of a row is not finite.
    """
    logits = logits.detach().to("cpu").to(torch.float64)
    if forbidden is not None and len(forbidden):
        logits = logits.index_fill(-1, forbidden, -math.inf)
    if not logits.amax(dim=-1).isfinite().all():
        raise CheckpointError(
            "the model's logits are not finite numbers (NaN or infinite): its weights are damaged "
            "or its training diverged. Use an earlier checkpoint."
        )
    return logits


def _check(good: bool, name: str, found: float, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {found}: expected {expected}.")


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
