"""Base classes of the model configs, and the registry of model kinds.

A model kind is a frozen dataclass of settings, defined next to its model (`models/gpt_config.py`
and so on). It builds the model, computes its cost, and chooses sizes for a budget. The rest of
lmsmith calls these methods and never branches on the kind. The classes do not import torch, so
`--help` stays fast.

To add a kind, derive from `NeuralConfig`, implement `build`, and call `register_model(YourConfig)`
from `lmsmith.extend`. `examples/neural_probabilistic_lm.py` is an example.
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
        "", "model architecture; --preset sets it", choices=lambda: MODEL_KINDS.names()
    )
    vocab_size: int = setting(
        0, "vocabulary size: number of token ids; auto: the tokenizer's", zero="auto"
    )

    description: ClassVar[str] = ""
    """The kind of model in a few words, such as "Transformer"."""
    counted: ClassVar[bool] = False
    """Trained by counting in one pass (`learn`), without gradients (`build`)."""
    recurrent: ClassVar[bool] = False
    """Has a hidden state that truncated BPTT can carry from batch to batch. Trains in float32,
    unsharded.
    """
    packs_documents: ClassVar[bool] = False
    """Can mask attention between the documents of a row (`data.documents = "packed"`)."""
    compilable: ClassVar[bool] = False
    """`torch.compile` of its blocks works and is faster on GPUs."""

    def __post_init__(self) -> None:
        default = type(self).kind
        check(self.kind == default, "model.kind", self.kind, f"{default} for these settings")
        check(self.vocab_size >= 0, "model.vocab_size", self.vocab_size, "auto or more than 0")

    @property
    def context_length(self) -> int:
        """Tokens per training row."""
        raise AttributeError(f"a model of kind {self.kind} has no context_length")

    @property
    def has_dropout(self) -> bool:
        return False

    def build(self) -> NeuralModel:
        """Builds the model; its weights are not initialized yet."""
        raise NotImplementedError(f"{type(self).__name__} has no build()")

    def restore(self, tensors: Mapping[str, Tensor]) -> LanguageModel:
        """Builds the model with these weights, in evaluation mode. It may share their memory.

        Raises KeyError, ValueError or RuntimeError if the tensors do not fit the model.
        """
        raise NotImplementedError(f"{type(self).__name__} has no restore()")

    def describe(self) -> str:
        """Returns the model's size in a few words: "2 layers, 2 heads, width 128"."""
        return self.description or self.kind

    def in_brief(self) -> str:
        """Kind and size for a narrow column: "Transformer, 2 layers of 128"."""
        return self.description or self.kind


@dataclass(frozen=True)
class NeuralConfig(ModelConfig):
    """Settings of every model that is trained by gradient descent."""

    vocab_multiple: int = setting(
        1,
        "pad the rows of the embedding table to a multiple of this; padded ids are never predicted",
    )
    context_length: int = setting(256, "maximum sequence length, in tokens")
    logit_softcap: float = setting(
        0.0,
        "logit soft-capping: replace the logits by cap * tanh(logits / cap); none: no cap",
        zero="none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context_length", "vocab_multiple"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        cap = self.logit_softcap
        check(0 <= cap < math.inf, "model.logit_softcap", cap, "none or more than 0")

    @property
    def padded_vocab_size(self) -> int:
        """Number of rows of the embedding table."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def width_multiplier(self) -> float:
        """Width / base width under muP (`optim/mup.py`); 1 in the standard parametrization."""
        return 1.0

    def restore(self, tensors: Mapping[str, Tensor]) -> LanguageModel:
        from lmsmith.config.building import with_weights

        return with_weights(self.build, tensors).eval()

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name, as the built model names it; tied weights
        appear once.

        The default builds the model without memory for its weights, which imports torch. Override
        it with a formula for an answer without torch.
        """
        import torch

        with torch.device("meta"):
            named = self.build().named_parameters()
            return {name: tuple(parameter.shape) for name, parameter in named}

    def n_parameters(self) -> int:
        """Returns the number of parameters; tied weights count once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def matrix_parameters(self) -> int:
        """Returns the number of parameters in matrix multiplications, per token.

        The default counts every matrix without "embedding" in its name. Override it if that is
        wrong, as with tied embeddings.
        """
        shapes = self.parameter_shapes().items()
        return sum(math.prod(s) for name, s in shapes if len(s) >= 2 and "embedding" not in name)

    def train_flops_per_token(self) -> float:
        """FLOPs of the forward and backward pass: 6 per matrix parameter."""
        return 6.0 * self.matrix_parameters()

    def default_size(
        self, budget: float, n_tokens: int, given: Collection[str]
    ) -> tuple[dict[str, Any], int | None]:
        """Chooses size settings, by dotted name, and the batch size for a training budget.

        `budget`: FLOPs at the full speed of matrix multiplication. `n_tokens`: number of tokens
        of training text. `given`: settings that the user chose, which do not change. By default
        nothing changes.
        """
        return {}, None

    def fitting(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, by dotted name, that the given ones determine; set before `default_size` is
        called.
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
