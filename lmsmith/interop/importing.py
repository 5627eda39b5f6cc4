"""A model of another program -> a run folder.

    RUN/model/          weights in the precision they came in, config.json, tokenizer.json,
                        huggingface.json
    RUN/config.toml     the preset with the model's settings
    RUN/summary.json    where it came from, with the SHA-256 of each file

`generate`, `eval` and `export` take it as they take a trained run. The text and the checkpoints of
its training are not there, so it cannot be resumed.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith import atomic
from lmsmith.checkpoint import check_finite, save_model
from lmsmith.config import flatten
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError, StorageError, TokenizerError, UsageError
from lmsmith.hashes import sha256_of
from lmsmith.interop import defaults, gguf_importing, hub, huggingface, llmc, vocabulary
from lmsmith.interop.gguf_file import is_gguf
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.run_folder import free_place
from lmsmith.strict_json import write_json
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# llm.c's files hold no tokenizer; where none lies beside, a model of this many has GPT-2's
GPT2_VOCABULARY = 50_257
WITHOUT = "none"


def import_model(
    source: str,
    *,
    out: Path | None = None,
    tokenizer: str | None = None,
    eos_token: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Makes a run folder of a Hugging Face folder, a GGUF or llm.c file, or a name on the Hub;
    returns it and its summary.

    An llm.c file can be named by its folder, where it is model.bin, as `export` writes it.

    `tokenizer`: a folder or file, "gpt2", or "none"; without it the one beside the weights.
    `eos_token`: the token between documents, by name. Raises LmsmithError of every kind; nothing
    appears then.
    """
    path = Path(source)
    if not (path / "config.json").is_file() and (path / llmc.FILE_NAME).is_file():
        path = path / llmc.FILE_NAME
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{source} is a run of lmsmith, which every verb takes as it is: nothing to import."
        )
    if path.is_file() and is_gguf(path):
        return _import_gguf(path, out, tokenizer, eos_token)
    if path.is_file():
        if not llmc.is_llmc(path):
            raise UsageError(
                f"{path} is no llm.c checkpoint. Of a Hugging Face checkpoint name the folder: "
                f"its config.json is "
                "needed too."
            )
        form, files = "llm.c", [path]
    else:
        if not path.is_dir() and not hub.is_name(source):
            raise UsageError(
                f"there is no {source}. Wanted a folder with config.json and model.safetensors, "
                f"an llm.c file, or the "
                "name of a model on the Hub, such as gpt2."
            )
        path = path if path.is_dir() else hub.fetch(source)
        form, files = "huggingface", huggingface.files_of(path)
    place = free_place(out, Path(source).absolute().name.removesuffix(".bin"))
    config, tensors = llmc.read(path) if form == "llm.c" else huggingface.read(path)
    check_finite(tensors, f"the model in {path}", "Take another copy.")
    found = _tokenizer(tokenizer, path, config, eos_token)
    sha256 = {file.name: sha256_of(file) for file in files}
    for file in files:
        hub.check(file, sha256[file.name])
    summary = _summary(config, tensors, found)
    summary["imported"] = {"from": source, "form": form, "sha256": sha256}
    limits, kept = {}, None
    if form == "huggingface":
        limits = _limits(tokenizer, path, found)
        kept = defaults.find(path, _tokenizer_folder(tokenizer, path) if found else None)
    _write(place, config, tensors, found, limits, kept, summary)
    return place, summary


def _import_gguf(
    path: Path, out: Path | None, tokenizer: str | None, eos_token: str | None
) -> tuple[Path, dict[str, Any]]:
    """Makes a run of a GGUF file; returns its folder and its summary."""
    place = free_place(out, path.stem)
    content = gguf_importing.read(path, tokenizer=tokenizer is None, eos_token=eos_token)
    found = content.tokenizer
    if tokenizer is not None:
        found = _tokenizer(tokenizer, path, content.config, eos_token)
    tensors = content.tensors()
    summary = _summary(content.config, tensors, found)
    sha256 = {path.name: sha256_of(path)}
    summary["imported"] = {"from": str(path), "form": "gguf", "sha256": sha256} | content.about()
    _write(place, content.config, tensors, found, content.limits, content.defaults, summary)
    return place, summary


