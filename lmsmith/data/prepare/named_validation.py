"""The data of a run with validation text named by the user: each source is for one split only.

Without it, `run_sources.py` holds out a part of each source. Here, the record of each source has a
`role`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmsmith.config import DataConfig
from lmsmith.data.corpus import WITH_ROLES, Corpus, Counts, join_sources, open_source
from lmsmith.data.prepare.leaks import shared_documents
from lmsmith.data.prepare.run_text import documents_of, write_tokens
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
from lmsmith.data.ready import Ready, open_shard_folder
from lmsmith.data.shards import Shards
from lmsmith.errors import DataError
from lmsmith.text import leaks
from lmsmith.text.files import plural
from lmsmith.text.held_out import Split
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer


def prepare_named_validation(
    data: DataConfig, tokenizer: str, folder: Path, places: dict[str, Path | None]
) -> Corpus:
    """`prepare_run` for a config with `data.validation`: all of `data.sources` is for training.

    `places`: the folder of shards of each path; None if the path is text.
    """
    ready = {
        path: open_shard_folder(place, one_sided=True)
        for path, place in places.items()
        if place is not None
    }
    leaks.refuse_shared_files(_files(data, data.paths, ready), _files(data, data.validation, ready))
    learned_from: list[str] = []
    if not ready:
        learned_from = [
            document.text for path in data.paths for document in documents_of(data, [path])
        ]
    shared_tokenizer = common_tokenizer(tokenizer, ready, learned_from)
    del learned_from
    save_tokenizer(shared_tokenizer, folder)
    parts = _read_sides(data, shared_tokenizer, folder, ready)
    train, validation = (
        [part for part in parts if part.record["role"] == role] for role in ("train", "validation")
    )
    counts = total([part.counts for part in parts])
    for n, role in ((counts.n_train_tokens, "training"), (counts.n_val_tokens, "validation")):
        if n < 2:
            raise DataError(
                f"there is only {plural(n, 'token')} of {role} text, expected at least 2. Name "
                "more text."
            )
    counts = replace(counts, notes=(*counts.notes, *_shared(train, validation, shared_tokenizer)))
    if data.mixture:
        counts = weigh(data, [part.record for part in train], counts)
    records = [part.record for part in parts]
    write_sources(folder, WITH_ROLES, records, counts, [part.text for part in validation])
    return join_sources([part.opened for part in parts], records, shared_tokenizer, counts)


def _files(data: DataConfig, paths: Sequence[str], ready: dict[str, Ready]) -> list[Path]:
    """Returns all files of these paths, text and shards."""
    texts = [
        file for path in paths if path not in ready for file in documents_of(data, [path]).files
    ]
    shards = [ready[path] for path in paths if path in ready]
    return texts + [file for each in shards for file in (*each.train, *each.validation)]


def _read_sides(
    data: DataConfig, tokenizer: Tokenizer, folder: Path, ready: dict[str, Ready]
) -> list[SourceTokens]:
    """Returns the tokens of each source. The texts of one split are one source, unless they are
    mixed by weight.
    """
    parts: list[SourceTokens] = []
    for role, paths in (("train", data.paths), ("validation", data.validation)):
        texts = tuple(path for path in paths if path not in ready)
        together = not (role == "train" and data.mixture)
        groups = [*((path,) for path in paths if path in ready), *([texts] if texts else [])]
        for group in groups if together else [(path,) for path in paths]:
            if group[0] in ready:
                parts.append(_side_of_ready(ready[group[0]], data, tokenizer, folder, role))
            else:
                name = f"source-{len(parts) + 1}"
                group_data = replace(data, sources=group, mixture=())
                parts.append(_side_of_text(group_data, tokenizer, folder, name, role))
    return parts


def _side_of_ready(
    ready: Ready, data: DataConfig, tokenizer: Tokenizer, folder: Path, role: str
) -> SourceTokens:
    """Returns shards that are used completely for one split."""
    limit = data.validation_tokens if role == "validation" else 0
    record = {
        "role": role,
        "shards": str(ready.place),
        **ready.identity(),
        "validation_tokens": limit,
    }
    train, validation = opened = open_source(record, folder, tokenizer.vocab_size)
    # The manifest's notes are about its own split, which does not apply here.
    notes = trust_note(ready, ready.place)
    if role == "train":
        return SourceTokens(record, opened, Counts(len(train), 0, 0, 0, 0, tuple(notes)), None)
    splits = list(ready.manifest.splits.values()) if ready.manifest else []
    known = validation_text(validation, splits, tokenizer, ready.place)
    counts = Counts(0, len(validation), *known[:3], notes=(*notes, *known.notes))
    return SourceTokens(record, opened, counts, known.text)


def _side_of_text(
    data: DataConfig, tokenizer: Tokenizer, folder: Path, name: str, role: str
) -> SourceTokens:
    """Encodes the documents of `data.sources`, all for one split, into a folder of their own."""
    documents = documents_of(data, data.sources)
    texts = [document.text for document in documents]
    train, validation = (texts, []) if role == "train" else ([], texts)
    split = Split(train, validation, True, 0, "", (), ())
    corpus = write_tokens(data, tokenizer, split, documents.notes(), folder / name)
    return of_text(corpus, data.sources, {"role": role, "text": name}, folder / name)


def _shared(
    train: Sequence[SourceTokens], validation: Sequence[SourceTokens], tokenizer: Tokenizer
) -> list[str]:
    """Notes on documents that are in training and in validation."""
    if tokenizer.end_of_text is None:
        return [
            "this tokenizer has no end-of-text token, so documents in both training and "
            "validation were not searched for"
        ]
    held_out = Shards.join([part.opened[1] for part in validation])
    matches = shared_documents([part.opened[0] for part in train], held_out, tokenizer.end_of_text)
    notes = []
    if matches.n:
        one, other = matches.first
        names = (
            f"document {one:,} of the validation tokens",
            f"document {other:,} of the training tokens",
        )
        notes.append(leaks.note(matches.n, matches.n_documents, [names]))
    n_train = sum(len(part.opened[0]) for part in train)
    if matches.n_compared < n_train:
        notes.append(
            f"validation documents were searched for in the first {matches.n_compared:,} of "
            f"{n_train:,} training tokens only"
        )
    return notes
