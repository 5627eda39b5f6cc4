"""What every model kind's config class offers, and the registry of kinds.

A model kind is a frozen dataclass of settings next to its model (`models/gpt_config.py` and so on).
It knows how to build the model, what it costs, and which sizes suit a budget. Everything else in
lmsmith asks the config and never which kind it is. The classes import no torch, so `--help` can
read them.

To add a kind, derive from `NeuralConfig`, write `build`, and call `register_model(YourConfig)` of
`lmsmith.extend`; `examples/neural_probabilistic_lm.py` is one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lmsmith.config.registry import Registry
from lmsmith.config.settings import check, setting

if TYPE_CHECKING:
    from torch import Tensor

    from lmsmith.models.interface import LanguageModel, NeuralModel


@dataclass(frozen=True)
class ModelConfig:
    """Settings that every kind of language model has."""

    kind: str = setting(
        "", "the kind of model; a --preset implies it", choices=lambda: MODEL_KINDS.names()
    )
    vocab_size: int = setting(0, "number of token ids; auto: the tokenizer's", zero="auto")

    description: ClassVar[str] = ""
    """One line on what this kind of model is."""
    counted: ClassVar[bool] = False
    """Learned by counting in one pass (`learn`), not by gradient steps (`build`)."""
    recurrent: ClassVar[bool] = False
    """Has a state that truncated BPTT can carry from batch to batch. Trains in float32,
    unsharded.
    """
    packs_documents: ClassVar[bool] = False
    """Can keep the documents of a row apart (`data.documents = "packed"`)."""
    compilable: ClassVar[bool] = False
    """`torch.compile` of its blocks is known to work and to pay on GPUs."""

    def __post_init__(self) -> None:
        default = type(self).kind
        check(self.kind == default, "model.kind", self.kind, f"{default} for these settings")
        check(self.vocab_size >= 0, "model.vocab_size", self.vocab_size, "auto or more than 0")

    @property
    def context_length(self) -> int:
        """Tokens of a training row."""
        raise AttributeError(f"a model of kind {self.kind} has no context_length")

    @property
    def has_dropout(self) -> bool:
        return False

    def build(self) -> NeuralModel:
        """The model, its weights not yet drawn."""
        raise NotImplementedError(f"{type(self).__name__} has no build()")

    def restore(self, tensors: Mapping[str, Tensor]) -> LanguageModel:
        """The model with these tensors in it, ready for use.

        Raises KeyError, ValueError or RuntimeError if they are not of such a model.
        """
        raise NotImplementedError(f"{type(self).__name__} has no restore()")

    def describe(self) -> str:
        """The model's size in a few words: "2 layers, 2 heads, width 128"."""
        return self.description or self.kind

    def in_brief(self) -> str:
        """Kind and size for a narrow column: "Transformer, 2 layers of 128"."""
        return self.description or self.kind


@dataclass(frozen=True)
class NeuralConfig(ModelConfig):
    """Settings of every model that is trained by gradients."""

    vocab_multiple: int = setting(
        1, "pad the embedding table to a multiple of this; padded ids are never predicted"
    )
    context_length: int = setting(256, "tokens the model sees at once")
    logit_softcap: float = setting(
        0.0, "logits are cap * tanh(logits / cap); none: no cap", zero="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context_length", "vocab_multiple"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        cap = self.logit_softcap
        check(0 <= cap < math.inf, "model.logit_softcap", cap, "none or more than 0")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def restore(self, tensors: Mapping[str, Tensor]) -> LanguageModel:
        model = self.build()
        model.load_state_dict(dict(tensors))
        return model.eval()

    def n_parameters(self) -> int:
        """Learned numbers; a tied head counts once. Allocates nothing."""
        import torch

        with torch.device("meta"):
            return self.build().n_parameters()

    def matrix_parameters(self) -> int:
        """Parameters that take part in matrix products for each token.

        By default every matrix whose name does not say "embedding"; override it where that is
        wrong, as with a tied head.
        """
        import torch

        with torch.device("meta"):
            named = self.build().named_parameters()
            return sum(p.numel() for n, p in named if p.dim() >= 2 and "embedding" not in n)

    def train_flops_per_token(self) -> float:
        """Floating-point operations of forward and backward pass: 6 per matrix parameter."""
        return 6.0 * self.matrix_parameters()

    def default_size(
        self, budget: float, n_tokens: int, given: Collection[str]
    ) -> tuple[dict[str, Any], int | None]:
        """Size settings by dotted name, and rows per batch, for a training budget.

        `budget`: floating-point operations at the full rate of matrix products. `n_tokens`: of
        the training text. `given`: settings that the user chose, which stay. The default leaves
        everything as it is.
        """
        return {}, None

    def fitting(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that must follow from given ones before the rest can be chosen, by dotted
        name.
        """
        return {}


MODEL_KINDS: Registry[type[ModelConfig]] = Registry(
    "model kind",
    "lmsmith.models",
    {
        "gpt": "lmsmith.models.gpt_config:GPTConfig",
        "rnn": "lmsmith.models.rnn_config:RNNConfig",
        "ngram": "lmsmith.models.ngram_config:NgramConfig",
    },
)
