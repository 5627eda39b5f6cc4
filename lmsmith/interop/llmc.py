"""Reads and writes llm.c checkpoints: GPT-2 only, in float32 or bfloat16.

`reference/llmc.py` reads and writes the file format. Here its 16 tensors, each with the layers
stacked, are converted to ours and back. Padding of the vocabulary is kept, so reading and writing a
file gives the same bytes. A model without padding is padded to a multiple of 128, which llm.c's
CUDA programs need.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.config import ModelConfig
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.interop.families.gpt2 import GPT2
from lmsmith.interop.mapping import derived, difference
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.reference.blocks import Sizes
from lmsmith.reference.llmc import HEADER_BYTES, MAGIC, read_llmc, write_llmc

FILE_NAME = "model.bin"  # in a folder written by `export`
_BFLOAT16 = 5  # version in the header; 3 is float32
_PADDED_TO = 128

_WHOLE = {
    "wte": "token_embedding.weight",
    "wpe": "position_embedding.weight",
    "lnfw": "final_norm.weight",
    "lnfb": "final_norm.bias",
}
_STACKED = {
    "ln1": "norm_attention",
    "qkv": "attention.qkv",
    "attproj": "attention.out",
    "ln2": "norm_feed_forward",
    "fc": "feed_forward.up",
    "fcproj": "feed_forward.down",
}


def is_llmc(path: Path) -> bool:
    """Whether a file begins with llm.c's magic number. Raises CheckpointError if it cannot be
    read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC.to_bytes(4, "little")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def read(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Reads settings and tensors, and converts them to ours. Raises CheckpointError."""
    sizes, params = read_llmc(path)
    with path.open("rb") as file:
        version = int(np.frombuffer(file.read(HEADER_BYTES), "<i4")[1])
    dtype = torch.bfloat16 if version == _BFLOAT16 else torch.float32
    V, padded = sizes.vocab_size, sizes.padded_vocab_size
    settings = {
        "n_layer": sizes.n_layer,
        "n_head": sizes.n_head,
        "d_model": sizes.d_model,
        "vocab_size": V,
        "vocab_multiple": _PADDED_TO if padded == -(-V // _PADDED_TO) * _PADDED_TO else padded,
        "context_length": sizes.context_length,
    }
    changes = {f"model.{key}": value for key, value in settings.items()}
    config = GPTConfig.of(preset("gpt2").changed(changes, where=str(path)).model)
    tensors = {ours: _tensor(params[name], dtype) for name, ours in _WHOLE.items()}
    for name, ours in _STACKED.items():
        for end, part in (("w", "weight"), ("b", "bias")):
            for i in range(sizes.n_layer):
                tensors[f"blocks.{i}.{ours}.{part}"] = _tensor(params[name + end][i], dtype)
    return config, tensors


def write(path: Path, config: GPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint in the tensors' precision.

    Raises ConfigError for a model that is not GPT-2 or has another dtype, StorageError if the file
    cannot be written.
    """
    check(config)
    config, tensors = GPT2.completed(config, tensors)
    padded = (
        config.padded_vocab_size
        if config.vocab_multiple > 1
        else -(-config.vocab_size // _PADDED_TO) * _PADDED_TO
    )
    wte = tensors["token_embedding.weight"]
    dtype = str(wte.dtype).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"llm.c does not support {dtype} weights: export with --dtype float32 or --dtype "
            "bfloat16."
        )
    params = {name: _array(tensors[ours]) for name, ours in _WHOLE.items()}
    params["wte"] = _array(F.pad(wte, (0, 0, 0, padded - len(wte))))
    for name, ours in _STACKED.items():
        for end, part in (("w", "weight"), ("b", "bias")):
            layers = [_array(tensors[f"blocks.{i}.{ours}.{part}"]) for i in range(config.n_layer)]
            params[name + end] = np.stack(layers)
    sizes = Sizes(
        n_layer=config.n_layer,
        n_head=config.n_head,
        d_model=config.d_model,
        vocab_size=config.vocab_size,
        padded_vocab_size=padded,
        context_length=config.context_length,
    )
    write_llmc(path, sizes, params, "bfloat16" if dtype == "bfloat16" else "float32")


def check(config: ModelConfig) -> None:
    """Raises ConfigError, with reasons, for a model that llm.c does not support."""
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"llm.c has only GPT-2, and cannot represent a model of kind {config.kind}."
        )
    config = derived(config)
    reasons = GPT2.differences(config)
    for name, value, required in (
        ("feed_forward", config.feed_forward, "gelu-tanh"),
        ("d_ff", config.width_ff, 4 * config.d_model),
        ("norm_eps", config.norm_eps, 1e-5),
        ("tied_head", config.tied_head, True),
        ("attention_bias", config.attention_bias, "auto"),
    ):
        # llm.c's requirement replaces that of transformers, which may allow more.
        reasons = [reason for reason in reasons if not reason.startswith(f"model.{name} ")]
        if value != required:
            reasons.append(difference(name, value, [required]))
    if reasons:
        raise ConfigError(
            f"llm.c has only GPT-2, and does not support {'; '.join(reasons)}. Models of `--preset "
            "gpt2` can be exported."
        )


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array.copy()).to(dtype)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy()
