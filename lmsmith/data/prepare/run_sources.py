"""Prepares the data of a run: its sources, each text or ready-made shards, become one corpus.

    corpus = prepare_run(config.data, "auto", RUN / "tokens")

`data/corpus.py` lists the files. `run_text.py` prepares text alone without mixture weights, and
`named_validation.py` prepares validation text that the user names. Otherwise a part of each source
is held out here.

All sources share one tokenizer: that of the shards, if there are any. Sources with weights are
mixed row by row (`data/batches/mixture.py`); others are one stream. The validation split is that of
all sources, concatenated.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lmsmith.config import DataConfig
from lmsmith.data.corpus import FORMAT, Corpus, Counts, join_sources, open_source
from lmsmith.data.prepare.named_validation import prepare_named_validation
from lmsmith.data.prepare.run_text import documents_of, prepare_text
from lmsmith.data.prepare.source_tokens import (
    SourceTokens,
    common_tokenizer,
    of_text,
    total,
    trust_note,
    validation_text,
    weigh,
    write_sources,
)
from lmsmith.data.ready import Ready, find_shard_folder, open_shard_folder
from lmsmith.errors import ConfigError
from lmsmith.text.files import plural, read_errors, size_and_time
from lmsmith.text.held_out import held_out_share, split_documents
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer


def prepare_run(data: DataConfig, tokenizer: str, folder: Path) -> Corpus:
    """Reads the sources and writes `folder`. Raises DataError, ConfigError, TokenizerError,
    StorageError.
    """
    named = (*data.paths, *data.validation)
    places = {path: find_shard_folder(path, one_sided=bool(data.validation)) for path in named}
    if data.validation and data.validation_fraction:
        raise ConfigError(
            f"data.validation = {', '.join(data.validation)} names the validation text, and "
            f"data.validation_fraction = {data.validation_fraction:g} would hold out some of "
            "SOURCE. Set only one of them."
        )
    if data.validation_tokens and not any(places.values()):
        raise ConfigError(
            "data.validation_tokens is for folders of shards. For text, set "
            "data.validation_fraction."
        )
    if data.validation_fraction and all(places.values()):
        raise ConfigError(
            "data.validation_fraction is for text, and shards are already split. Remove it, or "
            "score fewer validation tokens with data.validation_tokens."
        )
    if not data.mixture and not any(places.values()):
        return prepare_text(data, tokenizer, folder)
    if data.validation:
        return prepare_named_validation(data, tokenizer, folder, places)
    ready = {path: open_shard_folder(place) for path, place in places.items() if place is not None}
    texts = tuple(path for path in data.paths if path not in ready)
    data = _with_one_fraction(data, texts, _share_of_shards(ready.values()))
    compared = data.mixture and (not ready or len(texts) > 1)
    shared_tokenizer = common_tokenizer(
        tokenizer, ready, _read_apart(data, texts) if compared else []
    )
    save_tokenizer(shared_tokenizer, folder)
    # Texts without weights are one source: duplicates are reported, and their documents are split
    # together.
    groups = (
        [(path,) for path in data.paths]
        if data.mixture
        else [*((path,) for path in ready), *([texts] if texts else [])]
    )
    parts = [
        _of_ready(ready[paths[0]], data, shared_tokenizer, folder)
        if paths[0] in ready
        else _of_text(replace(data, sources=paths, mixture=()), folder, f"source-{number}")
        for number, paths in enumerate(groups, start=1)
    ]
    records = [part.record for part in parts]
    counts = total([part.counts for part in parts])
    if len(parts) > 1 and ready and (texts or not _share_of_shards(ready.values())):
        note = (
            "a document that is in shards and in another source may be in validation in one and "
            "in training in the other"
        )
        counts = replace(counts, notes=(note, *counts.notes))
    if data.mixture:
        counts = weigh(data, records, counts)
    write_sources(folder, FORMAT, records, counts, [part.text for part in parts])
    return join_sources([part.opened for part in parts], records, shared_tokenizer, counts)


def _with_one_fraction(data: DataConfig, texts: Sequence[str], of_shards: float) -> DataConfig:
    """Sets one validation fraction for all texts, so that a document in two of them is in the same
    split in both.

    If the shards have one fraction (`of_shards`), that is used: then the same holds for documents
    that are in shards and in text.

    Raises ConfigError if a file is in two sources: if its tail is held out of one, the other would
    train on it.
    """
    seen: dict[Path, str] = {}
    n_bytes = 0
    for path in texts:
        for file in documents_of(data, [path]).files:
            with read_errors(file):
                n_bytes += size_and_time(file)[0]
            if (other := seen.setdefault(file.resolve(), path)) != path:
                raise ConfigError(
                    f"{file} is in two sources, {other} and {path}: text held out of one would "
                    "be in training in the other. Name it once."
                )
    share = held_out_share(data.validation_fraction or of_shards, many=True, n_characters=n_bytes)
    return replace(data, validation_fraction=share) if texts else data


def _share_of_shards(ready: Iterable[Ready]) -> float:
    """Returns the fraction of documents that all shards hold out by hash, which puts equal
    documents into the same split; 0 if they differ.
    """
    settings = [shards.manifest.settings if shards.manifest else {} for shards in ready]
    by_hash = all(each.get("split") == "documents" for each in settings)
    shares = {float(each.get("validation_fraction", 0)) for each in settings}
    return shares.pop() if by_hash and len(shares) == 1 else 0.0


def _of_ready(ready: Ready, data: DataConfig, tokenizer: Tokenizer, folder: Path) -> SourceTokens:
    """Returns the tokens of shards, with their own split."""
    record = {
        "shards": str(ready.folder),
        **ready.identity(),
        "validation_tokens": data.validation_tokens,
    }
    train, validation = opened = open_source(record, folder, tokenizer.vocab_size)
    notes = [f"{ready.folder}: {note}" for note in ready.manifest.notes] if ready.manifest else []
    splits = [ready.manifest.splits["val"]] if ready.manifest else []
    known = validation_text(validation, splits, tokenizer, ready.folder)
    notes += [*known.notes, *trust_note(ready, ready.folder)]
    counts = Counts(len(train), len(validation), *known[:3], notes=tuple(notes))
    return SourceTokens(record, opened, counts, known.text)


def _of_text(data: DataConfig, folder: Path, name: str) -> SourceTokens:
    """Encodes a text source into a folder of its own, with the tokenizer in `folder`."""
    corpus = prepare_text(data, str(folder), folder / name)
    return of_text(corpus, data.sources, {"text": name}, folder / name)


def _read_apart(data: DataConfig, paths: Sequence[str]) -> list[str]:
    """Returns the training part of all mixed texts.

    Raises ConfigError if a document held out of one text, or its tail, is in the training part of
    another. (With few documents, tails are held out; with many, the same documents in every text.)
    """
    texts: list[str] = []
    train: dict[str, Collection[int]] = {}
    held_out: dict[str, frozenset[int]] = {}
    for path in paths:
        split = split_documents(documents_of(data, [path]), data.validation_fraction)
        texts += split.train
        train[path], held_out[path] = split.train_hashes, frozenset(split.validation_hashes)
    for one, other in itertools.permutations(train, 2):
        if shared := held_out[one].intersection(train[other]):
            where = [
                next(
                    document.source
                    for document in documents_of(data, [path])
                    if document.hash in shared
                )
                for path in (one, other)
            ]
            raise ConfigError(
                f"{plural(len(shared), 'document')} of the source {one} "
                f"{'is' if len(shared) == 1 else 'are'} also in {other} (for example, {where[0]} "
                f"is {where[1]}): text held out of the first would be in training in the second. "
                "Remove it from one of them."
            )
    return texts
