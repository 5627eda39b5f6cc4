"""Recurrent language models: stacked Elman networks, GRUs or LSTMs.

    embed -> n_layer recurrent layers, each with a state per text -> head -> logits

The equations of one layer for a token x and the state after the token before (sigma is the logistic
function, every W and b below is a different one, products of vectors are elementwise):

- `elman` (Elman 1990): h' = f(W x + W h + b), where f is tanh or sigma.
- `gru` (Cho et al. 2014, with the reset gate after the product as in cuDNN): r and z = sigma(W x +
  W h + b); n = tanh(W x + b + r (W h + b)); h' = (1 - z) n + z h.
- `lstm` (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000): i, f and o =
  sigma(W x + W h + b); g = tanh(W x + W h + b); c' = f c + i g; h' = o tanh(c').

Each layer passes h' to the next, and the last one to the head: softmax(W h' + b). Each token costs
the same time, however long the text before it; the state is all that the model remembers.
`Recurrent.step` implements these equations. Texts of several tokens go through PyTorch's kernels,
which compute the same faster. (There every b is the sum of two.)
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
"""h, or (h, c) of an LSTM, each (B, D)."""


@dataclass
class RnnState:
    """The states of all layers after the tokens read so far."""

    layers: list[LayerState]

    def tensors(self) -> list[Tensor]:
        """Returns all tensors of the state, layer by layer."""
        return [part for layer in self.layers for part in layer]

    def detach(self) -> "RnnState":
        """Returns the same state, cut off from the autograd graph (truncated BPTT)."""
        return RnnState([tuple(part.detach() for part in layer) for layer in self.layers])


class Recurrent(nn.Module):
    """One recurrent layer."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.cell, self.activation = (
            config.cell,
            torch.tanh if config.activation == "tanh" else torch.sigmoid,
        )
        self.kernel = KERNELS[config.cell](config.d_model, config.d_model, batch_first=True)
        # nn.RNN has no logistic activation.
        self.uses_kernel = config.cell != "elman" or config.activation == "tanh"

    def forward(
        self, x: Float[Tensor, "B T D"], state: LayerState
    ) -> tuple[Float[Tensor, "B T D"], LayerState]:
        """h after each position, and the state after the last one."""
        if self.uses_kernel and x.size(1) > 1:
            before = tuple(part[None].contiguous() for part in state)
            y, after = self.kernel(x, before if self.cell == "lstm" else before[0])
            return y, tuple(part[0] for part in after) if self.cell == "lstm" else (after[0],)
        y = []
        for t in range(x.size(1)):
            state = self.step(x[:, t], state)
            y.append(state[0])
        return torch.stack(y, dim=1), state

    def step(self, x: Float[Tensor, "B D"], state: LayerState) -> LayerState:
        """Returns the state after one more token."""
        h = state[0]
        # (B, gates * D): all gates side by side
        of_x = F.linear(x, self.kernel.weight_ih_l0, self.kernel.bias_ih_l0)
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
    """Recurrent layers between a token embedding table and a head."""

    config: RNNConfig

    # The model reads texts of any length. config.context_length is the length of training rows,
    # which is how far back gradients go.
    context_length = None

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "set vocab_size to the tokenizer's before building a model"
        self.config = config
        rows, D = config.padded_vocab_size, config.d_model
        self.token_embedding = nn.Embedding(rows, D)
        self.blocks = nn.ModuleList(Recurrent(config) for _ in range(config.n_layer))
        # The last column is the bias, because `hidden` ends with a one.
        self.head = None if config.tied_head else nn.Linear(D + 1, rows, bias=False)

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        state: RnnState | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Returns the last layer's h at each position, plus a constant one for the bias of an
        untied head.

        It runs in the precision of the parameters, even under autocast, because rounding errors
        would accumulate over the text.
        """
        assert documents is None, "a recurrent state holds one document per row"
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
        """Returns a state of zeros for `batch_size` texts."""
        weight, n_parts = self.token_embedding.weight, 2 if self.config.cell == "lstm" else 1
        shape = batch_size, self.config.d_model
        return RnnState(
            [tuple(weight.new_zeros(shape) for _ in range(n_parts)) for _ in self.blocks]
        )

    def parts(self) -> dict[str, list[int]]:
        """Returns the gates of each weight matrix inside the layers, D rows each."""
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

        Hidden-to-hidden matrices are orthogonal, gate by gate, so that the state keeps its size
        (Saxe et al. 2013). Input matrices are uniform with standard deviation 1/sqrt(D). The token
        embedding table is N(0, 1), or N(0, 1/D) if it is also the head. An untied head is zero, so
        the first predictions are uniform. Biases are zero, except those of forget gates, which are
        one (Jozefowicz et al. 2015): at first, the state is kept.
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
                weight[D : 2 * D] = 1.0  # gates are in the order i, f, g, o

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
