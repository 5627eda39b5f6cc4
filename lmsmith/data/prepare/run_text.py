"""Text -> the token files of a run: read, split, choose the tokenizer, encode, write.

    corpus = prepare_text(config.data, "auto", RUN / "tokens")

`data/corpus.py` lists the files. The run keeps them, so that it can be resumed and scored even if
the text changes. With several documents, an end-of-text token stands before each. All of the text
is in memory; `build.py` makes shards from larger texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lmsmith import atomic
from lmsmith.config import DataConfig
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.data.shards import write_shard
from lmsmith.errors import DataError
from lmsmith.strict_json import write_json
from lmsmith.text import leaks
from lmsmith.text.documents import Documents
from lmsmith.text.files import plural
from lmsmith.text.held_out import Split, split_documents
from lmsmith.tokens.choose import choose_tokenizer
from lmsmith.tokens.control import SpecialTokens, check_control, encode_text
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer, ids_dtype, to_utf8


def documents_of(data: DataConfig, sources: Sequence[str]) -> Documents:
    """Returns the documents of `sources`, read with the settings of `data`."""
    return Documents(
        sources,
        text_field=data.text_field,
        encoding=data.encoding,
        errors=data.errors,
        document_separator=data.document_separator,
        skip_bad=data.skip_bad,
    )


def prepare_text(data: DataConfig, tokenizer: str, folder: Path) -> Corpus:
    """Reads the sources and writes `folder`. Raises DataError, ConfigError, TokenizerError,
    StorageError.
    """
    if data.validation:
        split, notes = _read_both(data)
    else:
        documents = documents_of(data, data.sources)
        split = split_documents(documents, data.validation_fraction)
        notes = documents.notes()
    chosen = choose_tokenizer(tokenizer, split.train, several=split.has_boundaries)
    return write_tokens(data, chosen, split, notes, folder)


def write_tokens(
    data: DataConfig, made: Tokenizer, split: Split, notes: Sequence[str], folder: Path
) -> Corpus:
    """Encodes split texts and writes `folder`. Raises ConfigError, StorageError."""
    train, validation = (
        _encode(made, texts, data.special_tokens) for texts in (split.train, split.validation)
    )
    made.free_memory()  # training needs it more
    description = (split.description,) if split.description else ()
    counts = Counts(
        n_train_tokens=len(train),
        n_val_tokens=len(validation),
        n_val_bytes=sum(len(part) for part in _utf8(split.validation)),
        n_val_unknown=sum(made.count_unknown(text) for text in split.validation),
        n_val_unknown_bytes=sum(made.unknown_bytes(text) for text in split.validation),
        notes=(*notes, *description, *_note_unknown(made, split.train, split.validation)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "train.bin", train, made.vocab_size)
    write_shard(folder / "val.bin", validation, made.vocab_size)
    atomic.write(folder / "validation.txt", b"".join(_utf8(split.validation)))
    save_tokenizer(made, folder)
    write_json(folder / "corpus.json", asdict(counts))
    return Corpus(train, validation, made, counts)


def _read_both(data: DataConfig) -> tuple[Split, list[str]]:
    """Returns the training and validation text that the user named, and notes on them."""
    train, validation = documents_of(data, data.sources), documents_of(data, data.validation)
    leaks.refuse_shared_files(train.files, validation.files)
    texts, sources = zip(*(_read(documents) for documents in (train, validation)), strict=True)
    for side, side_texts in zip(("training", "validation"), texts, strict=True):
        if (n := sum(map(len, side_texts))) < 2:
            raise DataError(
                f"there is only {plural(n, 'character')} of {side} text, expected at least 2. "
                "Name more text."
            )
    shared = leaks.shared_documents(*sources)
    notes = [*train.notes(), *(f"of the validation text: {note}" for note in validation.notes())]
    if shared:
        notes.append(leaks.note(len(shared), len(texts[1]), shared))
    n_train, n_validation = (sum(map(len, side_texts)) for side_texts in texts)
    description = (
        f"{n_train:,} characters of {plural(len(texts[0]), 'document')} for training; "
        f"{n_validation:,} characters of {plural(len(texts[1]), 'document')} for validation, by "
        "--validation"
    )
    several = max(map(len, texts)) > 1
    return Split(texts[0], texts[1], several, 0, description, sources[0], sources[1]), notes


def _read(documents: Documents) -> tuple[list[str], dict[int, str]]:
    """Returns the texts, and for each distinct one its hash and where it is from."""
    texts, sources = list[str](), dict[int, str]()
    for document in documents:
        texts.append(document.text)
        sources.setdefault(document.hash, document.source)
    return texts, sources


def _note_unknown(tokenizer: Tokenizer, *splits: Iterable[str]) -> list[str]:
    """Returns a note on the text that the ids do not represent; empty if they represent all of
    it.
    """
    n_train, n_validation = (
        sum(tokenizer.count_unknown(text) for text in texts) for texts in splits
    )
    if not n_train + n_validation:
        return []
    changed = "words or blanks are changed by the tokenizer's normalizer or unknown to it"
    what = {
        "word": "words outside the vocabulary become <unk>",
        "char": "characters unknown to the tokenizer are skipped",
        "library": changed,
        "sentencepiece": changed,
    }.get(tokenizer.kind, "parts of the text are unknown to the tokenizer")
    return [
        f"{n_train + n_validation:,} {what}: {n_train:,} in the training text, {n_validation:,} "
        "in the validation text"
    ]


def _encode(
    tokenizer: Tokenizer, texts: Iterable[str], special_tokens: SpecialTokens = "text"
) -> np.ndarray:
    """Returns the ids of the texts, concatenated, with an end-of-text token before each if the
    tokenizer has one.
    """
    kind = ids_dtype(tokenizer.vocab_size)
    check_control(tokenizer, special_tokens)
    parts: list[np.ndarray] = [np.empty(0, dtype=kind)]
    for text in texts:
        if tokenizer.end_of_text is not None:
            parts.append(np.array([tokenizer.end_of_text], dtype=kind))
        parts.append(encode_text(tokenizer, text, special_tokens).astype(kind, copy=False))
    return np.concatenate(parts)


def _utf8(texts: Iterable[str]) -> Iterator[bytes]:
    return (to_utf8(text) for text in texts)
