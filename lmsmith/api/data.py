"""Calls about data: prepare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmsmith.api.lm import SpecialTokens
from lmsmith.api.progress import Progress, Shown, showing
from lmsmith.api.run import Folder, paths

if TYPE_CHECKING:
    from lmsmith.data.manifest import Manifest
    from lmsmith.tokens.tokenizer import Tokenizer


def prepare(
    sources: Folder | Sequence[Folder],
    out: Folder,
    *,
    tokenizer: Folder | Tokenizer = "gpt2",
    shard_tokens: int = 100_000_000,
    validation_fraction: float = 0.0,
    validation: Folder | Sequence[Folder] = (),
    dedup: Literal["none", "exact", "near"] = "none",
    skip_bad: bool = False,
    workers: int = 0,
    engine: Literal["local", "ray"] = "local",
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
    progress: Shown = None,
) -> Manifest:
    """Turns text of any size into the folder `out` of token shards, and returns its manifest.

    An interrupted call leaves `out`.partial, and the same call resumes there. Train on the result
    with `lmsmith.train(out)`.

    sources              text files, folders, globs, corpora by name
    tokenizer            one; or gpt2, bpe:SIZE (learned from the text), byte, char, word, a folder
    shard_tokens         tokens of each shard
    validation_fraction  share of the text held out; 0: chosen by the text's size
    validation           files of validation text; all of `sources` is then for training
    dedup                drop documents equal to earlier ones, or near them by MinHash
    skip_bad             skip what cannot be read; name and count it
    workers              processes; 0: one per core
    engine               this machine, or a Ray cluster
    text_field ... special_tokens: how text is read, as the settings `data.*`

    Raises DataError for text that cannot be read, ConfigError for settings that do not fit,
    TokenizerError, StorageError.
    """
    from lmsmith.data.prepare.build import build_shards

    with showing(progress) as console, Progress(console) as tell:
        return build_shards(
            paths(sources),
            Path(out),
            tokenizer=os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer,
            shard_tokens=shard_tokens,
            dedup=dedup,
            validation_fraction=validation_fraction,
            text_field=text_field,
            encoding=encoding,
            errors=errors,
            skip_bad=skip_bad,
            document_separator=document_separator,
            special_tokens=special_tokens,
            validation=paths(validation),
            workers=workers,
            engine=engine,
            tell=tell,
        )
