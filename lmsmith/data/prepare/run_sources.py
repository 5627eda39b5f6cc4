"""What a run is trained on: its sources, each of them text or ready shards, as one corpus.

    RUN/tokens/                     text alone, not mixed by weight: as `prepare.py` writes it
    RUN/tokens/sources.json         else: which sources, in order, with their weights
    RUN/tokens/source-1/ ...        the tokens of those that are text
    RUN/tokens/corpus.json, tokenizer.json, validation.txt

Ready shards (`ready.py`) may be large, so they stay where they are. The run keeps their place and what tells whether
they are still the same: the hash of their manifest, or, where there is none, the shards' names and sizes. A run whose
shards have changed is not gone on with.

Where the user names validation text or shards, each source is on one side: its record has a `role`.

All sources have one tokenizer: that of the shards, where there are some. Sources with weights are mixed row by row
(`mixture.py`); others are read as one stream. The validation split is that of all sources, one after the other.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmsmith import atomic, foreign_json
from lmsmith.config import DataConfig
from lmsmith.data.batches.mixture import Mixture
from lmsmith.data.batches.windows import Sources
from lmsmith.data.prepare import run_text as prepare
from lmsmith.data.prepare.leaks import shared_documents
from lmsmith.data.prepare.run_text import Corpus, Counts, make_tokenizer
from lmsmith.data.ready import Ready, find_ready, open_ready
from lmsmith.data.shards import Shards
from lmsmith.errors import CheckpointError, ConfigError, DataError, TokenizerError
from lmsmith.strict_json import write_json
from lmsmith.text import leaks
from lmsmith.text.documents import Documents
from lmsmith.text.files import plural, read_errors, size_and_time
from lmsmith.text.held_out import Split, default_share, split_documents
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

FORMAT, WITH_ROLES = 1, 2  # the latter where records have a role
MOST_TEXT = 4_000_000
"""Bytes of validation text up to which it is written out, for compressors to be compared on."""

_BLOCK = 2**20  # ids decoded at once


class _Part(NamedTuple):
    """One source: what sources.json says of it, its training and validation tokens, and the latter's text, if small."""

    record: dict[str, Any]
    opened: tuple[Shards, Shards]
    counts: Counts
    text: bytes | None


def gather(data: DataConfig, tokenizer: str, folder: Path) -> Corpus:
    """Reads the sources and writes `folder`. Raises DataError, ConfigError, TokenizerError, StorageError."""
    named = (*data.paths, *data.validation)
    places = {path: find_ready(path, one_sided=bool(data.validation)) for path in named}
    if data.validation and data.validation_fraction:
        raise ConfigError(
            f"data.validation = {', '.join(data.validation)} names the validation text, and data.validation_fraction = "
            f"{data.validation_fraction:g} would hold some out of SOURCE: set one of them."
        )
    if data.validation_tokens and not any(places.values()):
        raise ConfigError(
            "data.validation_tokens is for folders of shards: of text, set data.validation_fraction."
        )
    if data.validation_fraction and all(places.values()):
        raise ConfigError(
            "data.validation_fraction is for text, and shards are split already: leave it out, or score fewer of their "
            "validation tokens with data.validation_tokens."
        )
    if not data.mixture and not any(places.values()):
        return prepare.prepare(data, tokenizer, folder)
    if data.validation:
        return _gather_sides(data, tokenizer, folder, places)
    ready = {path: open_ready(place) for path, place in places.items() if place is not None}
    texts = tuple(path for path in data.paths if path not in ready)
    data = _with_one_fraction(data, texts, _share_held_out(ready.values()))
    compared = data.mixture and (not ready or len(texts) > 1)
    made = _tokenizer(tokenizer, ready, _read_apart(data, texts) if compared else [])
    save_tokenizer(made, folder)
    # Texts without weights are one source: what is there twice is told, and their documents are split together.
    groups = (
        [(path,) for path in data.paths]
        if data.mixture
        else [*((path,) for path in ready), *([texts] if texts else [])]
    )
    parts = [
        _of_ready(ready[paths[0]], data, made, folder)
        if paths[0] in ready
        else _of_text(replace(data, sources=paths, mixture=()), made, folder, f"source-{number}")
        for number, paths in enumerate(groups, start=1)
    ]
    records = [part.record for part in parts]
    counts = _sum([part.counts for part in parts])
    if len(parts) > 1 and ready and (texts or not _share_held_out(ready.values())):
        note = "a document that is in shards and in another source may be held out of one and trained on in the other"
        counts = replace(counts, notes=(note, *counts.notes))
    if data.mixture:
        counts = _weigh(data, records, counts)
    _write(folder, FORMAT, records, counts, [part.text for part in parts])
    return _corpus([part.opened for part in parts], records, made, counts)


