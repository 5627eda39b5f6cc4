"""Chooses the next token: penalties, temperature, top-k, top-p, min-p, and the draw.

The steps, in this order:

1. logit bias: `logit_bias[id]` is added to the logit of `id`.
2. repetition penalty r (Keskar et al. 2019), for ids in the prompt or the generated text: a
   positive logit is divided by r, a negative one multiplied by r. 1 changes nothing.
3. frequency penalty f and presence penalty g (as OpenAI's API): the logit of an id that was
   generated n > 0 times is lowered by f n + g. The prompt does not count.
4. `banned` ids get no probability, and neither do ids that no token has (`forbidden`).
5. temperature t: p_i is proportional to exp(logit_i / t). At t = 0 the id with the largest logit
   is chosen (greedy; of equal ones the lowest id), and the filters below change nothing.
6. top-k (Fan et al. 2018): keeps the k likeliest ids; of equally likely ones the lower ids. 0
   keeps all.
7. top-p (Holtzman et al. 2020): keeps the smallest set of likeliest ids whose share of the
   probability left by the steps above reaches p, at least one id; of equally likely ones the lower
   ids. 1 keeps all.
8. min-p (Nguyen et al. 2024): keeps ids at least min-p times as likely as the likeliest. 0 keeps
   all.

The order is that of transformers, and the processed scores are equal to its.

The probabilities left are scaled to sum to one. One uniform number u from the sequence's own
generator picks the first id at which the cumulative probability exceeds u. So a token costs one
random number whatever the vocabulary, and two runs whose logits differ in the last bits nearly
always agree. An id of probability zero is never drawn.

Probabilities are computed on the CPU in float64 on every device (`filters.py`). The id chosen for a
sequence does not depend on the other sequences of the batch.
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.generate import filters

Array = npt.NDArray[Any]
_NO_IDS: Array = np.empty(0, np.int64)
_NO_NUMBERS: Array = np.empty(0)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults draw from the model's own distribution.

    temperature         0 is greedy
    top_k               number of likeliest ids to keep; 0 keeps all
    top_p               share of the probability to keep; 1 keeps all
    min_p               share of the largest probability that an id needs; 0 keeps all
    repetition_penalty  above 1 makes tokens of the prompt and the generated text less likely
    frequency_penalty   subtracted from a logit for each time that its token was generated
    presence_penalty    subtracted from the logit of each token that was generated
    logit_bias          numbers to add to the logits of ids
    banned              ids that are never chosen
    n_alternatives      how many of the likeliest tokens to report with each token

    Raises ConfigError for a number out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned: frozenset[int] = frozenset()
    n_alternatives: int = 0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (all)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 (all) and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is none"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("n_alternatives", self.n_alternatives >= 0, "0 or more"),
        ):
            _check(good, name, getattr(self, name), expected)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        object.__setattr__(self, "banned", frozenset(self.banned))
        for id, bias in self.logit_bias.items():
            _check(math.isfinite(bias), f"logit_bias[{id}]", bias, "a finite number")

    @property
    def filters(self) -> bool:
        """Whether top-k, top-p or min-p may remove ids, or greedy decoding all but one."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.temperature == 0

    def check_vocabulary(self, V: int, forbidden: Iterable[int] = ()) -> None:
        """Raises ConfigError for a biased or banned id that is not below V, and if no id is left
        that may be chosen.
        """
        for name, ids in (("logit_bias", self.logit_bias), ("banned", self.banned)):
            for id in ids:
                if not 0 <= id < V:
                    raise ConfigError(
                        f"{name} has the id {id}, which is outside the vocabulary: the model has "
                        f"the ids 0 to {V - 1}."
                    )
        if self.banned and len(self.banned.union(map(int, forbidden))) >= V:
            raise ConfigError(
                f"banned: all of the vocabulary's {V} ids are banned or have no token. Leave at "
                "least one that can be chosen."
            )


@dataclass(frozen=True)
class Drawn:
    """The distribution that a token was drawn from, after temperature, penalties and filters.

    `log_probability`: that of the token in it. `kept`: the ids that had a probability, as
    `numpy.packbits` of (V,) bool; None if top-k, top-p and min-p kept all.
    """

    log_probability: float
    kept: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class Choice:
    """A chosen token.

    `log_probability` and `alternatives` are the model's own: the log-softmax of its logits over all
    ids, before penalties, temperature and filters. The alternatives are the likeliest ids, most
    likely first, without `forbidden` ones. Not requested, they are NaN and empty. `drawn`: the
    distribution that the token was drawn from, if requested.
    """

    id: int
    log_probability: float = math.nan
    alternatives: tuple[tuple[int, float], ...] = ()
    drawn: Drawn | None = None


