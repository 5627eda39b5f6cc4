"""Lists the contents of a folder of token shards, or of one shard, and verifies it on request.

Counts come from the manifest, if there is one, and from the shards' headers, which are always read.
`verify` reads every byte: it checks hashes against the manifest and ids against the vocabulary, and
recounts documents and bytes of text (the divisor of bits per byte).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmsmith.data.manifest import FILE_NAME, SPLITS, ShardRecord
from lmsmith.data.ready import Ready, find_shard_folder, open_shard_folder
from lmsmith.data.shards import Shards, check_ids, read_shard
from lmsmith.errors import DataError, TokenizerError
from lmsmith.hashes import sha256_of
from lmsmith.text.files import plural
from lmsmith.tokens.tokenizer import Tokenizer

N_FIRST = 64
"""Tokens shown from the beginning of a split."""

_BLOCK = 2**22  # ids processed at a time

Tell = Callable[[str, int, int], None]
"""Progress callback: (task, bytes done, bytes in total)."""


@dataclass(frozen=True)
class Split:
    """The shards of one split. `bits`: size of an id on disk. `begins`: the text of the first
    tokens, or their ids if there is no tokenizer. None means unknown.
    """

    name: str
    shards: tuple[Path, ...]
    n_tokens: int
    bits: int
    begins: str
    n_documents: int | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class Inspected:
    """The result of `inspect`. `tokenizer` and `source` are descriptions to print; `problems` lists
    the problems that `verify` found.

    `ids_known`: whether the vocabulary was known, so that `verify` could check the ids.
    """

    place: Path
    prepared: bool
    source: str
    tokenizer: str
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    ids_known: bool = True


def inspect(
    place: Path,
    tokenizer: Tokenizer | None = None,
    *,
    verify: bool = False,
    tell: Tell = lambda task, done, total: None,
) -> Inspected:
    """Inspects a folder of shards, one shard, or a corpus of shards by name.

    `tokenizer`: the one that made the shards, if the folder does not name it. `verify`: read every
    byte; damage is then listed in `problems`.

    Raises DataError for a file that is missing, truncated or not a shard, and TokenizerError if
    `tokenizer` is not the one in the manifest.
    """
    place = _existing(place)
    ready = open_shard_folder(place) if place.is_dir() else _only(place)
    recorded = ready.manifest.tokenizer if ready.manifest else None
    if tokenizer and recorded and tokenizer.fingerprint != recorded.fingerprint:
        raise TokenizerError(
            f"{place} was made with another tokenizer ({recorded.kind}, {recorded.vocab_size:,} "
            f"ids) than the one named ({tokenizer.kind}, {tokenizer.vocab_size:,} ids). Name the "
            "one that made the shards, or none."
        )
    known = tokenizer or ready.own_tokenizer()
    splits, problems = [], []
    n_bytes, done = sum(path.stat().st_size for path in (*ready.train, *ready.validation)), 0
    for name, paths in zip(SPLITS, (ready.train, ready.validation), strict=True):
        split, differing = _look_at(name, paths, ready, known)
        splits.append(split)
        problems += differing
        for path in paths if verify else ():
            tell(f"verifying {path.name}", done, n_bytes)
            problems += _problems(path, name, ready, known)
            done += path.stat().st_size
    source, tokenizer_text = _descriptions(ready, known)
    return Inspected(
        place,
        prepared=bool(recorded),
        source=source,
        tokenizer=tokenizer_text,
        splits=tuple(split for split in splits if split.shards),
        notes=ready.manifest.notes if ready.manifest else (),
        problems=tuple(problems),
        ids_known=known is not None,
    )


def _existing(place: Path) -> Path:
    """Returns the file or folder, or the folder of the corpus of shards with this name."""
    if place.exists():
        return place
    corpus_folder = find_shard_folder(str(place))
    if corpus_folder is None:
        raise DataError(
            f"{place} does not exist. Name a folder of shards, a single shard, or a corpus of "
            "shards."
        )
    return corpus_folder


def _descriptions(ready: Ready, known: Tokenizer | None) -> tuple[str, str]:
    """Describes where the shards come from, and their tokenizer."""
    if ready.manifest:
        recorded = ready.manifest.tokenizer
        return (
            f"prepared by lmsmith from {plural(len(ready.manifest.sources), 'file')}",
            f"{recorded.kind}, {recorded.vocab_size:,} ids, {recorded.fingerprint[:16]}",
        )
    tokenizer = "unknown"
    if known:
        tokenizer = f"{known.kind}, {known.vocab_size:,} ids; assumed to have made these shards"
    return "shards of another program, without a manifest", tokenizer


def _look_at(
    name: str, paths: tuple[Path, ...], ready: Ready, own: Tokenizer | None
) -> tuple[Split, list[str]]:
    """Reads one split; also returns the shards whose length differs from the manifest."""
    ids, records = Shards.open(paths), _records(name, ready)
    problems = [
        f"{path} has {n_tokens:,} tokens, but the manifest lists {records[path.name].n_tokens:,}."
        for path, n_tokens in zip(paths, ids.lengths, strict=True)
        if records and n_tokens != records[path.name].n_tokens
    ]
    split = Split(
        name,
        paths,
        len(ids),
        8 * ids[:1].dtype.itemsize,
        _begins(ids, own),
        sum(records[path.name].n_documents for path in paths) if records else None,
        sum(records[path.name].n_bytes for path in paths) if records else None,
    )
    return split, problems


def _records(name: str, ready: Ready) -> dict[str, ShardRecord]:
    """Returns the manifest's records of the shards of a split, by file name."""
    if ready.manifest is None:
        return {}
    return {shard.file: shard for shard in ready.manifest.splits[name].shards}