def _weigh(data: DataConfig, records: Sequence[dict[str, Any]], counts: Counts) -> Counts:
    """Puts the weight of each training source into its record, and says it."""
    for record, source in zip(records, data.mixture, strict=True):
        record["weight"] = source.weight
    shares = zip(
        Mixture([source.weight for source in data.mixture]).shares, data.mixture, strict=True
    )
    note = "of the training rows " + ", ".join(
        f"{float(share):.4g} are {of.path}" for share, of in shares
    )
    return replace(counts, notes=(*counts.notes, note))


def _write(
    folder: Path,
    format: int,
    records: Sequence[dict[str, Any]],
    counts: Counts,
    texts: Sequence[bytes | None],
) -> None:
    """What `load` reads. `texts`: of the validation parts; None where one was too large."""
    write_json(folder / "sources.json", {"format": format, "sources": records})
    write_json(folder / "corpus.json", asdict(counts))
    found = [text for text in texts if text is not None]
    if len(found) == len(texts):
        atomic.write(folder / "validation.txt", b"".join(found))


# ---- validation that the user names ----------------------------------------------------------------------------------


def _gather_sides(
    data: DataConfig, tokenizer: str, folder: Path, places: dict[str, Path | None]
) -> Corpus:
    """`gather` where `data.validation` is all that is validated on, and all sources are trained on."""
    ready = {
        path: open_ready(place, one_sided=True)
        for path, place in places.items()
        if place is not None
    }

    def files(paths: Sequence[str]) -> list[Path]:
        texts = [
            file
            for path in paths
            if path not in ready
            for file in prepare.documents_of(data, [path]).files
        ]
        shards = [ready[path] for path in paths if path in ready]
        return texts + [file for each in shards for file in (*each.train, *each.validation)]

    leaks.refuse_shared_files(files(data.paths), files(data.validation))
    learnt_from: list[str] = []
    if not ready:
        learnt_from = [
            document.text for path in data.paths for document in prepare.documents_of(data, [path])
        ]
    made = _tokenizer(tokenizer, ready, learnt_from)
    del learnt_from
    save_tokenizer(made, folder)

    parts: list[_Part] = []
    for role, paths in (("train", data.paths), ("validation", data.validation)):
        texts = tuple(path for path in paths if path not in ready)
        together = not (role == "train" and data.mixture)
        groups = [*((path,) for path in paths if path in ready), *([texts] if texts else [])]
        for group in groups if together else [(path,) for path in paths]:
            if group[0] in ready:
                parts.append(_side_of_ready(ready[group[0]], data, made, folder, role))
            else:
                name = f"source-{len(parts) + 1}"
                parts.append(
                    _side_of_text(
                        replace(data, sources=group, mixture=()), made, folder, name, role
                    )
                )
    train, validation = (
        [part for part in parts if part.record["role"] == role] for role in ("train", "validation")
    )
    counts = _sum([part.counts for part in parts])
    for n, role in ((counts.n_train_tokens, "training"), (counts.n_val_tokens, "validation")):
        if n < 2:
            raise DataError(
                f"there is {plural(n, 'token')} of {role} text, wanted at least 2. Name more text."
            )
    counts = replace(counts, notes=(*counts.notes, *_shared(train, validation, made)))
    if data.mixture:
        counts = _weigh(data, [part.record for part in train], counts)
    records = [part.record for part in parts]
    _write(folder, WITH_ROLES, records, counts, [part.text for part in validation])
    return _corpus([part.opened for part in parts], records, made, counts)


