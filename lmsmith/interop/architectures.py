"""Converts settings and tensors between our Transformer and two architectures of transformers:
GPT2LMHeadModel and LlamaForCausalLM.

Each architecture has a table of settings and one of tensors, used in both directions. Their tensors
and ours differ in:

- names;
- GPT-2's projections: theirs have shape (in, out), ours (out, in), so they are transposed;
- fused matrices: queries, keys and values are one matrix of ours, stacked by rows, and so are the
  two halves of SwiGLU;
- RoPE pairs: theirs rotate elements i and i + K/2 of a head, ours neighbours 2i and 2i + 1, as in
  the paper (Su et al. 2021). The rows of queries and keys are permuted, which leaves their dot
  products unchanged.

Tensors keep their bits and precision. Padding rows of the vocabulary are dropped. `rope.py` reads
the RoPE settings, and names settings inside an object with a dot: `rope_scaling.factor`. Source:
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
from lmsmith.interop import mapped, rope
from lmsmith.models.attention import LLAMA3_HIGH, LLAMA3_LOW
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NAMED = 4  # number of tensors that an error names

# Upper bounds for settings, to detect damaged files. The largest known models have 126 layers, a
# width of 16,384, a vocabulary of 262,144 and a context of ten million tokens.
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


# ---- choosing an architecture --------------------------------------------------------------------


def architecture_of(theirs: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture that the content of a config.json names.

    Raises ConfigError for an architecture that is not supported, CheckpointError for lmsmith's own
    config.json.
    """
    if "format_version" in theirs:
        raise CheckpointError(
            f"{path} belongs to a model of lmsmith, which can be used directly: there is nothing "
            "to import."
        )
    named, model_type = theirs.get("architectures"), theirs.get("model_type")
    if isinstance(named, list) and named:
        architecture = next((known for known in ARCHITECTURES if [known.name] == named), None)
    else:
        architecture = next(
            (known for known in ARCHITECTURES if known.model_type == model_type), None
        )
    if architecture is None:
        names = ", ".join(
            str(name) for name in [*(named if isinstance(named, list) else ()), model_type] if name
        )[:200]
        raise ConfigError(
            f"{path} names {f'the architecture {names}' if names else 'no architecture'}, which "
            "lmsmith does not support: expected "
            f"{' or '.join(known.name for known in ARCHITECTURES)}."
        )
    if theirs.get("quantization_config"):
        raise ConfigError(
            f"{path} has quantized weights (quantization_config): use the checkpoint that they "
            "were quantized from."
        )
    if theirs.get("transformers_weights"):
        raise ConfigError(
            f"{path} names its own weights file (transformers_weights = "
            f"{shown(theirs['transformers_weights'])}), but lmsmith reads model.safetensors or its "
            "shards. Rename the file and remove the setting."
        )
    return architecture


def architecture_for(config: ModelConfig) -> Architecture:
    """The architecture of transformers that computes our model. Raises ConfigError, with reasons,
    if there is none.
    """
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"transformers has no counterpart to a model of kind {config.kind}: only Transformers "
            "can be exported."
        )
    reasons = {architecture: architecture.differences(config) for architecture in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda architecture: len(reasons[architecture]))
    if reasons[nearest]:
        raise ConfigError(
            f"this model has no counterpart in transformers. The nearest is {nearest.name}, which "
            f"does not support {'; '.join(reasons[nearest])}. Models of `--preset gpt2` and "
            "`--preset llama` can be exported."
        )
    return nearest


