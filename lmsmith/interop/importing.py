"""Imports a model of another program as a run folder.

    RUN/model/          weights in their original precision, config.json, tokenizer.json,
                        huggingface.json
    RUN/config.toml     the preset with the model's settings
    RUN/summary.json    the source, with the SHA-256 of each file

`generate`, `eval` and `export` accept it like a trained run. It has no training text and no
checkpoints, so it cannot be resumed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith import atomic
from lmsmith.checkpoint import save_model
from lmsmith.config import flatten
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError, StorageError, TokenizerError, UsageError
from lmsmith.hashes import sha256_of
from lmsmith.interop import (
    defaults,
    gguf_file,
    gguf_importing,
    hub,
    huggingface,
    llmc,
    nanochat,
    nanogpt,
    vocabulary,
)
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.run_folder import new_run_path
from lmsmith.strict_json import write_json
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.weights_file import check_finite

log = logging.getLogger(__name__)

# llm.c's files hold no tokenizer. If there is none in the folder, a model with this vocabulary size
# gets GPT-2's.
GPT2_VOCABULARY = 50_257
WITHOUT = "none"


def import_model(
    source: str,
    *,
    out: Path | None = None,
    tokenizer: str | None = None,
    eos_token: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Imports a Hugging Face folder, a GGUF, llm.c or nanoGPT file, or a model on the Hub.

    Returns the run folder and its summary.

    `source` may also be the folder of a model.gguf or an llm.c model.bin, as `export` writes them.
    `out`: the run folder; by default a new one below runs/. `tokenizer`: a folder or file, "gpt2",
    or "none"; by default the tokenizer in the model's folder. `eos_token`: the token that separates
    documents, by name.

    Raises a subclass of LmsmithError for every problem, and then writes nothing.
    """
    path = _located(source)
    if path.is_file() and gguf_file.is_gguf(path):
        return _import_gguf(path, out, tokenizer, eos_token)
    form, path, files = _recognized(source, path)
    run_folder = new_run_path(out, Path(source).absolute().name.removesuffix(".bin"))
    readers = {
        "llm.c": llmc.read,
        "nanoGPT": nanogpt.read,
        "nanochat": nanogpt.read,
        "huggingface": huggingface.read,
    }
    config, tensors = readers[form](path)
    check_finite(tensors, f"the model in {path}", "Use another copy.")
    loaded = _tokenizer(tokenizer, path, config, eos_token)
    sha256 = {file.name: sha256_of(file) for file in files}
    for file in files:
        hub.check(file, sha256[file.name])
    summary = _summary(config, tensors, loaded)
    summary["imported"] = {"from": source, "form": form, "sha256": sha256}
    limits, hf_defaults = {}, None
    if form == "huggingface":
        limits = _limits(tokenizer, path, loaded)
        tokenizer_folder = _tokenizer_folder(tokenizer, path) if loaded else None
        hf_defaults = defaults.find(path, tokenizer_folder)
    _write(run_folder, config, tensors, loaded, limits, hf_defaults, summary)
    return run_folder, summary