def _side_of_ready(
    ready: Ready, data: DataConfig, tokenizer: Tokenizer, folder: Path, role: str
) -> _Part:
    """Shards, all of them on one side."""
    limit = data.validation_tokens if role == "validation" else 0
    record = {
        "role": role,
        "shards": str(ready.place),
        **ready.identity(),
        "validation_tokens": limit,
    }
    train, validation = opened = _open(record, folder, tokenizer.vocab_size)
    notes = []  # those of a manifest say how the folder was split
    if not ready.manifest:
        n_shards = len(ready.train) + len(ready.validation)
        notes.append(
            f"{ready.place} has no manifest: that this tokenizer made its {plural(n_shards, 'shard')} is taken on trust"
        )
    if role == "train":
        return _Part(record, opened, Counts(len(train), 0, 0, 0, 0, tuple(notes)), None)
    of = list(ready.manifest.splits.values()) if ready.manifest else []
    if of and len(validation) == sum(split.n_tokens for split in of):
        n_bytes, n_unknown = (
            sum(split.n_bytes for split in of),
            sum(split.n_unknown for split in of),
        )
        unknown = n_unknown, sum(split.n_unknown_bytes for split in of)
    else:
        n_bytes, unknown = sum(map(len, _decoded(validation, tokenizer))), (0, 0)
        notes.append(
            f"{ready.place}: the {n_bytes:,} bytes of validation text are those of its {len(validation):,} tokens, "
            "decoded"
        )
    text = b"".join(_decoded(validation, tokenizer)) if n_bytes <= MOST_TEXT else None
    whole = text is not None and len(text) == n_bytes
    return _Part(
        record,
        opened,
        Counts(0, len(validation), n_bytes, *unknown, tuple(notes)),
        text if whole else None,
    )


def _side_of_text(
    data: DataConfig, tokenizer: Tokenizer, folder: Path, name: str, role: str
) -> _Part:
    """The documents of `data.sources`, all of them on one side, encoded into a folder of its own."""
    documents = prepare.documents_of(data, data.sources)
    texts = [document.text for document in documents]
    train, validation = (texts, []) if role == "train" else ([], texts)
    split = Split(train, validation, True, 0, "", (), ())
    place = folder / name
    found = prepare.write(data, tokenizer, split, documents.notes(), place)
    opened = tuple(
        Shards([ids], [place / file], tokenizer.vocab_size)
        for ids, file in ((found.train, "train.bin"), (found.validation, "val.bin"))
        if isinstance(ids, np.ndarray)
    )
    notes = tuple(f"{', '.join(data.sources)}: {note}" for note in found.counts.notes)
    text = (place / "validation.txt").read_bytes()
    return _Part(
        {"role": role, "text": name},
        (opened[0], opened[1]),
        replace(found.counts, notes=notes),
        text,
    )


def _shared(train: Sequence[_Part], validation: Sequence[_Part], tokenizer: Tokenizer) -> list[str]:
    """What there is to tell of documents that are on both sides."""
    if tokenizer.end_of_text is None:
        return [
            "this tokenizer has no end of text: whether documents are on both sides was not looked at"
        ]
    held_out = Shards.join([part.opened[1] for part in validation])
    found = shared_documents([part.opened[0] for part in train], held_out, tokenizer.end_of_text)
    notes = []
    if found.n:
        one, other = found.first
        names = (
            f"document {one:,} of the validation tokens",
            f"document {other:,} of the training tokens",
        )
        notes.append(leaks.note(found.n, found.n_documents, [names]))
    n_train = sum(len(part.opened[0]) for part in train)
    if found.n_compared < n_train:
        notes.append(
            f"validation documents were looked for in the first {found.n_compared:,} of {n_train:,} training tokens"
        )
    return notes


# ----------------------------------------------------------------------------------------------------------------------


def _with_one_fraction(data: DataConfig, texts: Sequence[str], of_shards: float) -> DataConfig:
    """The same share is held out of every text, so that a document that is in two of them is on one side in both.

    If the shards beside them say one share (`of_shards`), it is that: then it is so of many documents in both, too.

    Raises ConfigError where a file is in two: if it is split at its tail, what one held out the other would train on.
    """
    seen: dict[Path, str] = {}
    n_bytes = 0
    for path in texts:
        for file in _documents(data, path).files:
            with read_errors(file):
                n_bytes += size_and_time(file)[0]
            if (other := seen.setdefault(file.resolve(), path)) != path:
                raise ConfigError(
                    f"{file} is in two sources, {other} and {path}: name it once, or what is held out of one would be "
                    "trained on in the other."
                )
    share = data.validation_fraction or of_shards or default_share(n_bytes)
    return replace(data, validation_fraction=share) if texts else data


def _share_held_out(ready: Iterable[Ready]) -> float:
    """The share of documents that all shards say was held out by hash, so that equal ones are on one side; else 0."""
    settings = [found.manifest.settings if found.manifest else {} for found in ready]
    by_hash = all(each.get("split") == "documents" for each in settings)
    shares = {float(each.get("validation_fraction", 0)) for each in settings}
    return shares.pop() if by_hash and len(shares) == 1 else 0.0