class Constraint(Protocol):
    """Restricts the tokens of one sequence to those that a grammar allows."""

    failed: bool  # no token of the vocabulary may come next; `restrict` then changes nothing

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing more may follow."""

    def restrict(self, logits: Float64[np.ndarray, " V"]) -> None:
        """Sets the logits of ids that may not come next to minus infinity, in place."""

    def add(self, id: int) -> None:
        """Reads a token that was chosen."""


class Sampler:
    """What choosing the tokens of one sequence needs: settings, random numbers, counts of tokens.

    forbidden   ids that have no token
    prompt_ids  the prompt, for the repetition penalty
    constraint  restricts the ids further, after the penalties
    """

    def __init__(
        self,
        sampling: Sampling,
        generator: torch.Generator,
        forbidden: Tensor | Array | Sequence[int] | None = None,
        prompt_ids: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling, self.generator, self._constraint = sampling, generator, constraint
        self.forbidden = _NO_IDS if forbidden is None else np.asarray(forbidden, np.int64)
        self._removed = np.append(self.forbidden, np.array(sorted(sampling.banned), np.int64))
        self._checked_V = -1
        s = sampling
        self._counts_tokens = s.repetition_penalty != 1 or s.frequency_penalty != 0
        self._counts_tokens |= s.presence_penalty != 0
        # Of each id that may need a change: where it is below, bias, whether seen, how often drawn.
        self._places: dict[int, int] = {}
        self._touched = np.zeros((4, 16))
        for id, bias in s.logit_bias.items():
            place = self._place(id)
            self._touched[1, place] = bias
        for id in set(prompt_ids) if s.repetition_penalty != 1 else ():
            place = self._place(id)
            self._touched[2, place] = 1

    def add(self, id: int) -> None:
        """Counts a generated token."""
        if self._constraint is not None:
            self._constraint.add(id)
        if self._counts_tokens:
            place = self._place(id)
            self._touched[2:, place] += 1

    def process(self, logits: Float64[np.ndarray, " V"]) -> None:
        """Applies bias, penalties and banned ids to a row of logits, in place."""
        V = len(logits)
        if self._checked_V != V:
            self.sampling.check_vocabulary(V, self.forbidden)
            self._checked_V = V
        if self._places:
            with np.errstate(over="ignore", invalid="ignore"):  # `choose` checks the result
                self._penalize(logits)
        if len(self._removed):
            logits[self._removed] = -np.inf
        if self._constraint is not None:
            self._constraint.restrict(logits)

    def _penalize(self, logits: Array) -> None:
        ids, bias, seen, count = self._touched[:, : len(self._places)]
        ids, s = ids.astype(np.int64), self.sampling
        x = logits[ids] + bias
        if s.repetition_penalty != 1:
            penalized = np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty)
            x = np.where(seen > 0, penalized, x)
        x -= s.frequency_penalty * count + s.presence_penalty * (count > 0)
        logits[ids] = x

    def _place(self, id: int) -> int:
        """The column of an id in `self._touched`, which may be replaced by a larger array."""
        id = int(id)
        place = self._places.setdefault(id, len(self._places))
        if place == self._touched.shape[1]:
            self._touched = np.hstack([self._touched, np.zeros_like(self._touched)])
        self._touched[0, place] = id
        return place


def choose(
    logits: Float[Tensor, "n V"],
    samplers: Sequence[Sampler],
    *,
    with_log_probabilities: bool = False,
    with_drawn: bool = False,
) -> list[Choice]:
    """The next token of each row. Row i draws one number from the generator of `samplers[i]`, a
    greedy row none.

    Log-probabilities and alternatives are reported if `with_log_probabilities`, the distributions
    that tokens were drawn from if `with_drawn`. The caller counts
    a token that it uses with `Sampler.add`. Raises CheckpointError for logits that are not numbers,
    ConfigError for settings that do not fit the vocabulary.
    """
    assert len(samplers) == len(logits)
    rows, scratch = cpu_rows(logits), _scratch(logits.shape[-1])
    return [
        _choose(row, sampler, scratch, with_log_probabilities, with_drawn)
        for row, sampler in zip(rows, samplers, strict=True)
    ]


def distributions(
    logits: Float[Tensor, "n V"], samplers: Sequence[Sampler]
) -> Float64[Tensor, "n V"]:
    """The distributions that `choose` draws from, zero for filtered ids. No random number is drawn.

    A greedy row has a one. Raises as `choose` does.
    """
    found = np.empty(tuple(logits.shape))
    scratch = _scratch(logits.shape[-1])
    for row, sampler, p in zip(cpu_rows(logits), samplers, found, strict=True):
        scratch.z[:] = row
        _pick(sampler, scratch, row, 0.0, p)
    return torch.from_numpy(found)


def sample(
    logits: Float[Tensor, "n V"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    forbidden: Int64[Tensor, " F"] | None = None,
) -> Int64[Tensor, " n"]:
    """`choose` with the same settings for each row and no text before it: the ids alone."""
    samplers = [Sampler(sampling, generator, forbidden) for generator in generators]
    return torch.tensor([choice.id for choice in choose(logits, samplers)])


def probabilities(
    logits: Float[Tensor, "n V"], sampling: Sampling, forbidden: Int64[Tensor, " F"] | None = None
) -> Float64[Tensor, "n V"]:
    """`distributions` with the same settings for each row and no text before it."""
    sampler = Sampler(sampling, torch.Generator(), forbidden)
    return distributions(logits, [sampler] * len(logits))


def generator_for(seed: int, index: int) -> torch.Generator:
    """The random number generator of sample `index`: a function of (seed, index) alone.

    Raises ConfigError for a negative seed.
    """
    _check(seed >= 0, "seed", seed, "0 or more")
    # Hashed together: with seed + index, neighbouring seeds would share samples.
    mixed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _choose(
    row: Array, sampler: Sampler, scratch: filters.Scratch, report: bool, with_drawn: bool
) -> Choice:
    scratch.z[:] = row
    log_total = filters.log_normalizer(scratch.z, scratch.work) if report else math.nan
    u = 0.0
    if sampler.sampling.temperature > 0:
        u = torch.rand(1, generator=sampler.generator, dtype=torch.float64).item()
    p = np.empty(len(row)) if with_drawn else _NO_NUMBERS
    id = _pick(sampler, scratch, row, u, p)
    drawn = None
    if with_drawn:
        kept = np.packbits(p > 0) if sampler.sampling.filters else None
        drawn = Drawn(math.log(p[id]), kept)
    if not report:
        return Choice(id, drawn=drawn)
    alternatives: list[tuple[int, float]] = []
    n = min(sampler.sampling.n_alternatives, len(row) - len(np.unique(sampler.forbidden)))
    if n > 0:
        scratch.z[:] = row
        scratch.z[sampler.forbidden] = -np.inf
        ids = filters.largest(scratch.z, scratch.work, n)
        order = ids[np.argsort(-scratch.z[ids], kind="stable")]
        alternatives = [(int(i), float(scratch.z[i] - log_total)) for i in order]
    return Choice(id, float(row[id]) - log_total, tuple(alternatives), drawn)


def _pick(sampler: Sampler, scratch: filters.Scratch, row: Array, u: float, p: Array) -> int:
    """The id for the logits in `scratch.z`, or its distribution in p. `row`: for error messages."""
    sampler.process(scratch.z)
    s = sampler.sampling
    numbers = float(s.temperature), int(s.top_k), float(s.top_p), float(s.min_p), u
    id = filters.choose(scratch.z, scratch.work, *numbers, p)
    if id >= 0:
        return int(id)
    if np.isnan(row).any() or row.max() == np.inf or not np.isfinite(row).any():
        raise broken_logits()
    if id == filters.NONE_LEFT:
        raise ConfigError(
            "no token is left to choose from: all ids that the model gives a probability are "
            "banned or have no token. Ban fewer."
        )
    raise ConfigError(
        f"repetition_penalty = {s.repetition_penalty}, frequency_penalty = {s.frequency_penalty}, "
        f"presence_penalty = {s.presence_penalty} and logit_bias make a logit infinite. Use "
        "numbers closer to 1 for the first and to 0 for the others."
    )


def broken_logits() -> CheckpointError:
    """The error for logits that are NaN or infinite."""
    return CheckpointError(
        "the model's logits are not numbers (NaN or infinite): its weights are damaged or its "
        "training diverged. Take an earlier checkpoint."
    )


def cpu_rows(logits: Float[Tensor, "n V"]) -> Array:
    """The logits in memory that NumPy can read, in float32 or float64."""
    logits = logits.detach().to("cpu")
    exact = logits.dtype in (torch.float32, torch.float64)
    return (logits if exact else logits.float()).numpy()


class _Local(threading.local):
    scratch: filters.Scratch | None = None


_local = _Local()


def _scratch(V: int) -> filters.Scratch:
    """This thread's memory for a row; kept from call to call."""
    if _local.scratch is None or len(_local.scratch.z) != V:
        _local.scratch = filters.Scratch(V)
    return _local.scratch


def _check(good: bool, name: str, found: float, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {found}: expected {expected}.")
