"""What a run is trained on: its sources, each of them text or ready shards, as one corpus.

    RUN/tokens/                     text alone, not mixed by weight: as `prepare.py` writes it
    RUN/tokens/sources.json         else: which sources, in order, with their weights
    RUN/tokens/source-1/ ...        the tokens of those that are text
    RUN/tokens/corpus.json, tokenizer.json, validation.txt

Ready shards (`ready.py`) may be large, so they stay where they are. The run keeps their place and what tells whether
they are still the same: the hash of their manifest, or, where there is none, the shards' names and sizes. A run whose
shards have changed is not gone on with.

All sources have one tokenizer: that of the shards, where there are some. Sources with weights are mixed row by row
(`mixture.py`); others are read as one stream. The validation split is that of all sources, one after the other.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith import atomic
from lmsmith.config import DataConfig
from lmsmith.data import prepare
from lmsmith.data.batches import Sources
from lmsmith.data.mixture import Mixture
from lmsmith.data.prepare import Corpus, Counts, make_tokenizer
from lmsmith.data.ready import Ready, find_ready, open_ready
from lmsmith.data.shards import Shards
from lmsmith.errors import CheckpointError, ConfigError, TokenizerError
from lmsmith.text.documents import Documents, split_documents
from lmsmith.text.files import plural
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

FORMAT = 1
MOST_TEXT = 4_000_000
"""Bytes of validation text up to which it is written out, for compressors to be compared on."""

_BLOCK = 2**20  # ids decoded at once


def gather(data: DataConfig, tokenizer: str, folder: Path) -> Corpus:
    """Reads the sources and writes `folder`. Raises DataError, ConfigError, TokenizerError, StorageError."""
    places = {path: find_ready(path) for path in data.paths}
    if data.validation_tokens and not any(places.values()):
        raise ConfigError("data.validation_tokens is for folders of shards: of text, set data.validation_fraction.")
    if not data.source and not any(places.values()):
        return prepare.prepare(data, tokenizer, folder)
    ready = {path: open_ready(place) for path, place in places.items() if place is not None}
    made = _tokenizer(data, tokenizer, ready)
    save_tokenizer(made, folder)
    texts = tuple(path for path in data.paths if path not in ready)
    # Texts without weights are one source: what is there twice is told, and their documents are split together.
    groups = [(path,) for path in data.paths] if data.source else [*((path,) for path in ready), texts]
    records: list[dict[str, Any]] = []
    counts: list[Counts] = []
    opened: list[tuple[Shards, Shards]] = []
    text = b""
    for number, paths in enumerate(filter(None, groups), start=1):
        if paths[0] in ready:
            shards = ready[paths[0]]
            records.append(
                {"shards": str(shards.folder), **shards.identity(), "validation_tokens": data.validation_tokens}
            )
            opened.append(_open(records[-1], folder, made.vocab_size))
            counts.append(_counts_of(shards, *opened[-1], made))
            if sum(count.n_val_bytes for count in counts) <= MOST_TEXT:
                text += b"".join(_decoded(opened[-1][1], made))
        else:
            place = folder / f"source-{number}"
            part = prepare.prepare(replace(data, sources=paths, source=()), str(folder), place)
            records.append({"text": place.name})
            opened.append(
                (_kept(part.train, place / "train.bin", made), _kept(part.validation, place / "val.bin", made))
            )
            named = tuple(f"{', '.join(paths)}: {note}" for note in part.counts.notes)
            counts.append(replace(part.counts, notes=named))
            text += (place / "validation.txt").read_bytes()
    for record, source in zip(records, data.source, strict=False):
        record["weight"] = source.weight
    notes = [note for count in counts for note in count.notes]
    if data.source:
        shares = zip(Mixture([source.weight for source in data.source]).shares, data.source, strict=True)
        notes.append("of the training rows " + ", ".join(f"{float(share):.4g} are {of.path}" for share, of in shares))
    total = Counts(
        n_train_tokens=sum(count.n_train_tokens for count in counts),
        n_val_tokens=sum(count.n_val_tokens for count in counts),
        n_val_bytes=sum(count.n_val_bytes for count in counts),
        n_val_unknown=sum(count.n_val_unknown for count in counts),
        n_val_unknown_bytes=sum(count.n_val_unknown_bytes for count in counts),
        notes=tuple(notes),
    )
    atomic.write(folder / "sources.json", json.dumps({"format": FORMAT, "sources": records}, indent=1) + "\n")
    atomic.write(folder / "corpus.json", json.dumps(asdict(total), indent=1) + "\n")
    if len(text) == total.n_val_bytes:
        atomic.write(folder / "validation.txt", text)
    return _corpus(opened, records, made, total)


def _kept(ids: np.ndarray | Shards | Sources, path: Path, tokenizer: Tokenizer) -> Shards:
    """Ids of a text, in memory: nothing is mapped from a folder that has yet to be renamed."""
    assert isinstance(ids, np.ndarray)
    return Shards([ids], [path], tokenizer.vocab_size)


def load(folder: Path) -> Corpus:
    """What `gather` wrote, ids memory-mapped. Raises CheckpointError, also where shards have changed; DataError."""
    path = folder / "sources.json"
    if not path.exists():
        return prepare.load(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {content['format']!r}; this lmsmith reads {FORMAT}. Update lmsmith."
            )
        records = content["sources"]
        tokenizer, counts = load_tokenizer(folder), prepare.load_counts(folder)
        opened = [_open(record, folder, tokenizer.vocab_size) for record in records]
        return _corpus(opened, records, tokenizer, counts)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start the run anew.") from error


def _corpus(
    opened: list[tuple[Shards, Shards]], records: list[dict[str, Any]], tokenizer: Tokenizer, counts: Counts
) -> Corpus:
    train, validation = [part for part, _ in opened], [part for _, part in opened]
    mixed = Sources(train, [record["weight"] for record in records]) if "weight" in records[0] else Shards.join(train)
    return Corpus(mixed, Shards.join(validation), tokenizer, counts)


def _open(record: dict[str, Any], folder: Path, vocab_size: int) -> tuple[Shards, Shards]:
    """Training and validation tokens of one source."""
    if "text" in record:
        place = folder / record["text"]
        return Shards.open([place / "train.bin"], vocab_size), Shards.open([place / "val.bin"], vocab_size)
    place = Path(record["shards"])
    if not place.is_dir():
        raise CheckpointError(
            f"the run was trained on the shards in {place}, and there is no such folder. Put it back, or write where "
            f"it is now into {folder / 'sources.json'}."
        )
    ready = open_ready(place)
    if changed := _changes(record, ready):
        raise CheckpointError(
            f"the shards in {place} are not those that the run began with: {changed}. Put them back, or start anew."
        )
    validation = ready.open_validation(vocab_size)
    limit = record["validation_tokens"] or len(validation)
    return ready.open_train(vocab_size), validation.first(limit)


def _changes(record: dict[str, Any], ready: Ready) -> str:
    """What is different now; empty where nothing is."""
    now = ready.identity()
    if "manifest_sha256" in record:
        return "" if now == {"manifest_sha256": record["manifest_sha256"]} else "their manifest is another one"
    if "shards_bytes" not in now:
        return "there is a manifest now"
    before, now = record["shards_bytes"], now["shards_bytes"]
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            sizes = [
                f"{size:,} bytes" if size is not None else "not there" for size in (before.get(name), now.get(name))
            ]
            return f"{name} was {sizes[0]} and is {sizes[1]}"
    return ""


def _counts_of(ready: Ready, train: Shards, validation: Shards, tokenizer: Tokenizer) -> Counts:
    """What a folder of shards holds, in the words of a run."""
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
    return Counts(len(train), len(validation), n_bytes, *unknown, tuple(notes))


def _tokenizer(data: DataConfig, wanted: str, ready: dict[str, Ready]) -> Tokenizer:
    """The one tokenizer of all sources. Raises ConfigError, TokenizerError where they or the user do not agree."""
    own = {path: found for path, folder in ready.items() if (found := folder.own_tokenizer())}
    if not ready:
        made = _learnt(data, wanted)
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


def _learnt(data: DataConfig, wanted: str) -> Tokenizer:
    """A tokenizer for texts that are mixed: learnt, where it has to be, from the training part of all."""
    texts: list[str] = []
    for path in data.paths:
        documents = Documents([path], text_field=data.text_field, encoding=data.encoding, errors=data.errors)
        texts += split_documents(documents, data.validation_fraction).train
    return make_tokenizer(wanted, texts, several=True)


def _decoded(ids: Shards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of ids, in parts; ends of text bring no bytes."""
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        yield tokenizer.decode_bytes(block if tokenizer.end_of_text is None else block[block != tokenizer.end_of_text])