def _of_ready(ready: Ready, data: DataConfig, tokenizer: Tokenizer, folder: Path) -> _Part:
    record = {
        "shards": str(ready.folder),
        **ready.identity(),
        "validation_tokens": data.validation_tokens,
    }
    train, validation = opened = _open(record, folder, tokenizer.vocab_size)
    notes = [f"{ready.folder}: {note}" for note in ready.manifest.notes] if ready.manifest else []
    held_out = ready.manifest.splits["val"] if ready.manifest else None
    if held_out and len(validation) == held_out.n_tokens:
        n_bytes, unknown = held_out.n_bytes, (held_out.n_unknown, held_out.n_unknown_bytes)
    else:
        n_bytes, unknown = sum(map(len, _decoded(validation, tokenizer))), (0, 0)
        notes.append(
            f"{ready.folder}: the {n_bytes:,} bytes of validation text are those of its {len(validation):,} tokens, "
            "decoded"
        )
    if not ready.manifest:
        notes.append(
            f"{ready.folder} has no manifest: that this tokenizer made its "
            f"{plural(len(ready.train) + len(ready.validation), 'shard')} is taken on trust"
        )
    text = b"".join(_decoded(validation, tokenizer)) if n_bytes <= MOST_TEXT else None
    whole = text is not None and len(text) == n_bytes  # else the ids do not carry all of it
    counts = Counts(len(train), len(validation), n_bytes, *unknown, tuple(notes))
    return _Part(record, opened, counts, text if whole else None)


def _of_text(data: DataConfig, tokenizer: Tokenizer, folder: Path, name: str) -> _Part:
    """Encoded into a folder of its own. Ids stay in memory: nothing is mapped from a run that is yet to be renamed."""
    place = folder / name
    found = prepare.prepare(data, str(folder), place)
    assert isinstance(found.train, np.ndarray)
    assert isinstance(found.validation, np.ndarray)
    train = Shards([found.train], [place / "train.bin"], tokenizer.vocab_size)
    validation = Shards([found.validation], [place / "val.bin"], tokenizer.vocab_size)
    notes = tuple(f"{', '.join(data.sources)}: {note}" for note in found.counts.notes)
    text = (place / "validation.txt").read_bytes()
    return _Part({"text": name}, (train, validation), replace(found.counts, notes=notes), text)


def _sum(counts: Sequence[Counts]) -> Counts:
    numbers = [field.name for field in fields(Counts) if field.name != "notes"]
    sums = {name: sum(getattr(count, name) for count in counts) for name in numbers}
    return Counts(**sums, notes=tuple(note for count in counts for note in count.notes))


def load(folder: Path) -> Corpus:
    """What `gather` wrote, ids memory-mapped. Raises CheckpointError, also where shards have changed; DataError."""
    path = folder / "sources.json"
    if not path.exists():
        return prepare.load(folder)
    try:
        content = foreign_json.read(path)
        if content["format"] not in (FORMAT, WITH_ROLES):
            raise CheckpointError(
                f"{path} has format {content['format']!r}; this lmsmith reads up to {WITH_ROLES}. Update lmsmith."
            )
        records = content["sources"]
        tokenizer, counts = load_tokenizer(folder), prepare.load_counts(folder)
        opened = [_open(record, folder, tokenizer.vocab_size) for record in records]
        return _corpus(opened, records, tokenizer, counts)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start the run anew.") from error


def _corpus(
    opened: list[tuple[Shards, Shards]],
    records: list[dict[str, Any]],
    tokenizer: Tokenizer,
    counts: Counts,
) -> Corpus:
    both = list(zip(opened, records, strict=True))
    train = [part for (part, _), record in both if record.get("role") != "validation"]
    validation = [part for (_, part), record in both if record.get("role") != "train"]
    weights = [record["weight"] for record in records if "weight" in record]
    mixed = Sources(train, weights) if weights else Shards.join(train)
    return Corpus(mixed, Shards.join(validation), tokenizer, counts)