def completed(
    config: GPTConfig, tensors: Mapping[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The same model with the parameters that their architecture requires: missing gains are ones,
    missing biases and learned positions zeros.
    """
    full = dataclasses.replace(config, norm_gain=True)
    if config.norm == "layernorm":  # GPT-2 has all of them
        full = dataclasses.replace(full, bias=True, attention_bias="auto", positions="learned")
    elif config.attention_biases == "qkv":  # Llama has all biases in attention, or none
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
    """The same model, with "auto" for the settings whose value is the automatic one."""
    changes: dict[str, Any] = {}
    if config.n_kv == config.n_head:
        changes["n_kv_head"] = 0
    if config.d_head * config.n_head == config.d_model:
        changes["d_head"] = 0
    if config.attention_biases == ("all" if config.bias else "none"):
        changes["attention_bias"] = "auto"
    return dataclasses.replace(config, **changes)


def shapes_of(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of our model. Allocates no memory for them."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}


# ---- an architecture -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Architecture:
    """An architecture of transformers, as tables between its settings and tensors and ours.

    "Ours" are names of our settings without `model.`; "theirs" are keys of config.json.
    """

    name: str  # in "architectures"
    model_type: str
    preset: str
    """Our preset with the settings that the tables do not name."""
    prefix: str
    """Prefix of tensor names, which some checkpoints lack."""
    sizes: Mapping[str, tuple[str, Any]]
    """ours -> (theirs, their default)"""
    needs: Mapping[str, tuple[Any, ...]]
    """ours -> values that the architecture can compute; the first is the value of its models."""
    indifferent: frozenset[str]
    """Our settings that do not change what a trained model computes."""
    activation: str
    """Their setting for the activation."""
    activations: Mapping[str, str]
    """Values of `activation` -> our feed_forward"""
    wants: Mapping[str, tuple[Any, ...]]
    """theirs -> values that our model can compute"""
    read_more: Callable[[Mapping[str, Any], Path], dict[str, Any]]
    """Their settings -> ours, where the mapping is not one to one."""
    more: Callable[[GPTConfig], dict[str, Any]]
    """The inverse of `read_more`, and their redundant settings."""
    buffers: str
    """Pattern of the names of tensors that are not weights."""
    pieces: Callable[[GPTConfig], dict[str, list[Piece]]]
    """Our tensor -> their tensors, in order of rows"""

    def read_settings(self, theirs: Mapping[str, Any], path: Path) -> GPTConfig:
        """Converts the content of their config.json. Raises ConfigError for bad settings, and for
        those that our model cannot compute.
        """
        theirs = rope.flat(theirs, path)
        for name, allowed in self.wants.items():
            if theirs.get(name, allowed[0]) not in allowed:
                raise ConfigError(
                    f"{path} has {name} = {shown(theirs[name])}, which lmsmith's model cannot "
                    f"compute: expected {' or '.join(json.dumps(value) for value in allowed)}."
                )
        activation = theirs.get(self.activation, next(iter(self.activations)))
        if not isinstance(activation, str) or activation not in self.activations:
            raise ConfigError(
                f"{path} has {self.activation} = {shown(activation)}, which lmsmith does not "
                f"support: expected one of {', '.join(self.activations)}."
            )
        self._check_sizes(theirs, path)
        ours = {name: values[0] for name, values in self.needs.items()}
        ours |= {name: theirs.get(key, default) for name, (key, default) in self.sizes.items()}
        ours |= self.read_more(theirs, path)
        ours["feed_forward"] = self.activations[activation]
        settings = {f"model.{name}": value for name, value in ours.items() if value is not None}
        config = GPTConfig.of(preset(self.preset).changed(settings, where=str(path)).model)
        if not config.vocab_size:
            raise ConfigError(f"{path} has vocab_size = 0: expected the number of tokens.")
        return config

    def _check_sizes(self, found: Mapping[str, Any], path: Path) -> None:
        """Raises ConfigError for sizes that no model has, because even listing the tensors of such
        a model would take hours.
        """
        for ours, (theirs, _) in self.sizes.items():
            value, most = found.get(theirs), _MOST.get(ours, _MOST_OTHERS)
            if isinstance(value, int | float) and abs(value) > most:
                raise ConfigError(
                    f"{path} has {theirs} = {shown(value)}: expected at most {most:,}. The file "
                    "may be damaged."
                )

    def write_settings(self, config: GPTConfig) -> dict[str, Any]:
        """The content of their config.json, for a config without `differences`."""
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
        """Describes our settings that the architecture does not support, with the values that it
        does. A setting in none of the tables must have its default.
        """
        config = derived(config)
        unsupported = []
        for field in dataclasses.fields(GPTConfig):
            value, allowed = (
                getattr(config, field.name),
                self.needs.get(field.name, (field.default,)),
            )
            if field.name == "feed_forward":
                allowed = tuple(dict.fromkeys(self.activations.values()))
            if field.name not in self.indifferent | set(self.sizes) and value not in allowed:
                unsupported.append(difference(field.name, value, allowed))
        return unsupported

    def to_ours(
        self, config: GPTConfig, theirs: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Tensor]:
        """Converts their tensors to ours. Raises CheckpointError with the names of tensors that are
        missing, unknown or of another shape.
        """
        shapes, table = shapes_of(config), self.pieces(config)
        expected = {
            piece.name: _shape(piece, shapes[ours])
            for ours, pieces in table.items()
            for piece in pieces
        }
        named = {
            self.prefix + name
            if name not in expected and self.prefix + name in expected
            else name: tensor
            for name, tensor in theirs.items()
            if not re.fullmatch(self.buffers, name)
        }
        head, tokens = (
            named.get("lm_head.weight"),
            named.get(table["token_embedding.weight"][0].name),
        )
        # Some checkpoints hold tied weights twice.
        if config.tied_head and head is not None and tokens is not None:
            if head.dtype != tokens.dtype or not torch.equal(head, tokens):
                raise CheckpointError(
                    f"{folder} has a separate lm_head.weight, but its config.json has tied "
                    "embeddings: set tie_word_embeddings to false there, or remove the tensor."
                )
            del named["lm_head.weight"]
        _check_tensors(named, expected, folder)
        result = {}
        for ours, pieces in table.items():
            parts = [_to_ours(named[piece.name], piece, config.width_head) for piece in pieces]
            result[ours] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
            mapped.release()  # what was copied need not stay in memory twice
        return result

    def to_theirs(self, config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Converts our tensors to theirs."""
        result = {}
        for ours, pieces in self.pieces(config).items():
            start = 0
            for piece in pieces:  # remaining rows are padding of the vocabulary
                rows = tensors[ours][start : start + piece.n_rows]
                result[piece.name] = _to_theirs(rows, piece, config.width_head)
                start += piece.n_rows
        return result


@dataclass(frozen=True)
class Piece:
    """One of their tensors: `n_rows` rows of one of ours, converted to `form`."""

    name: str
    n_rows: int
    form: Literal["same", "transposed", "rotary"] = "same"


def _to_ours(x: Tensor, piece: Piece, d_head: int) -> Tensor:
    if piece.form == "transposed":
        return x.T
    if piece.form == "rotary":  # takes rows 0, K/2, 1, K/2 + 1, ... of each head
        return x.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)
    return x


def _to_theirs(x: Tensor, piece: Piece, d_head: int) -> Tensor:
    if piece.form == "transposed":
        return x.T
    if piece.form == "rotary":
        return x.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)
    return x


