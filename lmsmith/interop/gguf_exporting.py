"""A run's model -> a GGUF file for llama.cpp and what builds on it, with a receipt.

The library `gguf` writes the file. Then our own reader reads it again, and llama.cpp itself does if
`xllamacpp` is installed (`gguf_llama_cpp.py`): it must give the same ids and the same
probabilities, or nothing is written.

Matrices have the chosen type. Norms, biases and learned positions are float32, as llama.cpp expects
them. Q8_0 stores blocks of 32 numbers, so a matrix whose rows are no multiple of 32 is float16.
"""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lmsmith import __version__, atomic
from lmsmith.errors import CheckpointError, ConfigError, StorageError, UsageError
from lmsmith.hashes import sha256_of
from lmsmith.interop import gguf_importing, gguf_llama_cpp, gguf_models, gguf_tokenizer
from lmsmith.interop.defaults import Defaults
from lmsmith.interop.defaults import load as load_defaults
from lmsmith.interop.gguf_file import FILE_NAME
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.run_folder import load_weights, model_config, model_folder, new_run_path, tokenizer_of
from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import Tokenizer

RECEIPT = "receipt.json"
Type = Literal["auto", "f32", "f16", "bf16", "q8_0"]
TYPES = get_args(Type)

_OF_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # general.file_type
# The largest rounding error of a number: a part of the largest number in its row, and what float16
# loses below its smallest normal number.
_ROUNDING = {
    "f32": (0.0, 0.0),
    "f16": (2**-11, 2**-25),
    "bf16": (2**-8, 0.0),
    "q8_0": (1 / 254 + 2**-11, 127 * 2**-25),
}
_BLOCK = 32
_LARGEST_F16 = 65504.0


def export_gguf(run: Path, out: Path, *, type: Type = "auto") -> dict[str, Any]:
    """Writes the folder `out` with model.gguf and receipt.json; returns the receipt.

    `type` "auto": that of the weights. Raises ConfigError or TokenizerError, with reasons, for a
    model that llama.cpp has no counterpart to; CheckpointError if what was written is not the same
    model; UsageError, StorageError.
    """
    if type not in TYPES:
        raise UsageError(f"type = {type!r}: expected one of {', '.join(TYPES)}.")
    _library()
    place = new_run_path(out, run.name)
    folder = model_folder(run)
    model, tensors, content = load_weights(folder)
    config = model_config(content["model"])
    name = gguf_models.architecture_for(config)
    assert isinstance(model, GPT)
    assert isinstance(config, GPTConfig)
    chosen = _type_of(tensors) if type == "auto" else type
    tokenizer = tokenizer_of(run)
    words = _words(tokenizer, config, content, load_defaults(folder))
    full, tensors = gguf_models.completed(name, config, tensors)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, place)) from error
    receipt: dict[str, Any] = {
        "lmsmith": __version__,
        "run": str(run),
        "to": "gguf",
        "architecture": name,
        "dtype": chosen,
        "n_params": model.n_parameters(),
        "tokenizer": tokenizer.kind,
        "pre_tokenizer": words["tokenizer.ggml.pre"],
    }
    # An empty folder at `place` is replaced.
    with atomic.folder(place, replace=place.is_dir()) as partial:
        path = partial / FILE_NAME
        about = {"general.name": run.absolute().name} | dict(gguf_models.metadata(name, full))
        receipt["types"] = _write(path, name, about | words, full, tensors, chosen)
        _check_read_again(path, full, tensors, tokenizer, chosen)
        del tensors
        receipt["checked"] = {
            "lmsmith": {"relative_rounding": _ROUNDING[chosen][0]},
            "llama.cpp": gguf_llama_cpp.check(path, model, tokenizer, exact=chosen == "f32"),
        }
        receipt["sha256"] = {FILE_NAME: sha256_of(path)}
        write_json(partial / RECEIPT, receipt)
    return receipt


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UsageError(
            "writing GGUF needs the library gguf: run pip install 'lmsmith[gguf]'."
        ) from error
    return gguf


def _type_of(tensors: Mapping[str, Tensor]) -> str:
    """The type of the token table's precision."""
    dtype = str(tensors["token_embedding.weight"].dtype).removeprefix("torch.")
    if dtype not in _OF_DTYPE:
        raise ConfigError(f"The weights are {dtype}, which GGUF does not have: give --type f32.")
    return _OF_DTYPE[dtype]


def _words(
    tokenizer: Tokenizer, config: GPTConfig, content: Mapping[str, Any], kept: Defaults | None
) -> dict[str, Any]:
    """The tokenizer's metadata. Texts begin in llama.cpp as in training."""
    end = tokenizer.end_of_text
    # An imported model without `begin` puts nothing before a text in its own program.
    begin = content.get("begin", None if kept else end)
    ends: Sequence[int] = content.get("ends", [] if end is None else [end])
    return gguf_tokenizer.metadata_of(
        tokenizer, config.vocab_size, begin=begin, ends=ends, kept=kept
    )


def _write(
    path: Path,
    name: str,
    metadata: Mapping[str, Any],
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    chosen: str,
) -> dict[str, int]:
    """Writes the file; returns how many tensors are of which type."""
    gguf = _library()
    writer = gguf.GGUFWriter(path, name)
    writer.add_file_type(_FILE_TYPES[chosen])
    writer.add_quantization_version(2)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:
            writer.add_array(key, value)
    count: collections.Counter[str] = collections.Counter()
    for tensor_name, tensor in gguf_models.to_theirs(name, config, tensors):
        kind = _kind_of(tensor_name, tensor, chosen)
        values = tensor.detach().float().contiguous().numpy()
        if kind == "f16" and float(np.abs(values).max()) > _LARGEST_F16:
            raise CheckpointError(
                f"The tensor {tensor_name} has numbers beyond {_LARGEST_F16:,.0f}, the largest of "
                "float16: choose --type bf16."
            )
        if kind != "f32":
            ggml = gguf.GGMLQuantizationType[kind.upper()]
            packed = gguf.quants.quantize(values, ggml)
            writer.add_tensor(tensor_name, packed, raw_dtype=ggml)
        else:
            writer.add_tensor(tensor_name, values)
        count[kind] += 1
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise StorageError(atomic.explain(error, path)) from error
    finally:
        writer.close()
    return dict(count)


def _kind_of(name: str, tensor: Tensor, chosen: str) -> str:
    if tensor.dim() < 2 or name == "position_embd.weight":
        return "f32"
    return "f16" if chosen == "q8_0" and tensor.shape[-1] % _BLOCK else chosen


def _check_read_again(
    path: Path,
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    chosen: str,
) -> None:
    """Raises CheckpointError if the file, read by our reader, holds another model."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"the exported model, read again, has {what}: it is not written. Please report this, "
            "with the run's config.toml."
        )

    relative, absolute = _ROUNDING[chosen]
    with _without_warnings():  # on its engine, which the run's own tokenizer has caused before
        again = gguf_importing.read(path)
    for name, tensor in tensors.items():
        found = again.tensor(name)
        wanted = tensor.detach()[: len(found)].float()
        largest = wanted.abs().amax(dim=-1, keepdim=True)
        bound = largest * (relative * 1.001) + absolute
        if not torch.all((found - wanted).abs() <= bound):
            raise refuse(f"other numbers in {name}")
    assert again.tokenizer is not None
    for text in gguf_llama_cpp.TEXTS:
        if again.tokenizer.encode(text).tolist() != tokenizer.encode(text).tolist():
            raise refuse(f"a tokenizer that gives other ids for {text!r}")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("lmsmith.tokens.library")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