def _open(record: dict[str, Any], folder: Path, vocab_size: int) -> tuple[Shards, Shards]:
    """Training and validation tokens of one source."""
    if "text" in record:
        place = folder / record["text"]
        return Shards.open([place / "train.bin"], vocab_size), Shards.open(
            [place / "val.bin"], vocab_size
        )
    place = Path(record["shards"])
    if not place.exists():
        raise CheckpointError(
            f"the run was trained on the shards in {place}, and there is no such folder. Put it back, or write where "
            f"it is now into {folder / 'sources.json'}."
        )
    role = record.get("role")
    ready = open_ready(place, one_sided=role is not None)
    if changed := _changes(record, ready):
        raise CheckpointError(
            f"the shards in {place} are not those that the run began with: {changed}. Put them back, or start anew."
        )
    if role is not None:
        everything, nothing = ready.open_all(vocab_size), Shards([], (), vocab_size)
        limit = record["validation_tokens"] or len(everything)
        return (everything, nothing) if role == "train" else (nothing, everything.first(limit))
    validation = ready.open_validation(vocab_size)
    limit = record["validation_tokens"] or len(validation)
    return ready.open_train(vocab_size), validation.first(limit)


def _changes(record: dict[str, Any], ready: Ready) -> str:
    """What is different now; empty where nothing is."""
    now = ready.identity()
    if "manifest_sha256" in record:
        return (
            ""
            if now == {"manifest_sha256": record["manifest_sha256"]}
            else "their manifest is another one"
        )
    if "shards_bytes" not in now:
        return "there is a manifest now"
    before, now = record["shards_bytes"], now["shards_bytes"]
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            sizes = [
                f"{size:,} bytes" if size is not None else "not there"
                for size in (before.get(name), now.get(name))
            ]
            return f"{name} was {sizes[0]} and is {sizes[1]}"
    return ""


def _tokenizer(wanted: str, ready: dict[str, Ready], texts: Sequence[str]) -> Tokenizer:
    """The one tokenizer of all sources, learnt from `texts` where it has to be.

    Raises ConfigError, TokenizerError where they or the user do not agree.
    """
    own = {path: found for path, folder in ready.items() if (found := folder.own_tokenizer())}
    if not ready:
        made = make_tokenizer(wanted, texts, several=True)
    elif wanted in ("char", "word") or wanted.startswith("bpe:"):
        raise ConfigError(
            f"tokenizer = {wanted!r} would be learnt, and {next(iter(ready))} holds tokens already. Leave it out, or "
            "name the tokenizer that made them."
        )
    elif wanted != "auto":
        made = make_tokenizer(wanted, [], several=True)
    elif own:
        made = next(iter(own.values()))
    else:
        raise ConfigError(
            f"nothing in {next(iter(ready))} says which tokenizer made its shards. Name it: --tokenizer gpt2 for those "
            "of llm.c and modded-nanogpt, or a tokenizer's folder."
        )
    for path, found in own.items():
        if found != made:
            whose = f"--tokenizer {wanted}" if wanted != "auto" else f"that of {next(iter(own))}"
            raise TokenizerError(
                f"{path} was made with another tokenizer ({found.kind}, {found.vocab_size:,} ids) than {whose} "
                f"({made.kind}, {made.vocab_size:,} ids): its ids would stand for other text. "
                + ("Leave --tokenizer out." if wanted != "auto" else "Prepare both with one.")
            )
    return made


def _read_apart(data: DataConfig, paths: Sequence[str]) -> list[str]:
    """The training part of all texts that are mixed.

    Raises ConfigError where a document that one holds out, or its tail, is in the training part of another: of few
    documents tails are held out, of many the same documents in all.
    """
    texts: list[str] = []
    train: dict[str, Collection[int]] = {}
    held_out: dict[str, frozenset[int]] = {}
    for path in paths:
        split = split_documents(_documents(data, path), data.validation_fraction)
        texts += split.train
        train[path], held_out[path] = split.train_hashes, frozenset(split.validation_hashes)
    for one, other in itertools.permutations(train, 2):
        if shared := held_out[one].intersection(train[other]):
            where = [
                next(found.source for found in _documents(data, path) if found.hash in shared)
                for path in (one, other)
            ]
            raise ConfigError(
                f"{plural(len(shared), 'document')} of the source {one} {'is' if len(shared) == 1 else 'are'} also in "
                f"{other} ({where[0]} as {where[1]}, for one): what is held out of the first would be trained on in "
                "the second. Remove it from one of them."
            )
    return texts


def _documents(data: DataConfig, path: str) -> Documents:
    return prepare.documents_of(data, [path])


def _decoded(ids: Shards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of ids, in parts; ends of text bring no bytes."""
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        yield tokenizer.decode_bytes(
            block if tokenizer.end_of_text is None else block[block != tokenizer.end_of_text]
        )
