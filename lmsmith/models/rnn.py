"""Recurrent language models: Elman's network, GRU and LSTM, stacked.

    embed -> n_layer times (read on from the state of the token before) -> head -> logits

What a layer makes of a token x and its state after the token before (sigma is the logistic
function, each W and b is another one, vectors are multiplied number by number):

- `elman` (Elman 1990): h' = f(W x + W h + b), f being tanh or sigma.
- `gru` (Cho et al. 2014, the reset gate behind the product as in cuDNN): r and z = sigma(W x + W h
  + b); n = tanh(W x + b + r (W h + b)); h' = (1 - z) n + z h.
- `lstm` (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000): i, f and o =
  sigma(W x + W h + b); g = tanh(W x + W h + b); c' = f c + i g; h' = o tanh(c').

A layer gives h' to the next one, the last one to the head: softmax(W h' + b). Each token takes the
same time however much was read before, and all that is remembered of it is the state.
`Recurrent.step` is these equations; texts of several tokens go through PyTorch's kernels, which
compute the same faster. (There every b is the sum of two.)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.models.interface import NeuralModel
from lmsmith.models.rnn_config import RNNConfig

KERNELS = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
LayerState = tuple[Tensor, ...]
"""h, or h and c of an LSTM: (B, D) each."""


@dataclass
class RnnState:
    """What was read, as each layer remembers it."""

    layers: list[LayerState]

    def tensors(self) -> list[Tensor]:
        return [part for layer in self.layers for part in layer]

    def detach(self) -> "RnnState":
        """The same numbers, whose gradients go no further back."""
        return RnnState([tuple(part.detach() for part in layer) for layer in self.layers])


class Recurrent(nn.Module):
    """One layer."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.cell, self.activation = (
            config.cell,
            torch.tanh if config.activation == "tanh" else torch.sigmoid,
        )
        self.kernel = KERNELS[config.cell](config.d_model, config.d_model, batch_first=True)
        self.in_kernel = (
            config.cell != "elman" or config.activation == "tanh"
        )  # PyTorch's has no logistic function

    def forward(
        self, x: Float[Tensor, "B T D"], state: LayerState
    ) -> tuple[Float[Tensor, "B T D"], LayerState]:
        """The layer's h after each position, and its state after the last."""
        if self.in_kernel and x.size(1) > 1:
            before = tuple(part[None].contiguous() for part in state)
            y, after = self.kernel(x, before if self.cell == "lstm" else before[0])
            return y, tuple(part[0] for part in after) if self.cell == "lstm" else (after[0],)
        y = []
        for t in range(x.size(1)):
            state = self.step(x[:, t], state)
            y.append(state[0])
        return torch.stack(y, dim=1), state

    def step(self, x: Float[Tensor, "B D"], state: LayerState) -> LayerState:
        """The state after one more position."""
        h = state[0]
        of_x = F.linear(
            x, self.kernel.weight_ih_l0, self.kernel.bias_ih_l0
        )  # (B, D), gates side by side
        of_h = F.linear(h, self.kernel.weight_hh_l0, self.kernel.bias_hh_l0)
        if self.cell == "elman":
            return (self.activation(of_x + of_h),)
        if self.cell == "gru":
            (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, dim=-1), of_h.chunk(3, dim=-1)
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + r * n_h)
            return ((1 - z) * n + z * h,)
        i, f, g, o = (of_x + of_h).chunk(4, dim=-1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class RNN(NeuralModel):
    """A stack of recurrent layers between a token table and a head."""

    config: RNNConfig

    context_length = (
        None  # it reads on for ever; config.context_length is how far back gradients go
    )

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, (
            "the tokenizer's size must be filled in before a model is built"
        )
        self.config = config
        rows, D = config.padded_vocab_size, config.d_model
        self.token_embedding = nn.Embedding(rows, D)
        self.blocks = nn.ModuleList(Recurrent(config) for _ in range(config.n_layer))
        # The last column is the bias: `hidden` ends in a one.
        self.head = None if config.tied_head else nn.Linear(D + 1, rows, bias=False)

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        state: RnnState | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The last layer's h at each position, with a one behind it for the bias of a head that is
        not tied.

        In the precision of the parameters whatever autocast asks for: rounding would add up over
        the text.
        """
        assert documents is None, "a state reads one document"
        before = state or self.new_state(ids.size(0))
        after = []
        with torch.autocast(ids.device.type, enabled=False):
            x = self._drop(self.token_embedding(ids))
            for block, layer in zip(self.blocks, before.layers, strict=True):
                x, last = block(x, layer)
                x = self._drop(x)
                after.append(last)
        if state is not None:
            state.layers = after
        return x if self.head is None else torch.cat([x, x.new_ones(*ids.shape, 1)], dim=-1)

    @property
    def head_weight(self) -> Float[Tensor, "P C"]:
        return self.token_embedding.weight if self.head is None else self.head.weight

    def new_state(self, batch_size: int) -> RnnState:
        """Zeros."""
        weight, n_parts = self.token_embedding.weight, 2 if self.config.cell == "lstm" else 1
        shape = batch_size, self.config.d_model
        return RnnState(
            [tuple(weight.new_zeros(shape) for _ in range(n_parts)) for _ in self.blocks]
        )

    def parts(self) -> dict[str, list[int]]:
        D = self.config.d_model
        matrices = {
            name: p
            for name, p in self.named_parameters()
            if name.startswith("blocks") and p.dim() == 2
        }
        return {name: [D] * (len(p) // D) for name, p in matrices.items()}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws the initial weights from `generator`, in the order of `named_parameters`.

        Maps of the state are orthogonal, so that it neither grows nor fades (Saxe et al. 2013),
        those of x uniform with standard deviation 1/sqrt(D). The token table is N(0, 1), or N(0,
        1/D) where it is the head as well; an own head is zero, so that every prediction is uniform
        at first. Biases are zero, those of forget gates one (Jozefowicz et al. 2015): at first,
        what is read is kept.
        """
        D = self.config.d_model
        for name, weight in self.named_parameters():
            if name.startswith("token"):
                weight.normal_(
                    0.0, 1 / math.sqrt(D) if self.head is None else 1.0, generator=generator
                )
            elif name.startswith("head") or "bias" in name:
                weight.zero_()
            elif "weight_hh" in name:
                for gate in weight.split(D):
                    nn.init.orthogonal_(gate, generator=generator)
            else:
                weight.uniform_(-math.sqrt(3 / D), math.sqrt(3 / D), generator=generator)
            if self.config.cell == "lstm" and "bias_ih" in name:
                weight[D : 2 * D] = 1.0  # gates lie in the order i, f, g, o

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
