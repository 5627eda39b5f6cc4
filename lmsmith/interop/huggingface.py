"""Reads and writes Hugging Face checkpoints: models that transformers has a class for, and others
with their own code (`custom.py`).

    config, tensors = read(folder)        # config.json and model.safetensors (or its shards)
    write(folder, config, tensors, ...)   # a folder that transformers and vLLM can load

Tensors keep their precision, so reading and writing a checkpoint gives the same bits.
`mapping.py` converts the settings and tensors. Biases, gains and positions that their
architecture requires and our model lacks are written as zeros or ones, which computes the same.

Pickled weights (pytorch_model.bin) are not read, because loading a pickle can run arbitrary code;
neither are quantized ones.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.config import ModelConfig
from lmsmith.errors import CheckpointError
from lmsmith.interop import custom, mapped
from lmsmith.interop.architectures import architecture_for, architecture_of
from lmsmith.interop.defaults import Defaults
from lmsmith.interop.pieces import listed
from lmsmith.interop.sharding import INDEX, SHARD_SIZE, WEIGHTS, write_weights
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.strict_json import to_json


def read(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Reads settings and tensors and converts them to ours; tensors keep their precision.

    Raises CheckpointError for files that are missing, damaged or do not fit each other, with the
    names of the tensors; ConfigError, with the reason, for a model that lmsmith cannot compute.
    """
    path = folder / "config.json"
    settings = _read_json(path)
    if code := custom.named_in(settings):
        own = custom.read_settings(code, settings, path)
        tensors = _read_tensors(folder)
        custom.check_tensors(own, tensors, folder)
        return own, tensors
    architecture = architecture_of(settings, path)
    config = architecture.read_settings(settings, path)
    theirs = _read_tensors(folder)
    return config, architecture.to_ours(config, theirs, folder)


def read_ends(folder: Path) -> tuple[int | None, list[int]]:
    """The ids that begin and end a text, from generation_config.json or else config.json.
    Raises CheckpointError.
    """
    settings = _read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        generation = _read_json(folder / "generation_config.json")
        settings |= {
            name: generation[name]
            for name in ("bos_token_id", "eos_token_id")
            if generation.get(name) is not None
        }
    begin, ends = settings.get("bos_token_id"), settings.get("eos_token_id")
    several = ends if isinstance(ends, list) else [ends]
    return begin if type(begin) is int else None, [end for end in several if type(end) is int]


def write(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    begin: int | None = None,
    ends: Sequence[int] = (),
    pad: int | None = None,
    defaults: Defaults | None = None,
    shard_size: int = SHARD_SIZE,
) -> dict[str, dict[str, Any]]:
    """Writes config.json, generation_config.json, the weights (`sharding.py`) and, if transformers
    has no class for the model, its code (`custom.py`). Returns size and SHA-256 of each weights
    file.

    `begin`, `ends`, `pad`: the ids that begin, end and pad a text. `defaults`: those of an imported
    model. `shard_size`: the most bytes of a weights file. Raises ConfigError if the model cannot be
    represented, OSError if writing fails.
    """
    code = custom.needed_for(config)
    if code:
        settings, theirs = custom.write_settings(code, config), custom.to_theirs(config, tensors)
        (folder / code.file).write_bytes(code.code.read_bytes())
    else:
        assert isinstance(config, GPTConfig)
        architecture = architecture_for(config)
        config, tensors = architecture.completed(config, tensors)
        settings = architecture.write_settings(config)
        theirs = architecture.to_theirs(config, tensors)
    ids = {
        "bos_token_id": begin,
        "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None),
    }
    settings |= ids
    settings["torch_dtype"] = str(tensors["token_embedding.weight"].dtype).removeprefix("torch.")
    if defaults and defaults.pads_in_config and pad is not None:
        settings["pad_token_id"] = pad
    _write_json(folder / "config.json", settings)
    generation = (defaults.generation if defaults else {}) | ids | {"pad_token_id": pad}
    _write_json(folder / "generation_config.json", generation)
    return write_weights(folder, theirs, shard_size)


def open_in_transformers(folder: Path) -> Any:
    """The model of a folder that `write` wrote, as transformers loads it. Needs transformers.

    Our modeling files are imported from this package, not from the folder, so that transformers
    does not copy them to its cache.
    """
    code = custom.named_in(_read_json(folder / "config.json"))
    if code is None:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    module = importlib.import_module(f"lmsmith.interop.{code.file.removesuffix('.py')}")
    return getattr(module, code.architecture).from_pretrained(folder, local_files_only=True)


def files_of(folder: Path) -> list[Path]:
    """The files of settings and weights. Raises CheckpointError if there are no safetensors."""
    # Like transformers, prefers this file to an index left over from an earlier save.
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        names = sorted(set(weight_map(folder).values()))
    else:
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        why = (
            f" {pickled.name} is not read: loading a pickled file can run arbitrary code."
            if pickled
            else ""
        )
        if gguf := next(folder.glob("*.gguf"), None):
            why = f" To import a GGUF file, name it: lmsmith import {gguf}."
        raise CheckpointError(
            f"{folder} has no {WEIGHTS} and no {INDEX}.{why} Expected weights as safetensors; "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` of transformers "
            "writes them."
        )
    return [folder / "config.json", *(folder / name for name in names)]


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads all tensors of all files. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in files_of(folder)[1:]:
        if path.exists() and not path.is_file():  # reading a device or a pipe may not end
            raise CheckpointError(f"{path} is a folder or a device: expected a safetensors file.")
        try:
            tensors |= mapped.load(path)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path} is missing, but {INDEX} names it: copy all shards."
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{path} is not a complete safetensors file ({error}): copy it again."
            ) from error
    if not (folder / WEIGHTS).is_file():
        absent = sorted(set(weight_map(folder)) - set(tensors))
        if absent:
            raise CheckpointError(
                f"{folder / INDEX} names tensors that its files do not hold: {listed(absent)}. "
                "Copy the checkpoint again."
            )
    return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor in a sharded checkpoint. Raises CheckpointError."""
    mapping = _read_json(folder / INDEX).get("weight_map")
    good = isinstance(mapping, dict) and all(
        isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
        for name in mapping.values()
    )
    if not good or not mapping:
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map from tensors to safetensors files in its folder: "
            "copy it again."
        )
    return mapping


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError."""
    try:
        content = foreign_json.read(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: expected a folder written by save_pretrained of transformers."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected an object: copy it again."
        )
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
