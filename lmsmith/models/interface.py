"""What every language model offers, whatever is inside: all that evaluation, generation and the
league know of it.

    model.log_probabilities(ids)          how likely a text is: ln p of each token, given those
                                          before it
    model.next_logits(ids, state)         what may come next; the state remembers what was read, and
                                          is carried on
    model.n_parameters()

`LanguageModel` is the interface. `NeuralModel` is what the models that are trained by gradients
share: a vector a position (`hidden`), of which a head makes logits. Training asks for the two
apart, so that the logits of a whole batch are never in memory at once (`lmsmith.loss`).

A model with a bounded context (a Transformer) reads at most `context_length` tokens, those in its
state among them; who has more text than that lays windows over it. A model without one (`None`:
n-grams, recurrent networks) reads on for ever.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.config import NeuralConfig

LOGITS_AT_ONCE = 1 << 24
"""64 MiB in float32: all of a window of 8,192 tokens of Llama 3's vocabulary would be 4 GiB. On
GPUs, 16 times that.
"""


@runtime_checkable
class LanguageModel(Protocol):
    """A distribution over texts of ids 0 ... vocab_size - 1. B: texts at once."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int | None:
        """Tokens it can read from an empty state; None: any number."""

    @property
    def device(self) -> torch.device:
        """Where ids and states lie."""

    def new_state(self, batch_size: int) -> Any:
        """What a model carries that has read nothing yet."""

    def next_logits(self, ids: Int[Tensor, "B T"], state: Any) -> Float[Tensor, "B V"]:
        """Logits of the token after the last of `ids`, once those are read; `state` then has
        read them too.
        """

    def log_probabilities(
        self, ids: Int[Tensor, "B N"], n_given: int = 1, state: Any = None
    ) -> Float[Tensor, "B N-{n_given}"]:
        """ln p of ids[:, n_given:], each given all before it; -inf for what the model holds
        impossible.

        The first `n_given` (at least one) are context. `state`, if there is one, stands before
        ids[:, 0], and has read all but the last token when this returns.
        """

    def n_parameters(self) -> int:
        """How many numbers it has learnt from its text."""


class NeuralModel(nn.Module, ABC):
    """A `LanguageModel` trained by gradients: a network that gives a vector a position, and a
    head on it.
    """

    config: NeuralConfig
    blocks: nn.ModuleList  # its layers, of which each can be compiled, recomputed or sharded

    @abstractmethod
    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        state: Any = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The vector at each position of which the head makes the logits of the next token.

        `documents` says which document each token of a row is of: none sees another.
        """

    @property
    @abstractmethod
    def head_weight(self) -> Float[Tensor, "P D"]:
        """The head; its rows may be more than the vocabulary, and are then no token."""

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
        """Logits of the token after each position."""
        return self.logits(self.hidden(ids, state))

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """float32 or better; only real vocabulary, padded columns cut off."""
        logits = F.linear(hidden, self.head_weight)[..., : self.config.vocab_size]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def next_logits(self, ids: Int[Tensor, "B T"], state: Any) -> Float[Tensor, "B V"]:
        return self.logits(self.hidden(ids, state)[:, -1:])[:, 0]

    def log_probabilities(
        self, ids: Int[Tensor, "B N"], n_given: int = 1, state: Any = None
    ) -> Float[Tensor, "B N-{n_given}"]:
        hidden, targets = self.hidden(ids[:, :-1], state)[:, n_given - 1 :], ids[:, n_given:]
        at_once = LOGITS_AT_ONCE if hidden.device.type == "cpu" else 16 * LOGITS_AT_ONCE
        n = max(1, at_once // (ids.size(0) * self.vocab_size))
        return torch.cat(
            [
                -F.cross_entropy(self.logits(x).flatten(0, 1), y.flatten(), reduction="none").view(
                    y.shape
                )
                for x, y in zip(hidden.split(n, dim=1), targets.split(n, dim=1), strict=True)
            ],
            dim=1,
        )

    def parts(self) -> dict[str, list[int]]:
        """Of the matrices that are several linear maps in one: how many rows each of these has."""
        return {}

    def n_parameters(self) -> int:
        """Learnt numbers; a tied head is counted once."""
        return sum(p.numel() for p in self.parameters())