def _shape(piece: Piece, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of their tensor, from the shape of ours."""
    shape = (piece.n_rows, *ours[1:])
    return shape[::-1] if piece.form == "transposed" else shape


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raises CheckpointError unless the tensors have the expected names, shapes and dtypes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown to this architecture": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]}, expected {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
        "of a dtype other than float64, float32, bfloat16 and float16 (quantized?)": [
            f"{name} {tensor.dtype}"
            for name, tensor in tensors.items()
            if tensor.dtype not in _PRECISIONS
        ],
    }
    lines = [f"{len(names)} {what}: {listed(names)}." for what, names in problems.items() if names]
    if lines:
        raise CheckpointError(
            f"the tensors in {folder} do not fit its config.json. {' '.join(lines)}"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )


def difference(name: str, value: Any, allowed: Iterable[Any]) -> str:
    """Describes a model setting whose value is not allowed: `model.norm = layernorm (only
    rmsnorm)`, as on the command line.
    """
    leaf = dict(settings(GPTConfig))[f"model.{name}"]

    def typed(value: Any) -> str:
        shown = leaf.shown(value)
        if isinstance(shown, bool):
            return "yes" if shown else "no"
        if isinstance(shown, tuple):
            return ",".join(map(str, shown)) or "none"
        return f"{shown:g}" if isinstance(shown, float) else str(shown)

    return f"model.{name} = {typed(value)} (only {' or '.join(map(typed, allowed))})"


# ---- GPT-2 and Llama -----------------------------------------------------------------------------


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
    """Head width and biases; "auto" if they have the value that "auto" gives."""
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
        ),  # missing biases are written as zeros
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
        "reorder_and_upcast_attn": (False, True),  # the same result, computed in another order
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
    buffers=r".*rotary_emb\.inv_freq",  # the frequencies, which the settings determine
    pieces=_llama,
)

ARCHITECTURES = (GPT2, LLAMA)
