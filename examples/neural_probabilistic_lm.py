"""A new model kind: the feed-forward language model of Bengio et al. 2003.

Paper: "A neural probabilistic language model", JMLR 3. If x is the concatenated embeddings of the
last n tokens, the logits of the next token are b + W x + U tanh(d + H x).

    LMSMITH_EXTENSIONS=examples/neural_probabilistic_lm.py lmsmith train book.txt --preset nplm
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lmsmith.extend import NeuralConfig, NeuralModel, check, register_model, setting


@dataclass(frozen=True)
class NPLMConfig(NeuralConfig):
    """Sizes as in the paper's table 1."""

    kind: str = setting("nplm", "model architecture; --preset sets it")
    order: int = setting(5, "n: number of tokens from which the next is predicted")
    d_embedding: int = setting(60, "width of a token's embedding")
    d_hidden: int = setting(100, "number of hidden units")

    description: ClassVar[str] = "feed-forward neural language model"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("order", "d_embedding", "d_hidden"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")

    def build(self) -> "NPLM":
        return NPLM(self)

    def describe(self) -> str:
        return f"{self.order} tokens, {self.d_embedding} wide, {self.d_hidden} hidden units"


@dataclass
class Window:
    """The model's state: the last n - 1 tokens read, (B, n - 1)."""

    before: Tensor


class NPLM(NeuralModel):
    """The model. It must define `blocks`, a head, and how text becomes hidden vectors."""

    config: NPLMConfig
    context_length = None  # reads texts of any length; each prediction uses n tokens

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.order * config.d_embedding
        # One extra row, for positions before the first token of a text.
        self.token_embedding = nn.Embedding(config.vocab_size + 1, config.d_embedding)
        self.blocks = nn.ModuleList([nn.Linear(width, config.d_hidden)])  # H and d
        # W, U and b are one matrix: `hidden` concatenates x, tanh(d + H x) and a constant one.
        self.head = nn.Linear(width + config.d_hidden + 1, config.padded_vocab_size, bias=False)

    def new_state(self, batch_size: int) -> Window:
        """The state before any token has been read, for `batch_size` texts."""
        shape = batch_size, self.config.order - 1
        no_token = self.config.vocab_size
        return Window(torch.full(shape, no_token, dtype=torch.int64, device=self.device))

    def hidden(
        self, ids: Tensor, state: Window | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids -> (B, T, C), from which the head computes logits of the next token."""
        assert documents is None, "this model does not pack documents"
        before = (state or self.new_state(ids.size(0))).before
        text = torch.cat([before, ids.to(torch.int64)], dim=1)  # (B, n - 1 + T)
        if state is not None:
            state.before = text[:, text.size(1) - before.size(1) :]
        x = self.token_embedding(text.unfold(1, self.config.order, 1)).flatten(2)  # (B, T, n D)
        return torch.cat([x, torch.tanh(self.blocks[0](x)), x.new_ones(*ids.shape, 1)], dim=-1)

    @property
    def head_weight(self) -> Tensor:
        return self.head.weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws the initial weights. The head is zero: at first, all tokens are equally likely."""
        for name, weight in self.named_parameters():
            if name.startswith("token_embedding"):
                weight.normal_(0, 1, generator=generator)
            elif weight.dim() == 2 and not name.startswith("head"):
                weight.normal_(0, 1 / math.sqrt(weight.size(1)), generator=generator)
            else:
                weight.zero_()


register_model(NPLMConfig, preset={"optim.learning_rate": 3e-3, "schedule.warmup_steps": 20})
