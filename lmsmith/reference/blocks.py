"""GPT-2's named tensor tables: every parameter in one block of memory, every activation in another.

A model is 16 tensors and a forward pass leaves 23 (llm.c, `train_gpt2.c`, whose names, order and
shapes these are). Each kind lies in one array, end to end, and the named tensors are views into it:
to write a checkpoint is to write one array, to clear all gradients is to fill one, and a number can
be followed by name and index.

In shapes: B batch, T time, D width of the residual stream, H heads, L layers, V rows of the padded
token table. What every layer has is stacked: `params["qkvw"][3]` is layer 3's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """What GPT-2 comes in sizes of. The token table has `padded_vocab_size` rows, the last of
    which no token has.
    """

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
        assert self.d_model % self.n_head == 0, "each head has the same whole width"
        assert self.padded_vocab_size >= self.vocab_size, "padding adds rows"

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def n_params(self) -> int:
        return n_numbers(parameter_shapes(self))


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The 16 tensors of the parameters, in the order in which they lie in memory and in a
    checkpoint.
    """
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
    """The 23 tensors that a forward pass over B texts of T tokens leaves, in the order in which
    they are made.
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
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def views(block: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The named tensors in a block, end to end from its beginning: what is written to one is
    written to the block.
    """
    assert block.shape == (n_numbers(shapes),), (
        f"a block of shape {block.shape} for {n_numbers(shapes):,} numbers"
    )
    found, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        found[name] = block[start:end].reshape(shape)
        start = end
    return found


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


def unstacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The 16 tensors layer by layer, under the names that `lmsmith.models.gpt` has for them; the
    memory is the same.
    """
    found = {theirs: tensors[name] for name, theirs in _ONCE.items()}
    for name, theirs in _IN_EACH_LAYER.items():
        for end, part in (("w", "weight"), ("b", "bias")):
            for at, tensor in enumerate(tensors[name + end]):
                found[f"blocks.{at}.{theirs}.{part}"] = tensor
    return found