def _located(source: str) -> Path:
    """The file or folder that `source` names. For a folder of a GGUF, llm.c or nanoGPT model, this
    is the model's file. Raises CheckpointError for a run.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        exported = [path / name for name in (llmc.FILE_NAME, gguf_file.FILE_NAME)]
        known = next((file for file in exported if file.is_file()), None)
        path = known or nanogpt.checkpoint_in(path) or path
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{source} is already a run of lmsmith: there is nothing to import. Use it directly."
        )
    return path


def _recognized(source: str, path: Path) -> tuple[str, Path, list[Path]]:
    """The form of a model other than GGUF, its place, and its files. Downloads a model that
    `source` names on the Hub. Raises UsageError if there is no model.
    """
    if path.is_file() and nanogpt.is_checkpoint(path):
        files = nanochat.files_of(path)
        return ("nanochat", path, files) if files else ("nanoGPT", path, [path])
    if path.is_file():
        if not llmc.is_llmc(path):
            raise UsageError(
                f"{path} is not a model that can be imported: expected a GGUF file, an llm.c "
                "checkpoint (model.bin) or a checkpoint of nanoGPT (ckpt.pt). To import a Hugging "
                "Face checkpoint, give its folder, which also holds config.json."
            )
        return "llm.c", path, [path]
    if not path.is_dir() and not hub.is_name(source):
        raise UsageError(
            f"there is no file, folder or model named {source}. Expected a folder with "
            "config.json and model.safetensors, a GGUF, llm.c or nanoGPT file, or the name of "
            "a model on the Hub, such as gpt2."
        )
    folder = path if path.is_dir() else hub.fetch(source)
    return "huggingface", folder, huggingface.files_of(folder)


def _import_gguf(
    path: Path, out: Path | None, tokenizer: str | None, eos_token: str | None
) -> tuple[Path, dict[str, Any]]:
    """Makes a run of a GGUF file; returns its folder and its summary."""
    place = new_run_path(out, path.stem)
    content = gguf_importing.read(path, tokenizer=tokenizer is None, eos_token=eos_token)
    found = content.tokenizer
    if tokenizer is not None:
        found = _tokenizer(tokenizer, path, content.config, eos_token)
    shapes = content.shapes
    summary = _summary(content.config, shapes, found)
    sha256 = {path.name: sha256_of(path)}
    summary["imported"] = {"from": str(path), "form": "gguf", "sha256": sha256} | content.about()
    _write(
        place,
        content.config,
        shapes,
        found,
        content.limits,
        content.defaults,
        summary,
        load=content.tensor,
    )
    return place, summary


def _tokenizer(
    requested: str | None, path: Path, config: GPTConfig, eos_token: str | None = None
) -> Tokenizer | None:
    """Loads the model's tokenizer. None if "none" was requested, or if there is no tokenizer.

    Raises TokenizerError if it cannot be loaded, ConfigError if it does not fit the model.
    """
    if requested == WITHOUT:
        return None
    try:
        tokenizer: Tokenizer | None
        if requested and Path(requested).suffix == ".pkl":
            tokenizer = nanogpt.read_meta(Path(requested))
        elif requested:
            tokenizer = load_tokenizer(requested, end_of_text=eos_token)
        else:
            tokenizer = _beside(path, config, eos_token)
    except TokenizerError as error:
        if requested:
            raise
        raise TokenizerError(
            f"{error} Give a matching tokenizer with --tokenizer FOLDER, or import only the "
            f"weights with --tokenizer {WITHOUT}."
        ) from error
    if tokenizer is None:
        log.warning(
            "%s has no tokenizer: only the weights are imported. generate and eval need a "
            "tokenizer: import again with --tokenizer FOLDER.",
            path,
        )
        return None
    n_ids, rows = tokenizer.vocab_size, config.vocab_size
    if n_ids > rows:
        raise ConfigError(
            f"the tokenizer has {n_ids:,} ids, but the model's embedding table has {rows:,} rows: "
            "give the model's own tokenizer with --tokenizer."
        )
    if n_ids < rows and isinstance(tokenizer, BpeTokenizer):  # the other rows have no token
        tokenizer = tokenizer.changed(n_ids=rows)
    elif n_ids < rows:
        log.warning(
            "the tokenizer has %s ids, but the model's embedding table has %s rows: the other rows "
            "have no token",
            n_ids,
            rows,
        )
    return tokenizer


def _beside(path: Path, config: GPTConfig, eos_token: str | None) -> Tokenizer | None:
    """The tokenizer in the model's folder; for an llm.c file without one, GPT-2's if it fits."""
    folder = path.parent if path.is_file() else path
    if any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")
    ):
        return vocabulary.load(folder, eos_token)
    if path.is_file() and nanogpt.is_checkpoint(path):
        found = nanogpt.tokenizer_beside(path, config.vocab_size)
        return load_tokenizer(found, end_of_text=eos_token) if isinstance(found, str) else found
    return (
        load_tokenizer("gpt2", end_of_text=eos_token)
        if path.is_file() and config.vocab_size == GPT2_VOCABULARY
        else None
    )


def _tokenizer_folder(requested: str | None, path: Path) -> Path | None:
    """The folder that the tokenizer was loaded from; None if it was not a folder."""
    if requested is None:
        return path
    return Path(requested) if Path(requested).is_dir() else None


def _limits(requested: str | None, path: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that begin (`begin`) and end (`ends`) a text, where they differ from the tokenizer's
    end-of-text token (Llama 3).

    Some config.json files name ids of ordinary text, so only added tokens, special or not, can end
    a text.
    """
    begin, ends = huggingface.read_ends(path)
    if tokenizer is not None:
        begin = vocabulary.begin_of(Path(requested) if requested else path, tokenizer)
        added = vocabulary.added_ids(tokenizer)
        ends = [end for end in ends if end in added]
    limits: dict[str, Any] = {} if begin is None else {"begin": begin}
    end_of_text = tokenizer.end_of_text if tokenizer else None
    return limits | ({"ends": ends} if ends and ends != [end_of_text] else {})


def _summary(
    config: GPTConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The summary of a run; None for values that only training would give."""
    unknown = (
        "tokens_seen tokens_read val_loss val_bits_per_byte train_seconds wall_seconds "
        "seconds_to_target tokens_per_second mfu"
    )
    return {
        "n_params": sum(tensor.numel() for tensor in tensors.values()),
        "steps": 0,
        **dict.fromkeys(unknown.split()),
        "dtype": str(tensors["token_embedding.weight"].dtype).removeprefix("torch."),
        "finished": "imported",
        "tokenizer": tokenizer.kind if tokenizer else None,
        "vocab_size": config.vocab_size,
    }


def _write(
    run_folder: Path,
    config: GPTConfig,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    limits: dict[str, Any],
    hf_defaults: defaults.Defaults | None,
    summary: dict[str, Any],
    load: Callable[[str], Tensor] | None = None,
) -> None:
    if isinstance(config, GPTConfig):
        per_dimension = config.qk_norm and config.qk_gain == "dimension"
        nearest = "gpt2" if config.norm == "layernorm" else "qwen3" if per_dimension else "llama"
        run = preset(nearest)
    else:
        run = preset(config.kind)
    # The tokenizer's path is relative to the run, so that the run can be moved.
    run = dataclasses.replace(run, model=config, tokenizer="model" if tokenizer else "auto")
    try:
        run_folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, run_folder)) from error
    # `new_run_path` made sure that a folder which exists is empty.
    with atomic.folder(run_folder, replace=run_folder.is_dir()) as partial:
        about = {"model": flatten(vars(config)), "step": 0} | limits
        save_model(partial / "model", tensors, about, load)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial / "model")
        if hf_defaults is not None:
            hf_defaults.save(partial / "model")
        atomic.write(partial / "config.toml", run.to_toml())
        write_json(partial / "summary.json", summary)
