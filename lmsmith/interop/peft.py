"""Writes the adapters of a run with LoRA in the format of PEFT.

    adapter_config.json, adapter_model.safetensors    read by `PeftModel.from_pretrained`
    tokenizer.json, tokenizer_config.json             with the chat template and its tokens

The adapters belong to the model that the run started from, exported with `export --to hf`. If a
chat template added tokens, its embedding table has to grow first, to the number of ids in
`receipt.json` (`model.resize_token_embeddings`); the adapter holds the learned tables.

GPT-2 has one matrix for queries, keys and values. Its adapter is that of the three maps side by
side: A stacked, B block-diagonal, with three times the rank and the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.config import read_toml
from lmsmith.config.lora import LoraConfig
from lmsmith.errors import CheckpointError, ConfigError, UsageError
from lmsmith.interop.architectures import architecture_for
from lmsmith.interop.pieces import Piece
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.lora import A, B, adapted_maps
from lmsmith.strict_json import write_json
from lmsmith.train.adapter import FOLDER, SETTINGS, WEIGHTS
from lmsmith.weights_file import write_tensors

_PREFIX = "base_model.model."


def write(folder: Path, run: Path, config: GPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes the adapters of `run` into `folder`. `tensors`: the weights of its merged model.

    Raises UsageError for a run without adapters, CheckpointError for damaged ones, ConfigError if
    no architecture of transformers computes the model.
    """
    learned, lora = _read(run)
    architecture = architecture_for(config)
    config, tensors = architecture.completed(config, dict(tensors))
    table = architecture.pieces(config)
    with torch.device("meta"):
        model = GPT(config)
    parts_of, found = model.parts(), dict[str, Tensor]()
    ranks, modules = dict[str, int](), list[str]()
    for i in range(config.n_layer):
        for matrix, adapted in adapted_maps(model, lora).items():
            name = f"blocks.{i}.{matrix}"
            a, b = learned[f"{name}.{A}"], learned[f"{name}.{B}"]
            pieces = table[f"{name}.weight"]
            parts = parts_of.get(f"{name}.weight", [sum(piece.n_rows for piece in pieces)])
            for piece, low, high in _pairs(a, b, lora.rank, parts, adapted, pieces):
                module = piece.name.removesuffix(".weight")
                short = ".".join(module.split(".")[-2:])
                found[f"{_PREFIX}{module}.lora_A.weight"] = low.contiguous()
                turned = high if piece.transposed else piece.to_theirs(high)
                found[f"{_PREFIX}{module}.lora_B.weight"] = turned.contiguous()
                modules += [] if short in modules else [short]
                if low.size(0) != lora.rank:
                    ranks[short] = low.size(0)
    saved = []
    if lora.embeddings == "yes":
        ids = table["token_embedding.weight"][0]
        head = tensors.get("head.weight", tensors["token_embedding.weight"])
        for name, rows in ((ids.name, tensors["token_embedding.weight"]), ("lm_head.weight", head)):
            found[_PREFIX + name] = rows[: config.vocab_size].clone()
            saved.append(name.split(".")[-2])
    write_tensors(folder / "adapter_model.safetensors", found, {"format": "pt"})
    write_json(folder / "adapter_config.json", _settings(run, lora, modules, ranks, saved, table))


def _settings(
    run: Path,
    lora: LoraConfig,
    modules: list[str],
    ranks: Mapping[str, int],
    saved: list[str],
    table: Mapping[str, list[Piece]],
) -> dict[str, Any]:
    transposed = any(piece.transposed for pieces in table.values() for piece in pieces)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(read_toml(run / "config.toml").get("train.init_from", "")),
        "r": lora.rank,
        "lora_alpha": lora.width,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "target_modules": modules,
        "modules_to_save": saved or None,
        "rank_pattern": dict(ranks),
        "alpha_pattern": {name: lora.scale * rank for name, rank in ranks.items()},
    }


def _pairs(
    a: Tensor, b: Tensor, rank: int, parts: list[int], adapted: list[bool], pieces: list[Piece]
) -> list[tuple[Piece, Tensor, Tensor]]:
    """A and B of each of their matrices that has an adapter."""
    kept = [rows for rows, one in zip(parts, adapted, strict=True) if one]
    pairs = iter(list(zip(a.split(rank), b.split(kept), strict=True)))
    if len(pieces) == len(parts):
        return [(piece, *next(pairs)) for piece, one in zip(pieces, adapted, strict=True) if one]
    (piece,) = pieces
    high, row, column = b.new_zeros(sum(parts), a.size(0)), 0, 0
    for rows, one in zip(parts, adapted, strict=True):
        if one:
            high[row : row + rows, column : column + rank] = next(pairs)[1]
            column += rank
        row += rows
    return [(piece, a, high)]


def _read(run: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    place = run / FOLDER
    if not place.is_dir():
        raise UsageError(
            f"{run} has no adapters: it was not trained with LoRA (lora.rank). Export its model "
            "with --to hf."
        )
    try:
        values = foreign_json.read(place / SETTINGS)["lora"]
        lora = LoraConfig(**values | {"targets": tuple(values["targets"])})
        return safetensors.torch.load_file(place / WEIGHTS), lora
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ConfigError,
        safetensors.SafetensorError,
    ) as e:
        raise CheckpointError(
            f"{place} is damaged ({e}). Resume the run: the next save rewrites it."
        ) from e
