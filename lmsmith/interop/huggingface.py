"""Hugging Face checkpoints, both ways: GPT2LMHeadModel and LlamaForCausalLM, settings and tensors.

    config, tensors = read(folder)        # their config.json and model.safetensors, or its shards
                                          # -> ours
    write(folder, config, tensors, ...)   # ours -> a folder that transformers opens, and what
                                          # builds on it (vLLM)

Tensors keep their precision, so theirs -> ours -> theirs gives the same bits; `architectures.py`
says what lies between the two. What a model of theirs must have and one of ours may lack without
computing anything else (biases, gains, positions) is written as zeros or ones.

Not read: pickled weights (pytorch_model.bin: opening such a file can run what its author put into
it) and quantised ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.checkpoint import write_tensors
from lmsmith.errors import CheckpointError
from lmsmith.interop.architectures import architecture_for, architecture_of, completed, listed
from lmsmith.interop.defaults import Defaults
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.strict_json import to_json

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def read(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Settings and tensors, ours by name and form, in the precision they are stored in.

    Raises CheckpointError for files that are missing, damaged or do not fit each other, with the
    tensors' names; ConfigError for a model that ours cannot compute, with the reason.
    """
    path = folder / "config.json"
    found = _read_json(path)
    architecture = architecture_of(found, path)
    config = architecture.read_settings(found, path)
    theirs = _read_tensors(folder)
    return config, architecture.to_ours(config, theirs, folder)


def read_ends(folder: Path) -> tuple[int | None, list[int]]:
    """The ids that begin and end a text: generation_config.json says them, or config.json.
    Raises CheckpointError.
    """
    found = _read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        said = _read_json(folder / "generation_config.json")
        found |= {
            name: said[name]
            for name in ("bos_token_id", "eos_token_id")
            if said.get(name) is not None
        }
    begin, ends = found.get("bos_token_id"), found.get("eos_token_id")
    several = ends if isinstance(ends, list) else [ends]
    return begin if type(begin) is int else None, [end for end in several if type(end) is int]


def write(
    folder: Path,
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    *,
    begin: int | None = None,
    ends: Sequence[int] = (),
    pad: int | None = None,
    defaults: Defaults | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes config.json, generation_config.json and model.safetensors; returns size and SHA-256 of
    the last.

    `begin`, `ends` and `pad`: ids that stand before and after a text. `defaults`: those of the
    model that was imported. Raises ConfigError where no architecture of theirs computes what this
    config says, OSError where it cannot write.
    """
    architecture = architecture_for(config)
    config, tensors = completed(config, tensors)
    ids = {
        "bos_token_id": begin,
        "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None),
    }
    settings = architecture.write_settings(config) | ids
    settings["torch_dtype"] = str(tensors["token_embedding.weight"].dtype).removeprefix("torch.")
    if defaults and defaults.pads_in_config and pad is not None:
        settings["pad_token_id"] = pad
    _write_json(folder / "config.json", settings)
    generation = (defaults.generation if defaults else {}) | ids | {"pad_token_id": pad}
    _write_json(folder / "generation_config.json", generation)
    theirs = architecture.to_theirs(config, tensors)
    return {WEIGHTS: write_tensors(folder / WEIGHTS, theirs, {"format": "pt"})}


def files_of(folder: Path) -> list[Path]:
    """The files that hold settings and weights. Raises CheckpointError where there are none that
    can be read.
    """
    if (
        folder / WEIGHTS
    ).is_file():  # before an index that is left over from an earlier save, as in transformers
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        names = sorted(set(weight_map(folder).values()))
    else:
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        why = (
            f" {pickled.name} is not read: pickled files can run code when opened."
            if pickled
            else ""
        )
        raise CheckpointError(
            f"{folder} has no {WEIGHTS} and no {INDEX}.{why} Wanted weights as safetensors, which "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` of transformers "
            "writes."
        )
    return [folder / "config.json", *(folder / name for name in names)]


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of all files. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in files_of(folder)[1:]:
        try:
            tensors |= safetensors.torch.load_file(path)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path} is missing, and {INDEX} names it: copy all parts."
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{path} is no whole safetensors file ({error}): copy it again."
            ) from error
    if not (folder / WEIGHTS).is_file():
        absent = sorted(set(weight_map(folder)) - set(tensors))
        if absent:
            raise CheckpointError(
                f"{folder / INDEX} names tensors that its files do not hold: {listed(absent)}."
            )
    return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """Which file holds which tensor, of a checkpoint in parts. Raises CheckpointError."""
    found = _read_json(folder / INDEX).get("weight_map")
    good = isinstance(found, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in found.values()
    )
    if not good or not found:
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map from tensors to files beside it: copy it again."
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = foreign_json.read(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: wanted a folder as save_pretrained of transformers writes it."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__}, wanted an object: copy it again."
        )
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
