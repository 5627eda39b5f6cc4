"""Text as it comes in real files -> a stream of documents -> training and validation text.

    documents = Documents(["books/", "more/**/*.txt", "web.jsonl.zst"])
    split = split_documents(documents, fraction=0.1)
    for note in documents.counts.notes(): ...

A plain text file is one document (whatever its suffix), or several with a separator such as <|endoftext|> between them
(`separators.py`); so is a line of .jsonl, .ndjson or .json and a row of .parquet,
each also with .gz or .zst behind it. `sources.py` finds the files, `files.py` reads one; here they become one stream.
Nothing is lost in silence: what was replaced, skipped or left out is in `Documents.counts`.

Texts that do not fit into memory are read by `data/units.py`, which splits by the same rules.

What it does not do: guess legacy encodings, normalise Unicode, clean or filter text, find near-duplicates.
"""

import contextlib
import copy
import hashlib
import os
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from lmsmith.errors import DataError
from lmsmith.text import separators
from lmsmith.text.files import WHOLE, BinaryFile, Counts, Skip, known_encoding, plural, read_texts
from lmsmith.text.skipping import Skipped, tolerating
from lmsmith.text.sources import find_files

MANY = 50  # distinct documents from which on whole documents are held out
FRACTION = 0.1  # held out of a text, unless that is
MOST_HELD_OUT = 250_000  # characters: enough for three digits of a loss, and soon evaluated
PART = 1 << 18  # characters that are encoded at once


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it is from: "file", "file:line" of .jsonl or "file:row" of .parquet, counted from 1.

    "file#n" is the n-th document of a plain file that is cut at a separator.
    """

    text: str = field(repr=False)
    source: str

    @property
    def n_bytes(self) -> int:
        """Length of the text in UTF-8: what bits per byte are counted by."""
        return len(self.text) if self.text.isascii() else sum(map(len, _utf8(self.text)))

    @property
    def hash(self) -> int:
        return split_hash(_utf8(self.text))


class Documents:
    """The documents of files, folders and glob patterns, read one after the other each time it is iterated over.

    A plain file is cut into documents at `document_separator`: auto (`<|endoftext|>`), none, or any text
    (`separators.py` has the rule). With `skip_bad` a bad line, row or file is left out and named in `notes`; where it
    is False, errors name that option, where it is None they do not.

    Sources are read in the order given, folders and patterns sorted within; a file met twice is read once. Making it
    finds the files; iterating reads them. `counts` is of the latest iteration, and complete when that has ended.

    Raises DataError for what cannot be found or read, for text that is not in its encoding (errors="strict"), for a
    binary file that was named, and at the end if there was no text at all; ConfigError for an unknown encoding.
    """

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        *,
        text_field: str = "text",
        encoding: str = "auto",
        errors: Literal["strict", "replace"] = "strict",
        document_separator: str = "auto",
        skip_bad: bool | None = None,
    ) -> None:
        assert not isinstance(sources, str), "a list of sources, not one"
        assert errors in ("strict", "replace")
        self.text_field = text_field
        self.encoding = known_encoding(encoding)
        self.errors = errors
        self.separator = separators.resolve(document_separator)
        self._separator_named = document_separator not in ("auto", "none")
        self._skip_bad = skip_bad
        self._skipped = Skipped()
        self.sources = [os.fspath(source) for source in sources]
        self._found, self._left_out = find_files(self.sources)
        self._may_be_empty = False
        self.counts = Counts(left_out=self._left_out.copy())

    @property
    def files(self) -> list[Path]:
        """The files it reads, in that order (binary ones in folders among them: they show when they are opened)."""
        return [found.path for found in self._found]

    def without(self, files: Collection[Path]) -> Self:
        """The others, for whoever reads `files` in a way of its own; that there is no text is then no error."""
        others = copy.copy(self)
        others._found = [found for found in self._found if found.path not in files]
        others._may_be_empty = self._may_be_empty or bool(files)
        return others

    def __iter__(self) -> Iterator[Document]:
        counts = self.counts = Counts(left_out=self._left_out.copy())
        self._skipped = Skipped()
        for path, named in self._found:
            with contextlib.nullcontext() if self._skip_bad is None else tolerating(self._skip):
                try:
                    yield from self._of_file(path, counts)
                except BinaryFile:
                    counts.n_binary_files += 1
                    if named:
                        raise
        if counts.n_documents == 0 and not self._may_be_empty:
            reasons = []
            if counts.n_empty:
                reasons.append(f"{plural(counts.n_empty, 'document')}, empty or white space alone")
            if counts.n_binary_files:
                reasons.append(f"{plural(counts.n_binary_files, 'file')}, binary by the look of it")
            reasons += self._skipped.notes()
            raise DataError(
                f"there is no text in {', '.join(dict.fromkeys(self.sources))}: "
                f"{' and '.join(reasons).rstrip('.') or 'the files hold no documents'}. Name a file that holds some."
            )

    def notes(self) -> list[str]:
        """Sentences on what a user might not expect in the latest iteration."""
        absent = self._separator_named and not self.counts.separators
        return [
            *(
                [f"no plain text file has the separator {self.separator!r}; each is one document."]
                if absent
                else []
            ),
            *self.counts.notes(),
            *self._skipped.notes(),
        ]

    @property
    def _skip(self) -> Skip | None:
        return self._skipped if self._skip_bad else None

    def _of_file(self, path: Path, counts: Counts) -> Iterator[Document]:
        texts = read_texts(
            path,
            self.text_field,
            self.encoding,
            self.errors,
            counts,
            WHOLE,
            self._skip,
            self.separator,
        )
        for text, source in texts:
            if not text or text.isspace():
                counts.n_empty += 1
                continue
            document = Document(text, source)
            counts.n_documents += 1
            counts.n_characters += len(text)
            counts.n_bytes += document.n_bytes
            yield document
            del text, document  # else it would be kept until the next one has been read


@dataclass(frozen=True)
class Split:
    """Training and validation texts, in the order they were read.

    `has_boundaries`: the texts come from more than one document, so that what follows one of them does not continue it.
    `*_hashes`: of the documents, whole, of which something is on that side.
    """

    train: list[str]
    validation: list[str]
    has_boundaries: bool
    n_duplicates: int  # documents dropped because an equal one was there
    description: str
    train_hashes: Collection[int]
    validation_hashes: Collection[int]


def split_documents(documents: Iterable[Document], fraction: float = 0.0) -> Split:
    """Holds out about `fraction` of the text for validation; 0: a tenth, at most about 250,000 characters.

    From 50 distinct documents on, whole documents are held out, by a hash of their content: a document stays on its
    side when others are added, and its duplicates are there too. (Without a fraction there are steps, `default_share`,
    at which some that were held out are so no more.) With fewer, the last `fraction` of each one's
    characters is held out; exact duplicates are dropped first, else one copy's tail would be trained on in another. For
    one text this is nanoGPT's split: text[:int(n * 0.9)] and the rest.

    Raises DataError if fewer than two characters would be left on either side.
    """
    assert 0 <= fraction < 1
    texts: list[str] = []
    hashes = array("Q")
    distinct: dict[int, str] = {}  # no further than is needed to know whether they are many
    for document in documents:
        texts.append(document.text)
        hashes.append(document.hash)
        if len(distinct) < MANY:
            distinct.setdefault(hashes[-1], document.text)
    n_characters = sum(map(len, texts))
    many = len(distinct) == MANY
    fraction = fraction or (
        default_share(n_characters) if many else min(FRACTION, MOST_HELD_OUT / max(1, n_characters))
    )
    n_documents, n_duplicates = len(texts), 0
    if many:
        # Both sides get something, whatever the hashes are: the lowest is always held out, the highest never.
        bound = min(max(hash_bound(fraction), min(hashes) + 1), max(hashes))
        train = [text for text, number in zip(texts, hashes, strict=True) if number >= bound]
        validation = [text for text, number in zip(texts, hashes, strict=True) if number < bound]
        train_hashes = array("Q", (number for number in hashes if number >= bound))
        validation_hashes = array("Q", (number for number in hashes if number < bound))
        how = f"{len(validation):,} of {n_documents:,} documents, chosen by a hash of their content, are for validation"
    else:
        n_documents, n_duplicates = len(distinct), n_documents - len(distinct)
        cuts = [(number, text, tail_cut(len(text), fraction)) for number, text in distinct.items()]
        train = [text[:cut] for _, text, cut in cuts if cut > 0]
        validation = [text[cut:] for _, text, cut in cuts if cut < len(text)]
        train_hashes = array("Q", (number for number, _, cut in cuts if cut > 0))
        validation_hashes = array("Q", (number for number, text, cut in cuts if cut < len(text)))
        whose = "the text" if n_documents == 1 else f"each of {n_documents} documents"
        how = f"the last {100 * fraction:.4g}% of {whose} is for validation"
    n_train, n_validation = sum(map(len, train)), sum(map(len, validation))
    if min(n_train, n_validation) < 2:
        raise DataError(
            f"the text is too short to split: of {plural(n_train + n_validation, 'character')}, {n_train} would be for "
            f"training and {n_validation} for validation; wanted at least 2 for each. Add text, or change "
            f"--data.validation_fraction ({fraction:.3g})."
        )
    held_out = f"{n_validation:,} held out ({n_validation / (n_train + n_validation):.1%})"
    dropped = f"; {plural(n_duplicates, 'exact duplicate')} dropped" if n_duplicates else ""
    description = f"{how}: {n_train:,} characters to train on, {held_out}{dropped}"
    return Split(
        train,
        validation,
        n_documents > 1,
        n_duplicates,
        description,
        train_hashes,
        validation_hashes,
    )


def default_share(n_characters: int) -> float:
    """How much of many documents is held out of so much text: 0.1, 0.03, 0.01, ..., no more than MOST_HELD_OUT.

    In steps, so that documents change sides only where the text has grown threefold.
    """
    exponent = 0
    while (
        share := FRACTION * (0.1 ** (exponent // 2)) * (0.3 if exponent % 2 else 1)
    ) * n_characters > MOST_HELD_OUT:
        exponent += 1
    return round(share, 12)


def split_hash(utf8: Iterable[bytes]) -> int:
    """64 bits that depend on the text alone. The key makes them ours: no data set was sorted or filtered by them."""
    state = hashlib.blake2b(key=b"lmsmith: training or validation", digest_size=8)
    for part in utf8:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def hash_bound(fraction: float) -> int:
    """A text whose `split_hash` is below this is held out where `fraction` of the texts are."""
    return int(fraction * 2**64)


def tail_cut(n_characters: int, fraction: float) -> int:
    """Where the last `fraction` of a text begins: nanoGPT's int(n * 0.9)."""
    return int(
        n_characters * round(1 - fraction, 12)
    )  # 1 - 0.9 is 0.09999999999999998, taken at its word


def _utf8(text: str) -> Iterator[bytes]:
    """The text in UTF-8, in parts, so that a large text is not there a second time as bytes."""
    return (text[start : start + PART].encode() for start in range(0, len(text), PART))
