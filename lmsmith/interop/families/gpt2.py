"""GPT2LMHeadModel. Source: transformers 4.57, `models/gpt2`."""

from __future__ import annotations

import dataclasses

from lmsmith.interop.mapping import Architecture
from lmsmith.interop.pieces import Piece
from lmsmith.models.gpt_config import GPTConfig

NOT_THERE = {
    "embedding_norm": (False,),
    "qk_norm": (False,),
    "logit_softcap": (0.0,),
    "ngram_tables": ((),),
}
"""Settings of ours that no architecture here has, as `Architecture.needs`."""
INDIFFERENT = frozenset(("size", "init", "vocab_multiple", "ngram_table_size", "ngram_dropout"))
"""Settings of ours that do not change what a trained model computes."""
GELUS = {
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of activations without a gate -> ours"""


def _pieces(config: GPTConfig) -> dict[str, list[Piece]]:
    D, F, V = config.d_model, config.width_ff, config.vocab_size
    table = {
        "token_embedding.weight": [Piece("transformer.wte.weight", V)],
        "position_embedding.weight": [Piece("transformer.wpe.weight", config.context_length)],
        "final_norm.weight": [Piece("transformer.ln_f.weight", D)],
        "final_norm.bias": [Piece("transformer.ln_f.bias", D)],
    }
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for norm, name in (("norm_attention", "ln_1"), ("norm_feed_forward", "ln_2")):
            for part in ("weight", "bias"):
                table[f"{ours}.{norm}.{part}"] = [Piece(f"{theirs}.{name}.{part}", D)]
        for linear, name, n_out in (
            ("attention.qkv", "attn.c_attn", 3 * D),
            ("attention.out", "attn.c_proj", D),
            ("feed_forward.up", "mlp.c_fc", F),
            ("feed_forward.down", "mlp.c_proj", D),
        ):
            table[f"{ours}.{linear}.weight"] = [
                Piece(f"{theirs}.{name}.weight", n_out, transposed=True)
            ]
            table[f"{ours}.{linear}.bias"] = [Piece(f"{theirs}.{name}.bias", n_out)]
    if not config.tied_head:
        table["head.weight"] = [Piece("lm_head.weight", V)]
    return table


def _complete(config: GPTConfig) -> GPTConfig:
    return dataclasses.replace(
        config, norm_gain=True, bias=True, attention_bias="auto", positions="learned"
    )


GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    preset="gpt2",
    prefix="transformer.",
    bare=True,
    sizes={
        "n_layer": ("n_layer", 12),
        "n_head": ("n_head", 12),
        "d_model": ("n_embd", 768),
        "d_ff": ("n_inner", None),
        "vocab_size": ("vocab_size", 50257),
        "context_length": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied_head": ("tie_word_embeddings", True),
        "dropout": ("resid_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
    },
    needs=NOT_THERE
    | {
        "norm": ("layernorm",),
        "norm_gain": (True, False),
        "bias": (True, False),
        "positions": ("learned", "none"),
        "attention_bias": ("auto", "none", "qkv", "all"),  # missing biases are written as zeros
    },
    mapped=INDIFFERENT | {"rope_base"},
    activation="activation_function",
    activations=GELUS,
    wants={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),  # the same result, computed in another order
        "add_cross_attention": (False,),
    },
    read_more=lambda found, path: {},
    # mlx-lm requires the old name of the context length, and names without prefix.
    more=lambda config: {"embd_pdrop": config.dropout, "n_ctx": config.context_length},
    buffers=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
    pieces=_pieces,
    complete=_complete,
)
