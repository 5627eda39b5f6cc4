"""The interface of every language model. Evaluation, generation and comparison use nothing else:

    model.log_probabilities(ids)          ln p of each token of a text, given the tokens before it
    model.next_logits(ids, state)         logits of the next token; updates `state` in place
    model.n_parameters()

`LanguageModel` is the interface; n-gram models implement it directly. `NeuralModel` implements it
for models that are trained by gradient descent: `hidden` computes one vector per position, and a
linear head turns these vectors into logits. The two are separate so that training never holds the
logits of a whole batch in memory (see `lmsmith.loss`).

A model with a bounded context (a Transformer) reads at most `context_length` tokens, including
those already in its state; for a longer text, the caller slides windows over it. A model without a
bound (`context_length` None: n-grams, recurrent networks) reads any number of tokens.

Shapes: B batch, T time, D d_model, V vocabulary, P rows of the head (V plus padding), N tokens of a
text.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.config import NeuralConfig

LOGITS_AT_ONCE = 1 << 24
"""The most logits that `log_probabilities` computes at once: 64 MiB in float32. All logits of a
window of 8,192 tokens with Llama 3's vocabulary would take 4 GiB. GPUs use 16 times as many.
"""

LEAST_LOGITS, LEAST_ROWS = 1 << 21, 256
"""On CPUs, `log_probabilities` computes no more logits at once than one of these needs: 8 MiB, or
enough rows for full speed with a large vocabulary.
"""


@runtime_checkable
class LanguageModel(Protocol):
    """A probability distribution over sequences of token ids from 0 to vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int | None:
        """The number of tokens it can read from an empty state; None means any number."""

    @property
    def device(self) -> torch.device:
        """The device of ids and states."""

    def new_state(self, batch_size: int) -> Any:
        """Returns the state before any token has been read, for `batch_size` texts."""

    def next_logits(self, ids: Int[Tensor, "B T"], state: Any) -> Float[Tensor, "B V"]:
        """Reads `ids` and returns the logits of the token after the last one.

        `state` stands for the tokens before `ids`. It is updated in place to include `ids`.
        """

    def log_probabilities(
        self, ids: Int[Tensor, "B N"], n_given: int = 1, state: Any = None
    ) -> Float[Tensor, "B N-{n_given}"]:
        """ln p of each token of ids[:, n_given:], given all tokens before it.

        It is -inf for tokens that the model considers impossible. The first `n_given` tokens (at
        least one) are context and are not scored. If a `state` is given, it stands for the tokens
        before ids[:, 0] and is updated in place to include all of `ids` except the last token.
        """

    def n_parameters(self) -> int:
        """Returns the number of learned values."""


class NeuralModel(nn.Module, ABC):
    """Base class of `LanguageModel`s that are trained by gradient descent.

    A subclass provides `blocks`, `hidden`, `head_weight`, `new_state` and `initialise`.
    """

    config: NeuralConfig
    blocks: nn.ModuleList  # the layers; each can be compiled, checkpointed or sharded separately

    @abstractmethod
    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        state: Any = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the vector at each position from which the head computes the logits of the next
        token.

        If a `state` is given, it stands for the tokens before `ids` and is updated in place.
        `documents` numbers the document that each token belongs to; no token sees another document.
        """

    @property
    @abstractmethod
    def head_weight(self) -> Float[Tensor, "P D"]:
        """The weight matrix of the head. Rows beyond the vocabulary are padding."""

    @abstractmethod
    def new_state(self, batch_size: int) -> Any: ...

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draws the initial weights from `generator`, in the order of `named_parameters`."""

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context_length(self) -> int | None:
        return self.config.context_length

    @property
    def device(self) -> torch.device:
        return next(
            (tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu")
        )

    def forward(self, ids: Int[Tensor, "B T"], state: Any = None) -> Float[Tensor, "B T V"]:
        """Logits of the next token at each position."""
        return self.logits(self.hidden(ids, state))

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Logits over the vocabulary, without padding, with the soft cap; at least float32."""
        logits = F.linear(hidden, self.head_weight)[..., : self.config.vocab_size]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def next_logits(self, ids: Int[Tensor, "B T"], state: Any) -> Float[Tensor, "B V"]:
        return self.logits(self.hidden(ids, state)[:, -1:])[:, 0]

    def log_probabilities(
        self, ids: Int[Tensor, "B N"], n_given: int = 1, state: Any = None
    ) -> Float[Tensor, "B N-{n_given}"]:
        hidden = self.hidden(ids[:, :-1], state)[:, n_given - 1 :]
        targets = ids[:, n_given:]
        n_positions = max(1, self._logits_at_once() // (ids.size(0) * self.vocab_size))
        chunks = zip(
            hidden.split(n_positions, dim=1), targets.split(n_positions, dim=1), strict=True
        )
        return torch.cat([self._log_probabilities_of(x, y) for x, y in chunks], dim=1)

    def _logits_at_once(self) -> int:
        if self.device.type != "cpu":
            return 16 * LOGITS_AT_ONCE
        return min(LOGITS_AT_ONCE, max(LEAST_LOGITS, LEAST_ROWS * self.vocab_size))

    def _log_probabilities_of(
        self, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        logits = self.logits(hidden).flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        return -losses.view(targets.shape)

    def parts(self) -> dict[str, list[int]]:
        """Returns the number of rows of each map in matrices that concatenate several linear maps,
        by name.

        An example is the fused query, key and value projection. Muon orthogonalizes each map
        separately.
        """
        return {}

    def n_parameters(self) -> int:
        """Returns the number of learned values. A tied head counts once."""
        return sum(p.numel() for p in self.parameters())