def _tokenizer(
    wanted: str | None, path: Path, config: GPTConfig, eos_token: str | None = None
) -> Tokenizer | None:
    """Raises TokenizerError, ConfigError for one that does not fit. None: asked for, or there is
    none.
    """
    if wanted == WITHOUT:
        return None
    try:
        found = (
            load_tokenizer(wanted, end_of_text=eos_token)
            if wanted
            else _beside(path, config, eos_token)
        )
    except TokenizerError as error:
        if wanted:
            raise
        raise TokenizerError(
            f"{error} Give a tokenizer that fits with --tokenizer FOLDER, or import the weights "
            f"alone with --tokenizer "
            f"{WITHOUT}."
        ) from error
    if found is None:
        log.warning(
            "%s has no tokenizer: the weights alone are imported. generate and eval need one: "
            "import again with "
            "--tokenizer FOLDER.",
            path,
        )
        return None
    n_ids, rows = found.vocab_size, config.vocab_size
    if n_ids > rows:
        raise ConfigError(
            f"the tokenizer has {n_ids:,} ids and the model's table {rows:,} rows: name another "
            f"--tokenizer."
        )
    if n_ids < rows and isinstance(found, BpeTokenizer):  # the rest are rows that no text has
        found = found.changed(n_ids=rows)
    elif n_ids < rows:
        log.warning(
            "the tokenizer has %s ids and the model's table %s rows: the rest stand for nothing",
            n_ids,
            rows,
        )
    return found


def _beside(path: Path, config: GPTConfig, eos_token: str | None) -> Tokenizer | None:
    folder = path.parent if path.is_file() else path
    if any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")
    ):
        return vocabulary.load(folder, eos_token)
    return (
        load_tokenizer("gpt2", end_of_text=eos_token)
        if path.is_file() and config.vocab_size == GPT2_VOCABULARY
        else None
    )


def _tokenizer_folder(wanted: str | None, path: Path) -> Path | None:
    """The folder whose tokenizer was taken, if it was one."""
    if wanted is None:
        return path
    return Path(wanted) if Path(wanted).is_dir() else None


def _limits(wanted: str | None, path: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that stand before and after a text, where these are not the tokenizer's end of text
    (Llama 3).

    Many a config.json names ids that its tokenizer uses for text: only added tokens end a text,
    special or not.
    """
    begin, ends = huggingface.read_ends(path)
    if tokenizer is not None:
        begin = vocabulary.begin_of(Path(wanted) if wanted else path, tokenizer)
        added = vocabulary.added_ids(tokenizer)
        ends = [end for end in ends if end in added]
    limits: dict[str, Any] = {} if begin is None else {"begin": begin}
    end_of_text = tokenizer.end_of_text if tokenizer else None
    return limits | ({"ends": ends} if ends and ends != [end_of_text] else {})


def _summary(
    config: GPTConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What a trained run's summary holds, as far as it is known."""
    unknown = (
        "tokens_seen val_loss val_bits_per_byte train_seconds wall_seconds "
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
    place: Path,
    config: GPTConfig,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    limits: dict[str, Any],
    kept: defaults.Defaults | None,
    summary: dict[str, Any],
) -> None:
    run = preset("gpt2" if config.norm == "layernorm" else "llama")
    # By its place in the run, so that the run can be moved.
    run = dataclasses.replace(run, model=config, tokenizer="model" if tokenizer else "auto")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, place)) from error
    with atomic.folder(
        place, replace=place.is_dir()
    ) as partial:  # `place` is empty where it is there
        save_model(partial / "model", tensors, {"model": flatten(vars(config)), "step": 0} | limits)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial / "model")
        if kept is not None:
            kept.save(partial / "model")
        atomic.write(partial / "config.toml", run.to_toml())
        write_json(partial / "summary.json", summary)
