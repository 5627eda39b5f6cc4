"""Architectures of transformers that our Transformer computes: GPT2LMHeadModel and
LlamaForCausalLM.

Each is a table of settings and one of tensors, read in both directions. Between their tensors and
ours lie:

- names;
- GPT-2's projections, which they store as (in, out) and we as (out, in): transposed;
- queries, keys and values, and the two halves of SwiGLU, which are one matrix of ours, rows one
  below the other;
- the rotary pairs: they turn number i of a head with number i + K/2, we turn neighbours 2i and 2i +
  1, as the paper does (Su et al. 2021). The rows of queries and keys are put in the other order;
  their products are the same numbers.

Tensors keep their bits and precision. Padding of the vocabulary is cut off. Rotary settings are
read by `rope.py`, which names what is inside an object with a dot: `rope_scaling.factor`. Source:
transformers 4.57, `models/gpt2` and `models/llama`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmsmith.config import ModelConfig, settings
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop import rope
from lmsmith.models.attention import LLAMA3_HIGH, LLAMA3_LOW
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NAMED = 4  # tensors that an error names

# The largest numbers that are read, by our setting. The largest models have 126 layers, a width of
# 16,384, 262,144 tokens and a context of ten million.
_MOST = {
    "n_layer": 2048,
    "n_head": 1 << 16,
    "n_kv_head": 1 << 16,
    "d_model": 1 << 20,
    "d_head": 1 << 16,
    "d_ff": 1 << 24,
    "vocab_size": 1 << 24,
    "context_length": 1 << 25,
}
_MOST_OTHERS = 1e15


# ---- choosing one --------------------------------------------------------------------------------


def architecture_of(found: Mapping[str, Any], path: Path) -> Architecture:
    """The one that a config.json names. Raises ConfigError, CheckpointError for one that is not
    among them.
    """
    if "format_version" in found:
        raise CheckpointError(
            f"{path} is of a model that lmsmith can use as it is: there is nothing to import."
        )
    named, model_type = found.get("architectures"), found.get("model_type")
    if isinstance(named, list) and named:
        architecture = next((known for known in ARCHITECTURES if [known.name] == named), None)
    else:
        architecture = next(
            (known for known in ARCHITECTURES if known.model_type == model_type), None
        )
    if architecture is None:
        said = ", ".join(
            str(name) for name in [*(named if isinstance(named, list) else ()), model_type] if name
        )[:200]
        raise ConfigError(
            f"{path} is of {said or 'no architecture that it names'}, which lmsmith has no model "
            f"for: "
            f"wanted {' or '.join(known.name for known in ARCHITECTURES)}."
        )
    if found.get("quantization_config"):
        raise ConfigError(
            f"{path} has quantised weights (quantization_config): take the checkpoint they came "
            f"from."
        )
    if found.get("transformers_weights"):
        raise ConfigError(
            f"{path} names a weights file of its own (transformers_weights = "
            f"{shown(found['transformers_weights'])}): "
            "lmsmith reads model.safetensors, whole or in parts. Rename the file and remove the "
            "setting."
        )
    return architecture


def architecture_for(config: ModelConfig) -> Architecture:
    """The one of theirs that computes what this config says. Raises ConfigError where there is
    none, with reasons.
    """
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"transformers has no counterpart to a model of kind {config.kind}: export a "
            f"Transformer."
        )
    reasons = {architecture: architecture.differences(config) for architecture in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda architecture: len(reasons[architecture]))
    if reasons[nearest]:
        raise ConfigError(
            "This model has no counterpart in transformers. The nearest there is "
            f"{nearest.name}, and it has no {'; no '.join(reasons[nearest])}. What can be "
            f"exported are models as "
            "`--preset gpt2` and `--preset llama` make them."
        )
    return nearest


def completed(
    config: GPTConfig, tensors: Mapping[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The same model with gains of one, biases and learned positions of zero where it has none."""
    full = dataclasses.replace(config, norm_gain=True)
    if config.norm == "layernorm":  # GPT-2, which has all of them
        full = dataclasses.replace(full, bias=True, attention_bias="auto", positions="learned")
    elif config.attention_biases == "qkv":  # Llama, which has all in attention or none
        full = dataclasses.replace(full, attention_bias="all")
    example = tensors["token_embedding.weight"]
    added = {name: shape for name, shape in shapes_of(full).items() if name not in tensors}
    gains = {name for name in added if "norm" in name and name.endswith("weight")}
    return full, {
        **tensors,
        **{
            name: example.new_full(shape, 1.0 if name in gains else 0.0)
            for name, shape in added.items()
        },
    }


