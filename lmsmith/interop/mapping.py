"""An architecture of transformers, as tables between its settings and tensors and ours.

Each architecture has a table of settings and one of tensors, used in both directions; they are in
`families/`. Their tensors and ours differ in:

- names;
- GPT-2's projections: theirs have shape (in, out), ours (out, in), so they are transposed;
- fused matrices: queries, keys and values are one matrix of ours, stacked by rows, and so are the
  two halves of SwiGLU. GPT-NeoX stacks them head by head;
- RoPE pairs: theirs rotate elements i and i + R/2 of a head, ours neighbours 2i and 2i + 1, as in
  the paper (Su et al. 2021). The rows of queries and keys, and gains of their dimensions, are
  permuted, which leaves their dot products unchanged.

Tensors keep their bits and precision. Padding rows of the vocabulary are dropped. `rope.py` reads
the RoPE settings, and names settings inside an object with a dot: `rope_scaling.factor`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith.config import settings
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop import mapped, rope
from lmsmith.interop.pieces import Piece, check_tensors
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

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
    mapped: frozenset[str]
    """Our settings that `read_more` and `more` convert, or that do not change what a trained model
    computes."""
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
    complete: Callable[[GPTConfig], GPTConfig]
    """The same model with the parameters that the architecture requires."""
    bare: bool = False
    """Models with a tied head are written without `prefix`, as the original checkpoints are."""
    head: str = "lm_head.weight"
    also: Callable[[GPTConfig], list[str]] = lambda config: []
    """Further differences of our model, as `differences` describes them."""
    prepared: Callable[[Mapping[str, Any], Path], Mapping[str, Any]] = lambda theirs, path: theirs
    """Their settings under the names that `rope.flat` reads."""

    def read_settings(self, theirs: Mapping[str, Any], path: Path) -> GPTConfig:
        """Converts the content of their config.json. Raises ConfigError for bad settings, and for
        those that our model cannot compute.
        """
        theirs = rope.flat(self.prepared(theirs, path), path, partial="rope_fraction" in self.sizes)
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
            if field.name not in self.mapped | set(self.sizes) and value not in allowed:
                unsupported.append(difference(field.name, value, allowed))
        return unsupported + self.also(config)

    def completed(
        self, config: GPTConfig, tensors: Mapping[str, Tensor]
    ) -> tuple[GPTConfig, dict[str, Tensor]]:
        """The same model with the parameters that the architecture requires: missing gains are
        ones, missing biases and learned positions zeros.
        """
        full = self.complete(config)
        example = tensors["token_embedding.weight"]
        added = {name: shape for name, shape in shapes_of(full).items() if name not in tensors}
        gains = {name for name in added if "norm" in name and name.endswith("weight")}
        ones_and_zeros = {
            name: example.new_full(shape, 1.0 if name in gains else 0.0)
            for name, shape in added.items()
        }
        return full, {**tensors, **ones_and_zeros}

    def to_ours(
        self, config: GPTConfig, theirs: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Tensor]:
        """Converts their tensors to ours. Raises CheckpointError with the names of tensors that are
        missing, unknown or of another shape.
        """
        shapes, table = shapes_of(config), self.pieces(config)
        expected = {
            piece.name: piece.shape(shapes[ours])
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
            named.get(self.head),
            named.get(table["token_embedding.weight"][0].name),
        )
        # Some checkpoints hold tied weights twice.
        if config.tied_head and head is not None and tokens is not None:
            if head.dtype != tokens.dtype or not torch.equal(head, tokens):
                raise CheckpointError(
                    f"{folder} has a separate {self.head}, but its config.json has tied "
                    "embeddings: set tie_word_embeddings to false there, or remove the tensor."
                )
            del named[self.head]
        check_tensors(named, expected, folder)
        result = {}
        for ours, pieces in table.items():
            parts = [piece.to_ours(named[piece.name]) for piece in pieces]
            result[ours] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
            mapped.release()  # what was copied need not stay in memory twice
        return result

    def to_theirs(self, config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Converts our tensors to theirs."""
        result = {}
        prefix = self.prefix if self.bare and config.tied_head else ""
        for ours, pieces in self.pieces(config).items():
            start = 0
            for piece in pieces:  # remaining rows are padding of the vocabulary
                rows = tensors[ours][start : start + piece.n_rows]
                result[piece.name.removeprefix(prefix)] = piece.to_theirs(rows)
                start += piece.n_rows
        return result


def flag(found: Mapping[str, Any], name: str, default: bool, path: Path) -> bool:
    """A setting of theirs that is true, false or absent. Raises ConfigError."""
    value = found.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{path} has {name} = {shown(value)}: expected true or false.")
    return value


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
        return f"{shown:g}" if isinstance(shown, float) else str(shown) or "empty"

    return f"model.{name} = {typed(value)} (only {' or '.join(map(typed, allowed))})"


def derived(config: GPTConfig) -> GPTConfig:
    """The same model, with "auto" for the settings whose value is the automatic one."""
    grouped = config.n_kv != config.n_head
    changes: dict[str, Any] = {"n_kv_head": config.n_kv * grouped, "n_head_per_kv": 1}
    if config.d_head * config.n_head == config.d_model:
        changes["d_head"] = 0
    if config.attention_biases == ("all" if config.bias else "none"):
        changes["attention_bias"] = "auto"
    layers = range(config.n_layer)
    windows = "".join("S" if config.window_of(layer) else "L" for layer in layers)
    changes["window_pattern"] = shortest(windows, "L")
    if "S" not in windows:  # the pattern may be longer than the model
        changes["window"] = 0
    if config.positions == "rope":
        turned = "".join("R" if config.has_rope(layer) else "N" for layer in layers)
        changes["rope_pattern"] = shortest(turned, "R")
    return dataclasses.replace(config, **changes)


def shortest(letters: str, usual: str) -> str:
    """The shortest pattern that gives these letters, one per layer, when repeated; empty if all are
    `usual`.
    """
    n = len(letters)
    period = next(p for p in range(1, n + 1) if letters == (letters[:p] * n)[:n])
    return "" if letters == usual * n else letters[:period]


def shapes_of(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of our model. Allocates no memory for them."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
