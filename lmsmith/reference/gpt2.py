"""GPT-2 in NumPy: forward pass, backward pass and AdamW, with every number in a named tensor.

    sizes = Sizes(
        n_layer=2, n_head=2, d_model=8, vocab_size=11, padded_vocab_size=11, context_length=6
    )
    model = GPT2(sizes)
    model.initialise(np.random.default_rng(0))
    loss = model.forward(inputs, targets)   # model.acts: the output of every layer
    model.zero_grad()
    model.backward()                        # model.grads: the gradient of every parameter
    model.update(learning_rate=1e-3)

The model is that of Radford et al. 2019, without dropout. `blocks.py` names its tensors, and
`layers.py` has the forward and backward function of each layer. `model.layers` lists all layers:
the forward pass calls them from first to last, the backward pass from last to first. Matrix
products use all threads of NumPy's BLAS, attention processes several texts on `threads` threads,
and the rest runs on one. Memory is allocated at the first step, and again if the batch shape
changes.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np

from lmsmith.reference.adamw import adamw
from lmsmith.reference.blocks import Sizes, activation_shapes, n_numbers, parameter_shapes, views
from lmsmith.reference.layers import (
    attention_backward,
    attention_forward,
    crossentropy_backward,
    crossentropy_forward,
    encoder_backward,
    encoder_forward,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    scratch_numbers,
)
from lmsmith.targets import IGNORED

__all__ = ["GPT2", "Layer", "Sizes"]

MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
"""The tensors with weight decay: those with two dimensions per layer."""

QUIET: dict[str, Any] = {"over": "ignore", "invalid": "ignore"}
"""NumPy does not warn of overflow: it leads to a loss that is not finite, which is noticed."""


@dataclass(frozen=True)
class Layer:
    """One operation of the forward pass and its gradient, bound to the tensors that they use."""

    name: str
    forward: Callable[[], None]
    backward: Callable[[], None]


class GPT2:
    """GPT-2 of any size in float32 or float64. All parameters are zero until set or drawn."""

    def __init__(self, sizes: Sizes, dtype: type = np.float32, *, threads: int = 1) -> None:
        self.sizes, self.dtype = sizes, np.dtype(dtype)
        shapes = parameter_shapes(sizes)
        self.params_block: np.ndarray = np.zeros(n_numbers(shapes), dtype)
        self.grads_block = np.zeros_like(self.params_block)
        self.params, self.grads = views(self.params_block, shapes), views(self.grads_block, shapes)
        # AdamW's two running means.
        self.m, self.v = (views(np.zeros(n_numbers(shapes), dtype), shapes) for _ in range(2))
        self.n_updates = 0
        self.acts: dict[str, np.ndarray] = {}  # the 23 activations of the last forward pass
        # Gradients of one layer's activations; each layer overwrites those of the one after it.
        self.dacts: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []
        self.n_targets = 0  # targets of the last forward pass that count
        self._dloss = 0.0
        self._threads = (
            ThreadPoolExecutor(threads, initializer=lambda: np.seterr(**QUIET))
            if threads > 1
            else None
        )

    def initialise(self, rng: np.random.Generator) -> None:
        """GPT-2's initial weights: gains one, biases zero, all others N(0, 0.02).

        Projections into the residual stream are divided by sqrt(2 L).
        """
        for name, param in self.params.items():
            if name.endswith("b"):
                param[...] = 0
            elif name.startswith("ln"):
                param[...] = 1
            else:
                std = (
                    0.02 / np.sqrt(2 * self.sizes.n_layer)
                    if name in ("attprojw", "fcprojw")
                    else 0.02
                )
                param[...] = rng.normal(0, std, param.shape)

    @np.errstate(**QUIET)
    def forward(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """The mean loss, in nats per token, of predicting `targets` from `inputs`: ids, both (B,
        T).

        Targets of -1 do not count, such as padding.
        """
        B, T = inputs.shape
        assert targets.shape == (B, T)
        assert self.sizes.context_length >= T, (
            f"{T} tokens in a context of {self.sizes.context_length}"
        )
        assert inputs.min() >= 0, "an id below 0"
        assert targets.min() >= IGNORED, f"a target below {IGNORED}"
        assert max(inputs.max(), targets.max()) < self.sizes.vocab_size, (
            "an id outside the vocabulary"
        )
        if not self.layers or self._inputs.shape != (B, T):
            self._allocate(B, T)
        self._inputs[...], self._targets[...] = inputs, targets
        for layer in self.layers:
            layer.forward()
        self.n_targets = int(np.count_nonzero(targets != IGNORED))
        return float(np.sum(self.acts["losses"], dtype=np.float64)) / max(1, self.n_targets)

    def zero_grad(self) -> None:
        """Sets all gradients to zero."""
        self.grads_block.fill(0)

    @np.errstate(**QUIET)
    def backward(self, dloss: float | None = None) -> None:
        """Adds the gradient of the last forward pass's loss to `grads`.

        `dloss` is the weight of each token's loss. The default is one divided by the number of
        targets that count, which makes the loss their mean. For a micro-batch, pass one divided by
        the number in the full batch.
        """
        assert self.layers, "call forward before backward"
        self._dloss = 1 / max(1, self.n_targets) if dloss is None else dloss
        self.dacts["residual3"].fill(0)
        for layer in reversed(self.layers):
            layer.backward()

    @np.errstate(**QUIET)
    def update(
        self,
        learning_rate: float | Mapping[str, float],
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decay_all: bool = False,
    ) -> None:
        """One step of AdamW. `learning_rate` is one number, or a number for each parameter by name.

        Weight decay applies to embedding tables and matrices; with `decay_all` to all tensors, as
        in llm.c.
        """
        assert self.layers, "call forward and backward before update"
        self.n_updates += 1
        for name in self.params:
            adamw(
                self.params[name],
                self.grads[name],
                self.m[name],
                self.v[name],
                self._scratch,
                step=self.n_updates,
                learning_rate=learning_rate[name]
                if isinstance(learning_rate, Mapping)
                else learning_rate,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay if decay_all or name in MATRICES else 0.0,
            )

    def _allocate(self, B: int, T: int) -> None:
        self.acts, self.dacts, self.layers = {}, {}, []  # free the old arrays first
        sizes = self.sizes
        shapes = activation_shapes(sizes, B, T)
        self.acts = views(np.zeros(n_numbers(shapes), self.dtype), shapes)
        grads = {name: shapes[name][1:] for name in ("residual3", "ln1", "qkv", "atty", "fch")}
        grads["logits"] = shapes["logits"]
        self.dacts = views(np.zeros(n_numbers(grads), self.dtype), grads)
        self._scratch = np.zeros(scratch_numbers(sizes.d_model), self.dtype)
        self._inputs, self._targets = np.zeros((2, B, T), np.int64)
        self.layers = list(self._layers())

    def _layers(self) -> Iterator[Layer]:
        """Every layer in the order of the forward pass. x is the residual stream."""
        a, d = self.acts, self.dacts
        yield Layer(
            "encoder",
            lambda: encoder_forward(
                a["encoded"], self._inputs, self.params["wte"], self.params["wpe"]
            ),
            lambda: encoder_backward(
                d["residual3"], self._inputs, self.grads["wte"], self.grads["wpe"]
            ),
        )
        x = a["encoded"]
        for at in range(self.sizes.n_layer):
            yield self._layernorm("ln1", x, at)
            yield self._linear("qkv", "qkv", a["ln1"][at], d["ln1"], d["qkv"], at)
            yield self._attention(at)
            yield self._linear("attproj", "attproj", a["atty"][at], d["atty"], d["residual3"], at)
            yield self._residual("residual2", x, a["attproj"][at], at)
            x = a["residual2"][at]
            yield self._layernorm("ln2", x, at)
            yield self._linear("fc", "fch", a["ln2"][at], d["ln1"], d["fch"], at)
            yield self._gelu(at)
            yield self._linear("fcproj", "fcproj", a["fch_gelu"][at], d["fch"], d["residual3"], at)
            yield self._residual("residual3", x, a["fcproj"][at], at)
            x = a["residual3"][at]
        yield self._layernorm("lnf", x)
        yield Layer(
            "head",  # weight tying: the token embedding table
            partial(linear_forward, rows(a["logits"]), rows(a["lnf"]), self.params["wte"], None),
            partial(
                linear_backward,
                *(rows(d["ln1"]), self.grads["wte"], None),
                *(rows(d["logits"]), rows(a["lnf"]), self.params["wte"], self._scratch),
            ),
        )
        targets, probs = self._targets.reshape(-1), rows(a["probs"])
        yield Layer(
            "crossentropy",
            partial(
                crossentropy_forward,
                a["losses"].reshape(-1),
                probs,
                rows(a["logits"]),
                targets,
                self.sizes.vocab_size,
            ),
            lambda: crossentropy_backward(rows(d["logits"]), self._dloss, probs, targets),
        )

    def _layernorm(self, name: str, x: np.ndarray, at: int | EllipsisType = ...) -> Layer:
        """LayerNorm of `x`; adds its gradient to the residual stream's. Without `at` it is the
        final norm.
        """
        out, mean, rstd = (self.acts[name + part][at] for part in ("", "_mean", "_rstd"))
        w, b, dw, db = (of[name + part][at] for of in (self.params, self.grads) for part in "wb")
        mean, rstd = mean.reshape(-1), rstd.reshape(-1)
        dx, dout = rows(self.dacts["residual3"]), rows(self.dacts["ln1"])
        return Layer(
            label(name, at),
            partial(layernorm_forward, rows(out), mean, rstd, rows(x), w, b),
            partial(layernorm_backward, dx, dw, db, dout, rows(x), w, mean, rstd, self._scratch),
        )

    def _linear(
        self, name: str, out: str, x: np.ndarray, dx: np.ndarray, dout: np.ndarray, at: int
    ) -> Layer:
        w, b, dw, db = (of[name + part][at] for of in (self.params, self.grads) for part in "wb")
        return Layer(
            label(out, at),
            partial(linear_forward, rows(self.acts[out][at]), rows(x), w, b),
            partial(linear_backward, rows(dx), dw, db, rows(dout), rows(x), w, self._scratch),
        )

    def _attention(self, at: int) -> Layer:
        """Attention, one text at a time."""
        qkv, preatt, att, atty = (self.acts[name][at] for name in ("qkv", "preatt", "att", "atty"))
        dqkv, datty = self.dacts["qkv"], self.dacts["atty"]
        return Layer(
            label("atty", at),
            lambda: self._each(attention_forward, atty, preatt, att, qkv),
            lambda: self._each(attention_backward, dqkv, datty, qkv, atty, att),
        )

    def _each(self, function: Callable[..., None], *tensors: np.ndarray) -> None:
        """Calls `function` once per text, with that text's slice of each tensor."""
        each = self._threads.map if self._threads else map
        for _ in each(function, *tensors):
            pass

    def _gelu(self, at: int) -> Layer:
        x = rows(self.acts["fch"][at])
        return Layer(
            label("fch_gelu", at),
            partial(gelu_forward, rows(self.acts["fch_gelu"][at]), x),
            partial(gelu_backward, rows(self.dacts["fch"]), x, self._scratch),
        )

    def _residual(self, name: str, x: np.ndarray, branch: np.ndarray, at: int) -> Layer:
        """x + branch. Both have the gradient of the sum, which is already in place: nothing to do
        backward.
        """
        return Layer(
            label(name, at), partial(np.add, x, branch, out=self.acts[name][at]), lambda: None
        )


def rows(x: np.ndarray) -> np.ndarray:
    """Flattens texts of tokens to rows: (B, T, D) -> (N, D), a view."""
    return x.reshape(-1, x.shape[-1])


def label(name: str, at: int | EllipsisType) -> str:
    return name if at is ... else f"{name} {at}"