def derived(config: GPTConfig) -> GPTConfig:
    """The same model, with the settings at "derived" that have the value which would be derived."""
    changes: dict[str, Any] = {}
    if config.n_kv == config.n_head:
        changes["n_kv_head"] = 0
    if config.d_head * config.n_head == config.d_model:
        changes["d_head"] = 0
    if config.attention_biases == ("all" if config.bias else "none"):
        changes["attention_bias"] = "auto"
    return dataclasses.replace(config, **changes)


def shapes_of(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of our model, without making it."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}


# ---- one -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Architecture:
    """What its models are called here. Setting names to the left are ours, without `model.`"""

    name: str
    model_type: str
    preset: str  # ours
    prefix: str  # of its tensors' names, which some checkpoints leave out
    sizes: Mapping[str, tuple[str, Any]]  # ours -> theirs, and their default
    needs: Mapping[
        str, tuple[Any, ...]
    ]  # ours -> values that it can compute, the one that a model of theirs has first
    indifferent: frozenset[str]  # ours, that do not change what a trained model computes
    activation: str  # theirs
    activations: Mapping[str, str]  # theirs -> our feed_forward
    wants: Mapping[str, tuple[Any, ...]]  # theirs -> values with which it computes what ours does
    read_more: Callable[
        [Mapping[str, Any], Path], dict[str, Any]
    ]  # theirs -> ours, where it is not one to one
    more: Callable[
        [GPTConfig], dict[str, Any]
    ]  # the inverse, and theirs that say again what others say
    buffers: str  # pattern of tensors that are no weights
    pieces: Callable[[GPTConfig], dict[str, list[Piece]]]

    def read_settings(self, found: Mapping[str, Any], path: Path) -> GPTConfig:
        """Raises ConfigError for settings with which it computes something else than ours, and
        for bad ones.
        """
        found = rope.flat(found, path)
        for name, allowed in self.wants.items():
            if found.get(name, allowed[0]) not in allowed:
                raise ConfigError(
                    f"{path} has {name} = {shown(found[name])}, which lmsmith's model cannot "
                    f"compute: wanted "
                    f"{' or '.join(json.dumps(value) for value in allowed)}."
                )
        activation = found.get(self.activation, next(iter(self.activations)))
        if not isinstance(activation, str) or activation not in self.activations:
            raise ConfigError(
                f"{path} has {self.activation} = {shown(activation)}, which lmsmith does not have "
                f"here: wanted "
                f"{', '.join(self.activations)}."
            )
        self._check_sizes(found, path)
        ours = {name: values[0] for name, values in self.needs.items()}
        ours |= {name: found.get(theirs, default) for name, (theirs, default) in self.sizes.items()}
        ours |= self.read_more(found, path)
        ours["feed_forward"] = self.activations[activation]
        settings = {f"model.{name}": value for name, value in ours.items() if value is not None}
        config = GPTConfig.of(preset(self.preset).changed(settings, where=str(path)).model)
        if not config.vocab_size:
            raise ConfigError(f"{path} has vocab_size = 0: wanted the number of tokens.")
        return config

    def _check_sizes(self, found: Mapping[str, Any], path: Path) -> None:
        """Raises ConfigError for numbers that no model has: to build one, or only its table of
        tensors, takes hours.
        """
        for ours, (theirs, _) in self.sizes.items():
            value, most = found.get(theirs), _MOST.get(ours, _MOST_OTHERS)
            if isinstance(value, int | float) and abs(value) > most:
                raise ConfigError(
                    f"{path} has {theirs} = {shown(value)}: expected at most {most:,}. Is the "
                    f"file damaged?"
                )

    def write_settings(self, config: GPTConfig) -> dict[str, Any]:
        """Their config.json, for a config that has no `differences`."""
        resolved = dataclasses.replace(
            config, d_ff=config.width_ff, n_kv_head=config.n_kv, d_head=config.width_head
        )
        activation = next(
            name for name, ours in self.activations.items() if ours == config.feed_forward
        )
        settings = {"architectures": [self.name], "model_type": self.model_type}
        settings |= {theirs: getattr(resolved, name) for name, (theirs, _) in self.sizes.items()}
        settings |= {self.activation: activation} | {
            name: allowed[0] for name, allowed in self.wants.items()
        }
        return rope.nested(settings | self.more(config))

    def differences(self, config: GPTConfig) -> list[str]:
        """Settings that it has no counterpart to, and what it has instead. A setting not known
        here is to be off.
        """
        config = derived(config)
        found = []
        for field in dataclasses.fields(GPTConfig):
            value, allowed = (
                getattr(config, field.name),
                self.needs.get(field.name, (field.default,)),
            )
            if field.name == "feed_forward":
                allowed = tuple(dict.fromkeys(self.activations.values()))
            if field.name not in self.indifferent | set(self.sizes) and value not in allowed:
                found.append(difference(field.name, value, allowed))
        return found

    def to_ours(
        self, config: GPTConfig, theirs: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Tensor]:
        """Raises CheckpointError with the names of tensors that are missing, unknown or of
        another shape.
        """
        shapes, table = shapes_of(config), self.pieces(config)
        wanted = {
            piece.name: _shape(piece, shapes[ours])
            for ours, pieces in table.items()
            for piece in pieces
        }
        named = {
            self.prefix + name
            if name not in wanted and self.prefix + name in wanted
            else name: tensor
            for name, tensor in theirs.items()
            if not re.fullmatch(self.buffers, name)
        }
        head, tokens = (
            named.get("lm_head.weight"),
            named.get(table["token_embedding.weight"][0].name),
        )
        if config.tied_head and head is not None and tokens is not None:  # some write it twice
            if head.dtype != tokens.dtype or not torch.equal(head, tokens):
                raise CheckpointError(
                    f"{folder} has a lm_head.weight of its own, and by its config.json the head "
                    f"is the token table: "
                    "set tie_word_embeddings to false there, or remove the tensor."
                )
            del named["lm_head.weight"]
        _check_tensors(named, wanted, folder)
        result = {}
        for ours, pieces in table.items():
            parts = [_to_ours(named[piece.name], piece, config.width_head) for piece in pieces]
            result[ours] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        return result

    def to_theirs(self, config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = {}
        for ours, pieces in self.pieces(config).items():
            start = 0
            for piece in pieces:  # what is left over is the vocabulary's padding
                rows = tensors[ours][start : start + piece.n_rows]
                result[piece.name] = _to_theirs(rows, piece, config.width_head)
                start += piece.n_rows
        return result


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs: so many rows of one of ours, in their form."""

    name: str
    n_rows: int
    form: Literal["same", "transposed", "rotary"] = "same"


def _to_ours(x: Tensor, piece: Piece, d_head: int) -> Tensor:
    if piece.form == "transposed":
        return x.T
    if piece.form == "rotary":  # rows 0, K/2, 1, K/2 + 1, ... of each head
        return x.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)
    return x


def _to_theirs(x: Tensor, piece: Piece, d_head: int) -> Tensor:
    if piece.form == "transposed":
        return x.T
    if piece.form == "rotary":
        return x.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)
    return x


def _shape(piece: Piece, ours: tuple[int, ...]) -> tuple[int, ...]:
    shape = (piece.n_rows, *ours[1:])
    return shape[::-1] if piece.form == "transposed" else shape


def _check_tensors(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    problems = {
        "missing": [name for name in wanted if name not in shapes],
        "not known to this architecture": [name for name in shapes if name not in wanted],
        "of another shape": [
            f"{name} {shapes[name]}, wanted {shape}"
            for name, shape in wanted.items()
            if shapes.get(name, shape) != shape
        ],
        "of a precision other than float64, float32, bfloat16 and float16 (quantised?)": [
            f"{name} {tensor.dtype}"
            for name, tensor in found.items()
            if tensor.dtype not in _PRECISIONS
        ],
    }
    told = [f"{len(names)} {what}: {listed(names)}." for what, names in problems.items() if names]
    if told:
        raise CheckpointError(
            f"The tensors in {folder} do not fit its config.json. {' '.join(told)}"
        )


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )


def difference(name: str, value: Any, allowed: Iterable[Any]) -> str:
    """A setting of the model that is not one of `allowed`, all written as on the command line."""
    leaf = dict(settings(GPTConfig))[f"model.{name}"]

    def typed(value: Any) -> str:
        shown = leaf.shown(value)
        if isinstance(shown, bool):
            return "yes" if shown else "no"
        if isinstance(shown, tuple):
            return ",".join(map(str, shown)) or "none"
        return f"{shown:g}" if isinstance(shown, float) else str(shown)

    return f"model.{name} = {typed(value)} (but {' or '.join(map(typed, allowed))})"


# ---- the two of them -----------------------------------------------------------------------------


def _gpt2(config: GPTConfig) -> dict[str, list[Piece]]:
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
                Piece(f"{theirs}.{name}.weight", n_out, "transposed")
            ]
            table[f"{ours}.{linear}.bias"] = [Piece(f"{theirs}.{name}.bias", n_out)]
    if not config.tied_head:
        table["head.weight"] = [Piece("lm_head.weight", V)]
    return table


def _llama(config: GPTConfig) -> dict[str, list[Piece]]:
    D, F, V, K = config.d_model, config.width_ff, config.vocab_size, config.width_head
    table = {
        "token_embedding.weight": [Piece("model.embed_tokens.weight", V)],
        "final_norm.weight": [Piece("model.norm.weight", D)],
    }
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        table[f"{ours}.norm_attention.weight"] = [Piece(f"{theirs}.input_layernorm.weight", D)]
        table[f"{ours}.norm_feed_forward.weight"] = [
            Piece(f"{theirs}.post_attention_layernorm.weight", D)
        ]
        attention, feed_forward, biases = (
            f"{theirs}.self_attn",
            f"{theirs}.mlp",
            config.attention_biases,
        )
        for part in ("weight",) if biases == "none" else ("weight", "bias"):
            table[f"{ours}.attention.qkv.{part}"] = [
                Piece(f"{attention}.q_proj.{part}", config.n_head * K, "rotary"),
                Piece(f"{attention}.k_proj.{part}", config.n_kv * K, "rotary"),
                Piece(f"{attention}.v_proj.{part}", config.n_kv * K),
            ]
        for part in ("weight", "bias") if biases == "all" else ("weight",):
            table[f"{ours}.attention.out.{part}"] = [Piece(f"{attention}.o_proj.{part}", D)]
        for part in ("weight", "bias") if config.bias else ("weight",):
            table[f"{ours}.feed_forward.up.{part}"] = [
                Piece(f"{feed_forward}.gate_proj.{part}", F),
                Piece(f"{feed_forward}.up_proj.{part}", F),
            ]
            table[f"{ours}.feed_forward.down.{part}"] = [
                Piece(f"{feed_forward}.down_proj.{part}", D)
            ]
    if not config.tied_head:
        table["head.weight"] = [Piece("lm_head.weight", V)]
    return table


def _llama_more(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Width of the heads and biases in attention, "derived" where they are what ours would be
    without being set.
    """
    bias = {}
    for name in ("attention_bias", "mlp_bias"):
        bias[name] = found.get(name) or False
        if not isinstance(bias[name], bool):
            raise ConfigError(f"{path} has {name} = {shown(found[name])}: expected true or false.")
    own = {True: "all", False: "none"}[bias["attention_bias"]]
    d_head, wide, heads = (
        found.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads")
    )
    if isinstance(d_head, int) and isinstance(heads, int) and d_head * heads == wide:
        d_head = 0
    return {
        "bias": bias["mlp_bias"],
        "attention_bias": "auto" if bias["attention_bias"] == bias["mlp_bias"] else own,
        "d_head": d_head,
    }


_NOT_THERE = {
    "embedding_norm": (False,),
    "qk_norm": (False,),
    "logit_softcap": (0.0,),
    "ngram_tables": ((),),
}
_INDIFFERENT = frozenset(("size", "init", "vocab_multiple", "ngram_table_size", "ngram_dropout"))

GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    preset="gpt2",
    prefix="transformer.",
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
    needs=_NOT_THERE
    | {
        "norm": ("layernorm",),
        "norm_gain": (True, False),
        "bias": (True, False),
        "positions": ("learned", "none"),
        "attention_bias": (
            "auto",
            "none",
            "qkv",
            "all",
        ),  # those that are not there are written as zeros
    },
    indifferent=_INDIFFERENT | {"rope_base"},
    activation="activation_function",
    activations={
        "gelu_new": "gelu-tanh",
        "gelu_pytorch_tanh": "gelu-tanh",
        "gelu": "gelu",
        "silu": "silu",
        "swish": "silu",
    },
    wants={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),  # another order of the same arithmetic
        "add_cross_attention": (False,),
    },
    read_more=lambda found, path: {},
    more=lambda config: {"embd_pdrop": config.dropout},
    buffers=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
    pieces=_gpt2,
)

LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    preset="llama",
    prefix="model.",
    sizes={
        "n_layer": ("num_hidden_layers", 32),
        "n_head": ("num_attention_heads", 32),
        "n_kv_head": ("num_key_value_heads", None),
        "d_model": ("hidden_size", 4096),
        "d_head": ("head_dim", None),
        "d_ff": ("intermediate_size", 11008),
        "vocab_size": ("vocab_size", 32000),
        "context_length": ("max_position_embeddings", 2048),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "rope_base": ("rope_theta", 10000.0),
        "rope_scaling": ("rope_scaling.rope_type", "none"),
        "rope_factor": ("rope_scaling.factor", 1.0),
        "rope_original_context": ("rope_scaling.original_max_position_embeddings", 0),
        "tied_head": ("tie_word_embeddings", False),
        "attention_dropout": ("attention_dropout", 0.0),
    },
    needs=_NOT_THERE | {"norm": ("rmsnorm",), "norm_gain": (True, False), "positions": ("rope",)},
    indifferent=_INDIFFERENT | {"dropout", "bias", "attention_bias"},
    activation="hidden_act",
    activations={"silu": "swiglu", "swish": "swiglu"},
    wants={
        "rope_scaling.low_freq_factor": (LLAMA3_LOW,),
        "rope_scaling.high_freq_factor": (LLAMA3_HIGH,),
    },
    read_more=_llama_more,
    more=lambda config: {
        "mlp_bias": config.bias,
        "attention_bias": config.attention_biases == "all",
    },
    buffers=r".*rotary_emb\.inv_freq",  # the frequencies, which follow from the settings
    pieces=_llama,
)

ARCHITECTURES = (GPT2, LLAMA)
