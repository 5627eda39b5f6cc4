"""The settings of recurrent networks, their parameter counts, and default sizes for a budget."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmsmith.config.model import NeuralConfig
from lmsmith.config.settings import check, setting
from lmsmith.models.sizes import RNN_SIZES, size_for

if TYPE_CHECKING:
    from lmsmith.models.rnn import RNN


@dataclass(frozen=True)
class RNNConfig(NeuralConfig):
    """An Elman network, GRU or LSTM. The equations are in `models/rnn.py`."""

    kind: str = setting("rnn", "model architecture; --preset sets it")
    n_layer: int = setting(6, "number of stacked layers")
    d_model: int = setting(384, "width of embeddings and states")
    cell: Literal["elman", "gru", "lstm"] = setting("lstm", "recurrent cell: Elman, GRU or LSTM")
    activation: Literal["tanh", "sigmoid"] = setting("tanh", "activation of an Elman network")
    tied_head: bool = setting(False, "weight tying: the output head is the token embedding table")
    dropout: float = setting(0.0, "probability of dropping an activation between layers")

    description: ClassVar[str] = "recurrent network"
    recurrent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_layer", "d_model"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "at least 0 and below 1")

    @property
    def has_dropout(self) -> bool:
        return bool(self.dropout)

    def build(self) -> RNN:
        from lmsmith.models.rnn import RNN

        return RNN(self)

    @property
    def n_gates(self) -> int:
        """Maps of the input, and of the state, in each layer."""
        return {"elman": 1, "gru": 3, "lstm": 4}[self.cell]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        rows, D, n_gates = self.padded_vocab_size, self.d_model, self.n_gates
        found: dict[str, tuple[int, ...]] = {"token_embedding.weight": (rows, D)}
        for layer in range(self.n_layer):
            for kind, shape in (("weight", (n_gates * D, D)), ("bias", (n_gates * D,))):
                for source in ("ih", "hh"):
                    found[f"blocks.{layer}.kernel.{kind}_{source}_l0"] = shape
        if not self.tied_head:
            found["head.weight"] = (rows, D + 1)
        return found

    def matrix_parameters(self) -> int:
        """Parameters in matrix products: gates (of the input and of the state) and head.

        An untied head has a bias column.
        """
        head = self.padded_vocab_size * (self.d_model + (not self.tied_head))
        return self.n_layer * self.n_gates * 2 * self.d_model**2 + head

    def default_size(
        self, budget: float, n_tokens: int, given: Collection[str]
    ) -> tuple[dict[str, Any], int | None]:
        size, context_length = size_for(RNN_SIZES, budget, n_tokens)
        return {
            "model.n_layer": size.n_layer,
            "model.d_model": size.d_model,
            "model.context_length": context_length,
        }, size.batch_size

    def in_brief(self) -> str:
        return f"{self.cell}, {self.n_layer} layer{'s' * (self.n_layer > 1)} of {self.d_model}"

    def describe(self) -> str:
        layers = f"{self.n_layer} layer{'s' * (self.n_layer > 1)}"
        return f"{layers}, {self.cell} cells, width {self.d_model}, context {self.context_length}"
