"""Two language models built from the layers in `modules.py`: an Elman network and a Transformer.

Both are called with a tape and ids (B, T), and return logits (B, T, V) of the next token at each
position. The Transformer is a GPT-2. Plain gradient descent trains the Elman network but hardly a
Transformer, so AdamW is here as well.
"""

from collections.abc import Mapping

import numpy as np

from lmsmith.reference.adamw import adamw
from lmsmith.reference.blocks import Sizes
from lmsmith.reference.modules import (
    GELU,
    Attention,
    ElmanCell,
    Embedding,
    LayerNorm,
    Linear,
    SoftmaxCrossEntropy,
    Stack,
    softmax,
)
from lmsmith.reference.tape import Module, Parameter, Tape, Variable


class LanguageModel(Module):
    """Base class: a module that predicts the next token."""

    vocab_size: int
    context_length: int | None = None  # None: unlimited

    def __call__(self, tape: Tape, ids: np.ndarray) -> Variable:
        raise NotImplementedError

    def loss(self, tape: Tape, ids: np.ndarray, targets: np.ndarray) -> Variable:
        """The mean loss in nats per token; ids and targets (B, T). Targets of -1 do not count."""
        return SoftmaxCrossEntropy(self.vocab_size)(self(tape, ids), targets)

    def sample(self, ids: list[int], n: int, rng: np.random.Generator) -> list[int]:
        """Appends `n` ids to `ids` (at least one), each drawn from the model's distribution."""
        ids = list(ids)
        for _ in range(n):
            seen = np.array([ids[-(self.context_length or len(ids)) :]])
            logits = self(Tape(), seen).value[0, -1, : self.vocab_size]
            ids.append(int(rng.choice(self.vocab_size, p=softmax(logits))))
        return ids


class Elman(LanguageModel):
    """h_t = sigmoid(W_h h_{t-1} + W_x x_t + b), logits_t = W_y h_t + b_y.

    x_t is the embedding of token t, and h_0 = 0.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_hidden: int, rng: np.random.Generator
    ) -> None:
        self.vocab_size, self.n_hidden = vocab_size, n_hidden
        self.embedding = Embedding(vocab_size, d_model, rng)
        self.cell = ElmanCell(d_model, n_hidden, rng)
        self.head = Linear(n_hidden, vocab_size, rng)

    def __call__(self, tape: Tape, ids: np.ndarray) -> Variable:
        h = tape.put(np.zeros((len(ids), self.n_hidden)))
        states = []
        for step in ids.T:
            h = self.cell(self.embedding(tape.put(step)), h)
            states.append(h)
        return self.head(Stack()(*states))


class Block(Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, d_model: int, n_head: int, rng: np.random.Generator) -> None:
        self.ln1, self.ln2 = LayerNorm(d_model), LayerNorm(d_model)
        self.qkv, self.attention = Linear(d_model, 3 * d_model, rng), Attention(n_head)
        self.attproj = Linear(d_model, d_model, rng)
        self.fc, self.gelu = Linear(d_model, 4 * d_model, rng), GELU()
        self.fcproj = Linear(4 * d_model, d_model, rng)

    def __call__(self, x: Variable) -> Variable:
        x = x + self.attproj(self.attention(self.qkv(self.ln1(x))))
        return x + self.fcproj(self.gelu(self.fc(self.ln2(x))))


class Transformer(LanguageModel):
    """GPT-2 (Radford et al. 2019) with its initial weights and weight tying."""

    def __init__(self, sizes: Sizes, rng: np.random.Generator) -> None:
        self.vocab_size, self.context_length = sizes.vocab_size, sizes.context_length
        self.wte = Embedding(sizes.padded_vocab_size, sizes.d_model, rng)
        self.wpe = Embedding(sizes.context_length, sizes.d_model, rng)
        self.blocks = [Block(sizes.d_model, sizes.n_head, rng) for _ in range(sizes.n_layer)]
        self.lnf = LayerNorm(sizes.d_model)
        self.head = Linear(
            sizes.d_model, sizes.padded_vocab_size, rng, bias=False, weight=self.wte.table
        )
        for name, layers in self.tensors().items():
            if name[:2] != "ln" and name[-1] != "b":
                # N(0, 0.02); projections into the residual stream are scaled down.
                std = 0.02 / np.sqrt(2 * sizes.n_layer) if name in ("attprojw", "fcprojw") else 0.02
                for parameter in layers:
                    parameter.value[...] = std * rng.standard_normal(parameter.value.shape)

    def __call__(self, tape: Tape, ids: np.ndarray) -> Variable:
        x = self.wte(tape.put(ids)) + self.wpe(tape.put(np.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.lnf(x))

    def tensors(self) -> dict[str, list[Parameter]]:
        """The 16 tensors of `blocks.py` by name: a list of one parameter, or of one per layer."""
        tensors = {"wte": [self.wte.table], "wpe": [self.wpe.table]}
        for name in ("ln1", "qkv", "attproj", "ln2", "fc", "fcproj"):
            parts = [getattr(block, name) for block in self.blocks]
            tensors[name + "w"], tensors[name + "b"] = (
                [part.weight for part in parts],
                [part.bias for part in parts],
            )
        return tensors | {"lnfw": [self.lnf.weight], "lnfb": [self.lnf.bias]}

    def load(self, params: Mapping[str, np.ndarray]) -> None:
        """Copies the values of `GPT2.params`."""
        for name, parameters in self.tensors().items():
            values = params[name].reshape(len(parameters), *parameters[0].value.shape)
            for parameter, value in zip(parameters, values, strict=True):
                parameter.value[...] = value

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients by name, layers stacked; tensors outside the layers get an axis of 1."""
        return {
            name: np.stack([p.grad for p in parameters])
            for name, parameters in self.tensors().items()
        }


class AdamW:
    """`adamw.py` for all parameters of a module; weight decay applies to those of two or more
    dimensions.
    """

    def __init__(self, module: Module, learning_rate: float, *, weight_decay: float = 0.0) -> None:
        self.parameters = module.parameters()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.m, self.v = ([np.zeros_like(p.value) for p in self.parameters] for _ in range(2))
        self.scratch = np.zeros(max(p.value.size for p in self.parameters))
        self.n_updates = 0

    def update(self) -> None:
        """One step. Resets the gradients to zero."""
        self.n_updates += 1
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            adamw(
                *(p.value, p.grad, m, v, self.scratch),
                step=self.n_updates,
                learning_rate=self.learning_rate,
                beta1=0.9,
                beta2=0.95,
                eps=1e-8,
                weight_decay=self.weight_decay if p.value.ndim > 1 else 0.0,
            )
            p.grad.fill(0)
