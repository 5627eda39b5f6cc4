"""`prepare`: text to token shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmsmith.api.generation import SpecialTokens
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
    """Tokenizes text of any size into a folder `out` of token shards, and returns its manifest.

    An interrupted call leaves the folder `out`.partial; the same call resumes there. Train on the
    result with `lmsmith.train(out)`.

    sources              text files, folders, globs, names of corpora
    tokenizer            a Tokenizer or its folder, gpt2, bpe:SIZE (learned from the text), byte,
                         char or word
    shard_tokens         tokens per shard
    validation_fraction  share of the text held out for validation; 0: depends on the text's size
    validation           files of validation text; all of `sources` is then for training
    dedup                deduplication: drop documents that repeat an earlier one exactly, or nearly
                         (MinHash)
    skip_bad             skip lines, rows and files that cannot be read; name and count them
    workers              number of worker processes; 0: one per core
    engine               local: this machine; ray: a Ray cluster
    text_field, encoding, errors, document_separator, special_tokens
                         how text is read: the settings `data.*`

    Raises DataError for text that cannot be read, ConfigError for invalid settings, TokenizerError
    for a tokenizer that cannot be used, StorageError if `out` cannot be written.
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