def _only(shard: Path) -> Ready:
    """Returns a `Ready` with one shard, and the manifest of its folder if that lists it."""
    folder = shard.parent
    if not (folder / FILE_NAME).is_file():
        return Ready(folder, None, (shard,), ())
    ready = open_shard_folder(folder)
    sides = [
        tuple(path for path in paths if path.name == shard.name)
        for paths in (ready.train, ready.validation)
    ]
    return (
        replace(ready, train=sides[0], validation=sides[1])
        if any(sides)
        else Ready(folder, None, (shard,), ())
    )


def _begins(ids: Shards, tokenizer: Tokenizer | None) -> str:
    """Returns the first tokens as text; as ids without a tokenizer, or if one is beyond its
    vocabulary.
    """
    first = ids[:N_FIRST]
    if tokenizer is None or (first.size and first.max() >= tokenizer.vocab_size):
        return " ".join(map(str, first[:16].tolist())) + (" ..." if len(first) > 16 else "")
    return tokenizer.decode(first)


def _problems(path: Path, name: str, ready: Ready, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Yields the problems of one shard: wrong hash, ids beyond the vocabulary, wrong counts of
    documents or bytes.
    """
    record = _records(name, ready).get(path.name)
    # If some of the text is not in the vocabulary, the ids alone do not give its size in bytes.
    all_text_in_ids = ready.manifest is not None and not ready.manifest.splits[name].n_unknown
    # With control tokens, a text may contain end-of-text tokens of its own.
    no_control_tokens = (
        ready.manifest is None or ready.manifest.settings.get("special_tokens") != "control"
    )
    if record is not None and (sha256 := sha256_of(path)) != record.sha256:
        yield (
            f"{path} has changed: its SHA-256 is {sha256}, but the manifest lists {record.sha256}."
        )
    if tokenizer is None:
        return
    ids = read_shard(path)
    try:
        check_ids(ids, tokenizer.vocab_size, path)
    except DataError as error:
        yield str(error)
        return
    if record is None:
        return
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, len(ids), _BLOCK):
        counts += np.bincount(ids[start : start + _BLOCK], minlength=tokenizer.vocab_size)
    if tokenizer.end_of_text is not None:
        n_documents, counts[tokenizer.end_of_text] = int(counts[tokenizer.end_of_text]), 0
        if n_documents != record.n_documents and no_control_tokens:
            yield (
                f"{path} has {n_documents:,} end-of-text tokens, but the manifest lists "
                f"{record.n_documents:,} documents."
            )
    if all_text_in_ids and no_control_tokens:
        n_bytes = sum(
            n * len(tokenizer.decode_bytes([id])) for id, n in enumerate(counts.tolist()) if n
        )
        if n_bytes != record.n_bytes:
            yield (
                f"{path} has {n_bytes:,} bytes of text, but the manifest lists {record.n_bytes:,}."
            )
