"""What a folder of token shards or a single shard holds, and, on request, whether it is what it
should be.

Counts come from the manifest, where there is one, and from the shards' headers, which are always
looked at. `verify` reads every byte: hashes against the manifest, ids against the vocabulary, and
documents and bytes of text, which bits per byte are divided by, counted once more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmsmith.data.manifest import FILE_NAME, SPLITS, ShardRecord
from lmsmith.data.ready import Ready, find_ready, open_ready
from lmsmith.data.shards import Shards, check_ids, read_shard
from lmsmith.errors import DataError, TokenizerError
from lmsmith.hashes import sha256_of
from lmsmith.text.files import plural
from lmsmith.tokens.tokenizer import Tokenizer

N_FIRST = 64
"""Tokens shown of the beginning of a split."""

_BLOCK = 2**22  # ids looked at at once

Tell = Callable[[str, int, int], None]
"""Called with what is done, how many bytes, of how many."""


@dataclass(frozen=True)
class Split:
    """Shards that belong together. None: nobody has said it. `begins`: the first tokens' text,
    else their ids.
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
    """What was found. `tokenizer` and `source` are for a person to read; `problems` are what
    `verify` found.

    `ids_known`: a tokenizer is at hand whose vocabulary `verify` holds the ids against.
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
    """Looks at a folder of shards or at one shard. `tokenizer`: what made them, where it is not
    said there.

    Raises DataError for what is no shard, cut short or missing; with `verify` damaged content is
    told in `problems`.
    """
    if not place.exists():
        named = find_ready(str(place))
        if named is None:
            raise DataError(
                f"there is no {place}: name a folder of shards, one shard, or a corpus of shards."
            )
        place = named
    ready = open_ready(place) if place.is_dir() else _only(place)
    made = ready.manifest.tokenizer if ready.manifest else None
    if tokenizer and made and tokenizer.fingerprint != made.fingerprint:
        raise TokenizerError(
            f"{place} was made with another tokenizer ({made.kind}, {made.vocab_size:,} ids) than "
            f"the one named "
            f"({tokenizer.kind}, {tokenizer.vocab_size:,} ids)."
        )
    own = tokenizer or ready.own_tokenizer()
    splits, problems = [], []
    n_bytes, done = sum(path.stat().st_size for path in (*ready.train, *ready.validation)), 0
    for name, paths in zip(SPLITS, (ready.train, ready.validation), strict=True):
        split, wrong = _look_at(name, paths, ready, own)
        splits.append(split)
        problems += wrong
        for path in paths if verify else ():
            tell(f"verifying {path.name}", done, n_bytes)
            problems += _problems(path, name, ready, own)
            done += path.stat().st_size
    source, said = "shards from elsewhere, without a manifest", "nobody says which"
    if ready.manifest and made:
        source = f"prepared by lmsmith from {plural(len(ready.manifest.sources), 'file')}"
        said = f"{made.kind}, {made.vocab_size:,} ids, {made.fingerprint[:16]}"
    elif own:
        said = f"{own.kind}, {own.vocab_size:,} ids; that it made these shards is taken on trust"
    notes = ready.manifest.notes if ready.manifest else ()
    there = tuple(split for split in splits if split.shards)
    return Inspected(
        place, bool(made), source, said, there, notes, tuple(problems), ids_known=own is not None
    )


def _look_at(
    name: str, paths: tuple[Path, ...], ready: Ready, own: Tokenizer | None
) -> tuple[Split, list[str]]:
    """One split, and where the lengths of its shards are not those of the manifest."""
    ids, records = Shards.open(paths), _records(name, ready)
    problems = [
        f"{path} has {n_tokens:,} tokens, and the manifest says {records[path.name].n_tokens:,}."
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
    """What the manifest says of the shards of a split, by their names."""
    if ready.manifest is None:
        return {}
    return {shard.file: shard for shard in ready.manifest.splits[name].shards}


def _only(shard: Path) -> Ready:
    """One shard, and what its folder says of it."""
    folder = shard.parent
    if not (folder / FILE_NAME).is_file():
        return Ready(folder, None, (shard,), ())
    whole = open_ready(folder)
    of = [
        tuple(path for path in paths if path.name == shard.name)
        for paths in (whole.train, whole.validation)
    ]
    return (
        replace(whole, train=of[0], validation=of[1])
        if any(of)
        else Ready(folder, None, (shard,), ())
    )


def _begins(ids: Shards, tokenizer: Tokenizer | None) -> str:
    """The first tokens as text; as ids where no tokenizer is known, or some are none of its."""
    first = ids[:N_FIRST]
    if tokenizer is None or (first.size and first.max() >= tokenizer.vocab_size):
        return " ".join(map(str, first[:16].tolist())) + (" ..." if len(first) > 16 else "")
    return tokenizer.decode(first)


def _problems(path: Path, name: str, ready: Ready, tokenizer: Tokenizer | None) -> Iterator[str]:
    """What is wrong with one shard of a split: its hash, ids beyond the vocabulary, its
    documents and bytes.
    """
    record = _records(name, ready).get(path.name)
    # Where the ids do not carry all of the text, only its preparation knew how many bytes it had.
    whole = ready.manifest is not None and not ready.manifest.splits[name].n_unknown
    # Control tokens in a text may be ends of text too.
    counted = ready.manifest is None or ready.manifest.settings.get("special_tokens") != "control"
    if record is not None and (found := sha256_of(path)) != record.sha256:
        yield f"{path} has changed: its SHA-256 is {found}, and the manifest says {record.sha256}."
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
    times = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, len(ids), _BLOCK):
        times += np.bincount(ids[start : start + _BLOCK], minlength=tokenizer.vocab_size)
    if tokenizer.end_of_text is not None:
        n_documents, times[tokenizer.end_of_text] = int(times[tokenizer.end_of_text]), 0
        if n_documents != record.n_documents and counted:
            yield (
                f"{path} has {n_documents:,} ends of text, and the manifest says "
                f"{record.n_documents:,} documents."
            )
    if whole and counted:
        n_bytes = sum(
            n * len(tokenizer.decode_bytes([id])) for id, n in enumerate(times.tolist()) if n
        )
        if n_bytes != record.n_bytes:
            yield f"{path} has {n_bytes:,} bytes of text, and the manifest says {record.n_bytes:,}."
