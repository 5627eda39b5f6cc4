"""N-gram language models: predict a token from how often it followed the last n - 1 tokens.

There are three estimates. c(h w) is how often token w followed context h in the text, c(h .) how
often any token followed h, and V the vocabulary size.

- `mle`, maximum likelihood: c(h w) / c(h .). An unseen event has probability zero, so a text that
  contains one has infinite perplexity. If nothing ever followed h, the quotient is 0 / 0; then h is
  shortened from the front until something did follow it. (This happens only after an event of
  probability zero, or after the last tokens of the training text.)
- `add-k`: (c(h w) + k) / (c(h .) + k V). After an unseen context all tokens are equally likely.
- `kneser-ney`, interpolated and modified (Chen and Goodman 1999, "An empirical study of smoothing
  techniques for language modeling"): p(w | h) = (c(h w) - D(c(h w))) / c(h .) + gamma(h) p(w | h
  without its first token). gamma(h) is the discounted mass, so the probabilities sum to one. Below
  the highest order, c(h w) counts the distinct tokens that precede h w. The lowest order is
  interpolated with the uniform distribution. For each order, the discounts D1, D2 and D3+ (for
  counts of 1, 2, and 3 or more) are estimated from how many n-grams have counts 1 to 4. If the
  estimate is impossible (a small text or vocabulary has no n-grams of some count), they are 0.5, 1
  and 1.5, as in KenLM, and `discounts` records that.

At the beginning of a text the context has fewer than n - 1 tokens. The text is one stream: an
end-of-text token between documents is a token like any other. Probabilities are float64.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.ngram_trie import (
    Ints,
    Trie,
    Weights,
    continuation_counts,
    count_ngrams,
    distribution,
    log_probabilities,
    weigh,
)

log = logging.getLogger(__name__)

FALLBACK = (0.5, 1.0, 1.5)
_TENSORS = ("token", "count", "suffix", "first", "levels")


@dataclass
class NgramState:
    """The last n - 1 tokens of each text, or all of them if there are fewer."""

    before: list[Ints] = field(repr=False)


@dataclass(frozen=True)
class Discounts:
    """Kneser-Ney discounts of one order, subtracted from counts of 1, of 2, and of 3 or more."""

    order: int
    amounts: tuple[float, float, float]
    estimated: bool  # False: FALLBACK, because the counts of counts did not suffice


class Ngram:
    """A `LanguageModel` (see `interface.py`) that counts n-grams."""

    context_length = None  # reads texts of any length; each prediction uses n - 1 tokens
    device = torch.device("cpu")

    def __init__(
        self, config: NgramConfig, trie: Trie, discounts: tuple[Discounts, ...] | None = None
    ) -> None:
        """`discounts`: Kneser-Ney discounts per order from 1, instead of estimated ones."""
        self.config, self.trie = config, trie
        self.discounts: tuple[Discounts, ...] = ()
        self.weights = self._weigh(discounts)

    @classmethod
    def learn(cls, config: NgramConfig, ids: npt.NDArray[np.unsignedinteger[Any]]) -> Ngram:
        """Counts the n-grams of `ids` (n,), an array or memory map. Raises DataError if the text is
        too long.
        """
        return cls(config, count_ngrams(ids, config.vocab_size, config.order))

    @classmethod
    def from_tensors(cls, config: NgramConfig, tensors: Mapping[str, Tensor]) -> Ngram:
        """Returns the inverse of `tensors`. Raises KeyError or ValueError if they are not an n-gram
        model's.
        """
        trie = Trie(**{name: tensors[name].numpy() for name in _TENSORS})
        if (
            trie.n != config.order
            or len(trie.token) != trie.levels[-1]
            or len(trie.first) != trie.levels[-2] + 1
        ):
            raise ValueError(
                f"the counts are of {trie.n}-grams with {len(trie.token)} nodes, expected "
                f"{config.order}-grams and arrays of matching lengths"
            )
        return cls(config, trie)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the learned counts as named tensors."""
        return {name: torch.from_numpy(getattr(self.trie, name)) for name in _TENSORS}

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def n_parameters(self) -> int:
        """Returns the number of distinct n-grams counted, over all orders from 1."""
        return len(self.trie.token) - 1

    def new_state(self, batch_size: int) -> NgramState:
        return NgramState([np.empty(0, np.int32) for _ in range(batch_size)])

    def next_logits(self, ids: Int[Tensor, "B T"], state: NgramState) -> Float[Tensor, "B V"]:
        """ln p of each token, equal to what `log_probabilities` returns."""
        p = []
        for row, tokens in enumerate(self._read(ids, state)):
            state.before[row] = self._last(tokens)
            p.append(distribution(self.trie, self.weights, state.before[row], self.vocab_size))
        return torch.from_numpy(np.stack(p)).log_()

    def log_probabilities(
        self, ids: Int[Tensor, "B N"], n_given: int = 1, state: NgramState | None = None
    ) -> Float[Tensor, "B N-{n_given}"]:
        """ln p of ids[:, n_given:], float64; -inf for events that maximum likelihood has not
        seen.
        """
        assert n_given >= 1
        state = state or self.new_state(ids.size(0))
        rows = []
        for row, tokens in enumerate(self._read(ids, state)):
            n_before = len(state.before[row])
            rows.append(
                log_probabilities(
                    self.trie, self.weights, tokens, n_before + n_given, self.vocab_size
                )
            )
            state.before[row] = self._last(tokens[:-1])
        return torch.from_numpy(np.stack(rows))

    def _read(self, ids: Tensor, state: NgramState) -> list[Ints]:
        """Returns each row of ids, preceded by the tokens in its state."""
        rows = ids.numpy().astype(np.int32)
        assert not rows.size or 0 <= rows.min() <= rows.max() < self.vocab_size
        return [
            np.concatenate([before, row]) for before, row in zip(state.before, rows, strict=True)
        ]

    def _last(self, tokens: Ints) -> Ints:
        return tokens[max(0, len(tokens) - self.trie.n + 1) :]

    def _weigh(self, given: tuple[Discounts, ...] | None) -> Weights:
        config, n = self.config, self.trie.n
        if config.smoothing != "kneser-ney":
            added = config.add_k * config.vocab_size if config.smoothing == "add-k" else 0.0
            return weigh(self.trie, self.trie.count, np.zeros((n, 4)), added, interpolated=False)
        counts = continuation_counts(self.trie)
        self.discounts = given or tuple(
            estimate_discounts(k, counts[self.trie.levels[k] : self.trie.levels[k + 1]])
            for k in range(1, n + 1)
        )
        amounts = np.array([(0.0, *discounts.amounts) for discounts in self.discounts])
        return weigh(self.trie, counts, amounts, 0.0, interpolated=True)


def estimate_discounts(order: int, counts: Ints) -> Discounts:
    """Estimates one order's discounts from its counts (Chen and Goodman 1999, section 3)."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        amounts = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        if all(0 <= amount <= c for c, amount in enumerate(amounts, start=1)):
            return Discounts(order, amounts, estimated=True)
    log.info(
        "order %d: cannot estimate discounts from the counts of counts %d, %d, %d, %d; using %s",
        *(order, n1, n2, n3, n4, FALLBACK),
    )
    return Discounts(order, FALLBACK, estimated=False)
