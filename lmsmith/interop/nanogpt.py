"""Reads checkpoints of nanoGPT (`ckpt.pt`) and its character vocabularies (`meta.pkl`).

nanoGPT's model is GPT-2 with linear maps of shape (out, in), an exact GELU and optional biases.
Its checkpoint is a pickled dictionary with the weights, the optimizer state, and `model_args`. It
is read without running code (`pickled.py`) and memory-mapped, so that the optimizer state is not
read. Vocabularies are read by an unpickler that knows no classes at all.

`nanochat.py` reads those of nanochat, which are recognized here.

Source: karpathy/nanoGPT, model.py and train.py.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError, TokenizerError
from lmsmith.interop import nanochat, pickled
from lmsmith.interop.mapping import shapes_of
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.tokens.tokenizer import CharTokenizer

FILE_NAME = "ckpt.pt"
META = "meta.pkl"
_VOCABULARIES = (50_257, 50_304)  # GPT-2's, and GPT-2's padded

_SETTINGS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "d_model",
    "block_size": "context_length",
    "vocab_size": "vocab_size",
    "bias": "bias",
    "dropout": "dropout",
}
_LAYER = {
    "ln_1": "norm_attention",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm_feed_forward",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}
_OTHERS = {
    "transformer.wte": "token_embedding",
    "transformer.wpe": "position_embedding",
    "transformer.ln_f": "final_norm",
}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is named like a checkpoint of PyTorch."""
    return path.suffix in (".pt", ".pth", ".ckpt")


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint in a folder of nanoGPT or nanochat, there the last; None if there is none."""
    return next(iter([*folder.glob(FILE_NAME), *sorted(folder.glob("model_*.pt"))[-1:]]), None)


def read(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Reads settings and tensors and converts them to ours. Raises CheckpointError, ConfigError."""
    content = pickled.load(path)
    if nanochat.is_nanochat(path, content):
        return nanochat.read(path, content)
    if not isinstance(content, Mapping) or not {"model", "model_args"} <= content.keys():
        raise CheckpointError(
            f"{path} is not a checkpoint of nanoGPT: expected a dictionary with `model` and "
            "`model_args`."
        )
    arguments, weights = content["model_args"], content["model"]
    if not isinstance(arguments, Mapping) or not isinstance(weights, Mapping):
        raise CheckpointError(f"{path} is damaged: `model` and `model_args` must be dictionaries.")
    changes = {
        f"model.{ours}": arguments[theirs]
        for theirs, ours in _SETTINGS.items()
        if theirs in arguments
    }
    base = preset("gpt2").changed({"model.feed_forward": "gelu"}, where=str(path))
    config = GPTConfig.of(base.changed(changes, where=str(path)).model)
    if not config.vocab_size or config.n_layer > 2048:
        raise ConfigError(f"{path} has no vocab_size, or more layers than any model.")
    return config, _converted(config, weights, path)


def _converted(config: GPTConfig, weights: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Our tensors. Raises CheckpointError with the names of tensors that do not fit."""
    shapes, found, unknown = shapes_of(config), {}, []
    for name, tensor in weights.items():
        name = str(name).removeprefix("_orig_mod.")  # of a compiled model
        if name == "lm_head.weight" or re.fullmatch(r"transformer\.h\.\d+\.attn\.bias", name):
            continue  # the head is tied; the other is the causal mask
        ours = _ours(name)
        if ours not in shapes or not isinstance(tensor, Tensor) or tensor.shape != shapes[ours]:
            unknown.append(name)
        else:
            found[ours] = tensor.contiguous()
    absent = sorted(shapes.keys() - found.keys())
    if unknown or absent:
        raise CheckpointError(
            f"the tensors in {path} do not fit its model_args: "
            f"{len(unknown)} unknown or of another shape ({', '.join(unknown[:4]) or 'none'}), "
            f"{len(absent)} missing ({', '.join(absent[:4]) or 'none'})."
        )
    head = weights.get("lm_head.weight", weights.get("_orig_mod.lm_head.weight"))
    embedding = found["token_embedding.weight"]
    same = head is None or (
        isinstance(head, Tensor) and head.dtype == embedding.dtype and torch.equal(head, embedding)
    )
    if not same:
        raise CheckpointError(f"{path} has a head that differs from its tied embeddings.")
    return found


def _ours(name: str) -> str:
    """Our name of a tensor; empty if there is none."""
    stem, _, part = name.rpartition(".")
    if stem in _OTHERS:
        return f"{_OTHERS[stem]}.{part}"
    match = re.fullmatch(r"transformer\.h\.(\d+)\.([\w.]+)", stem)
    return f"blocks.{match[1]}.{_LAYER[match[2]]}.{part}" if match and match[2] in _LAYER else ""


class _DataOnly(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries; refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_meta(path: Path) -> CharTokenizer:
    """The tokenizer in a `meta.pkl` of nanoGPT's character-level data. Raises TokenizerError."""
    try:
        with path.open("rb") as file:
            characters = _DataOnly(file).load()["itos"]
        text = "".join(characters[i] for i in range(len(characters)))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise TokenizerError(
            f"{path} holds a pickled object ({error}) that can run code when it is loaded, so it "
            "is not read."
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise TokenizerError(
            f"{path} is not a meta.pkl of nanoGPT ({error!r}): expected `itos`, a dictionary from "
            "ids to characters."
        ) from error
    if len(text) != len(characters) or list(text) != sorted(set(text)):
        raise TokenizerError(
            f"{path} has characters that are not one per id and sorted, as nanoGPT writes them."
        )
    return CharTokenizer(text, False)


def tokenizer_beside(path: Path, vocab_size: int) -> CharTokenizer | str | None:
    """The tokenizer of a checkpoint: from meta.pkl in its folder, or the name "gpt2"."""
    if (path.parent / META).is_file():
        return read_meta(path.parent / META)
    return "gpt2" if vocab_size in _VOCABULARIES else None
