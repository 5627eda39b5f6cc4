"""GPT-2's named tensors: all parameters in one block of memory, all activations in another.

A model has 16 parameter tensors, and a forward pass leaves 23 activation tensors. Names, order and
shapes are those of llm.c's `train_gpt2.c`. Each kind is one contiguous array, and the named tensors
are views into it. So writing a checkpoint is writing one array, clearing all gradients is filling
one, and any number can be found by name and index.

Shapes: B batch, T time, D width of the residual stream, H heads, L layers, V rows of the padded
token embedding table. Tensors of the layers are stacked: `params["qkvw"][3]` belongs to layer 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT-2. Token ids never index the padding, the last rows of the token table."""

    n_layer: int
    n_head: int
    d_model: int
    vocab_size: int
    padded_vocab_size: int
    context_length: int

    def __post_init__(self) -> None:
        assert (
            min(self.n_layer, self.n_head, self.d_model, self.vocab_size, self.context_length) >= 1
        ), self
        assert self.d_model % self.n_head == 0, "n_head must divide d_model"
        assert self.padded_vocab_size >= self.vocab_size, "padding cannot remove rows"

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def n_params(self) -> int:
        return n_numbers(parameter_shapes(self))


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The 16 parameter tensors, in their order in memory and in a checkpoint."""
    V, L, D = sizes.padded_vocab_size, sizes.n_layer, sizes.d_model
    return {
        "wte": (V, D),
        "wpe": (sizes.context_length, D),
        "ln1w": (L, D),
        "ln1b": (L, D),
        "qkvw": (L, 3 * D, D),
        "qkvb": (L, 3 * D),
        "attprojw": (L, D, D),
        "attprojb": (L, D),
        "ln2w": (L, D),
        "ln2b": (L, D),
        "fcw": (L, 4 * D, D),
        "fcb": (L, 4 * D),
        "fcprojw": (L, D, 4 * D),
        "fcprojb": (L, D),
        "lnfw": (D,),
        "lnfb": (D,),
    }


def activation_shapes(sizes: Sizes, B: int, T: int) -> dict[str, tuple[int, ...]]:
    """The 23 tensors that a forward pass over B texts of T tokens leaves, in the order of
    computation.
    """
    V, L, D, H = sizes.padded_vocab_size, sizes.n_layer, sizes.d_model, sizes.n_head
    return {
        "encoded": (B, T, D),
        "ln1": (L, B, T, D),
        "ln1_mean": (L, B, T),
        "ln1_rstd": (L, B, T),
        "qkv": (L, B, T, 3 * D),
        "atty": (L, B, T, D),
        "preatt": (L, B, H, T, T),
        "att": (L, B, H, T, T),
        "attproj": (L, B, T, D),
        "residual2": (L, B, T, D),
        "ln2": (L, B, T, D),
        "ln2_mean": (L, B, T),
        "ln2_rstd": (L, B, T),
        "fch": (L, B, T, 4 * D),
        "fch_gelu": (L, B, T, 4 * D),
        "fcproj": (L, B, T, D),
        "residual3": (L, B, T, D),
        "lnf": (B, T, D),
        "lnf_mean": (B, T),
        "lnf_rstd": (B, T),
        "logits": (B, T, V),
        "probs": (B, T, V),
        "losses": (B, T),
    }


def n_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of elements in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def views(block: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The named tensors in a block, one after the other: views, which share its memory."""
    assert block.shape == (n_numbers(shapes),), (
        f"a block of shape {block.shape} for {n_numbers(shapes):,} numbers"
    )
    tensors, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        tensors[name] = block[start:end].reshape(shape)
        start = end
    return tensors


_ONCE = {
    "wte": "token_embedding.weight",
    "wpe": "position_embedding.weight",
    "lnfw": "final_norm.weight",
    "lnfb": "final_norm.bias",
}
_IN_EACH_LAYER = {
    "ln1": "norm_attention",
    "qkv": "attention.qkv",
    "attproj": "attention.out",
    "ln2": "norm_feed_forward",
    "fc": "feed_forward.up",
    "fcproj": "feed_forward.down",
}


def by_layer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The 16 tensors layer by layer, named as in `lmsmith.models.gpt`. They share memory with
    `tensors`.
    """
    by_name = {theirs: tensors[name] for name, theirs in _ONCE.items()}
    for name, theirs in _IN_EACH_LAYER.items():
        for end, part in (("w", "weight"), ("b", "bias")):
            for layer, tensor in enumerate(tensors[name + end]):
                by_name[f"blocks.{layer}.{theirs}.{part}"] = tensor
    return by_name
