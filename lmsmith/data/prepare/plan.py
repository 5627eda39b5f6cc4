"""Plans the work: sources -> numbered units, with the files, their splits, and the pieces that one
process reads at a time.

The shards, to the byte, are a function of the plan, and the plan is a function of the sources and
settings: not of the number of processes or their order. Planning does not read files completely. It
reads samples, at most `MANY` documents, the surroundings of the positions where large files are
cut, and larger plain files up to their first separator.

`text/held_out.py` decides which documents are held out. If there are many, the share is
`PREPARED_SHARE`. If the user names validation text, all of it is for validation and the rest for
training.

A plain file with separators (`text/separators.py`) is several documents, and is cut only after
separators.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lmsmith.data.prepare.units import (
    LARGE,
    TRAIN,
    VALIDATION,
    Piece,
    Reading,
    SourceFile,
    Unit,
    fingerprint,
    holds_separator,
    is_plain,
    measured,
    plain_texts,
    same_bytes,
    utf8,
)
from lmsmith.errors import DataError
from lmsmith.strict_json import to_json
from lmsmith.text.files import (
    COMPRESSED,
    PARQUET,
    SNIFFED,
    WHOLE,
    BinaryFile,
    Counts,
    Part,
    Skip,
    inner_suffix,
    looks_binary,
    open_bytes,
    plural,
    read_chunks,
    read_errors,
)
from lmsmith.text.held_out import MANY, PREPARED_SHARE, held_out_share, is_held_out, split_hash
from lmsmith.text.parts import Cut, divide, is_utf8, next_boundary
from lmsmith.text.reading import read_texts
from lmsmith.text.separators import can_divide, cut_after
from lmsmith.text.skipping import ignore, skipping_errors
from lmsmith.text.sources import Found

UNIT_BYTES = (1 << 22, 1 << 28)  # smallest and largest unit, in bytes on disk
UNITS = 512  # number of units to aim for, within those sizes
LOOK = 10_000  # this many documents count as many, even if they are identical
OPENING = 1 << 13  # opening a file costs as much as encoding this many bytes
EXPANDED = 4  # typical compression ratio of text


@dataclass(frozen=True)
class Plan:
    files: tuple[SourceFile, ...]
    units: tuple[Unit, ...]
    reading: Reading
    notes: tuple[str, ...]
    n_validation_units: int = 0  # named by the user; these units come first

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    @property
    def drops_duplicates(self) -> bool:
        """With few documents, exact duplicates must be dropped: the held-out tail of one would be
        in the training part of the other.
        """
        return not self.reading.by_document

    def digest(self) -> str:
        """Returns a hash of everything the shards depend on, except the tokenizer. It ignores
        `skip_bad`, so that a preparation that stopped at bad text can be resumed with it.
        """
        state = hashlib.sha256()
        for part in (asdict(replace(self.reading, skip_bad=False)), *self.files, *self.units):
            state.update(to_json(part).encode())
        return state.hexdigest()


def make_plan(
    found: Sequence[Found],
    reading: Reading,
    *,
    cut: Cut | None,
    drop_duplicates: bool,
    validation: Sequence[Found] = (),
) -> Plan:
    """Makes the plan for the files that were found. It decides `reading.by_document`, and
    `reading.fraction` if that is 0.

    `cut`: finds where a text may be cut for the tokenizer; None: nowhere, so that a large plain
    file is one piece. `validation`: files for validation; all files in `found` are then for
    training. Raises DataError if a file cannot be read.
    """
    # `read_unit` will report what is skipped here.
    skip = ignore if reading.skip_bad else None
    files = tuple(measured(path, skip) for path, _ in found)
    validation_files = tuple(measured(path, skip) for path, _ in validation)
    n_bytes = sum(file.n_bytes for file in (*files, *validation_files))
    size = min(max(n_bytes // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    if validation:
        reading = replace(reading, fraction=0.0, by_document=True)
    else:
        first_look = _look(found, files, reading, skip)
        fraction = held_out_share(
            reading.fraction,
            many=first_look.many,
            n_characters=first_look.n_characters,
            of_many=PREPARED_SHARE,
        )
        reading = replace(reading, fraction=fraction, by_document=first_look.many)
        drop_duplicates |= not first_look.many

    division = _Division(reading, skip, size, cut, drop_duplicates)
    units = list(_units(division.pieces(validation, validation_files, VALIDATION), size))
    n_validation_units = len(units)
    units += _units(division.pieces(found, files, TRAIN if validation else None), size)
    return Plan(
        (*files, *validation_files),
        tuple(units),
        reading,
        tuple(division.notes(len(files) + len(validation_files))),
        n_validation_units,
    )


def check_unchanged(plan: Plan) -> None:
    """Raises DataError if a file has changed since the plan was made."""
    for file in plan.files:
        if measured(Path(file.path), ignore) != file:
            raise DataError(
                f"{file.path} changed while it was being prepared. Prepare it again when no "
                "program writes to it."
            )


class _Look(NamedTuple):
    many: bool
    n_characters: int  # approximate total, if there are few documents


def _look(
    found: Sequence[Found], files: tuple[SourceFile, ...], reading: Reading, skip: Skip | None
) -> _Look:
    """Returns whether there are many documents. Reads until it has found `MANY` distinct ones.
    Skips blank and bad ones.
    """
    distinct: set[str | int] = set()
    n_documents = n_characters = 0
    for (path, named), file in zip(found, files, strict=True):
        with skipping_errors(skip):
            try:
                for content, length in _contents(path, file, reading, skip):
                    distinct.add(content)
                    n_documents += 1
                    n_characters += length
                    if len(distinct) == MANY or n_documents == LOOK:
                        return _Look(True, 0)
            except BinaryFile:
                if named:
                    raise
    return _Look(False, n_characters)


def _contents(
    path: Path, file: SourceFile, reading: Reading, skip: Skip | None
) -> Iterator[tuple[str | int, int]]:
    """Yields a hash of each document of a file, and its length; reads only the beginning of a large
    plain file.
    """
    if is_plain(path):
        yield from _plain_contents(path, file, reading)
        return
    for text, _ in read_texts(
        path, reading.text_field, reading.encoding, reading.errors, Counts(), WHOLE, skip
    ):
        if text and not text.isspace():
            yield split_hash(utf8(text)), len(text)


def _plain_contents(
    path: Path, file: SourceFile, reading: Reading
) -> Iterator[tuple[str | int, int]]:
    """`_contents` for a plain file. Yields nothing for blank files. Raises DataError for files that
    cannot be read.
    """
    counts, first = Counts(), None
    length = file.n_bytes * (EXPANDED if path.suffix.lower() in COMPRESSED else 1)
    if length > LARGE and not holds_separator(path, reading):
        next(read_chunks(path, reading.encoding, reading.errors, Counts()))
        yield fingerprint(path), length
        return
    for text, n_characters in plain_texts(
        Piece(file.path, WHOLE, file.n_bytes, True), reading, counts
    ):
        if isinstance(text, str) and (not text or text.isspace()):
            continue
        if first is None:
            first = text, n_characters
            continue
        if first[0]:
            yield split_hash(utf8(first[0])), first[1]
            first = "", 0
        yield split_hash(utf8(text)), n_characters
    if first and first[0]:
        yield (
            (split_hash(utf8(first[0])), first[1])
            if counts.separators
            else (fingerprint(path), length)
        )


def _is_divisible(path: Path, n_bytes: int, least: int, reading: Reading) -> bool:
    """Returns whether a file has more than `least` bytes and is plain text that can be cut at any
    character.
    """
    packed = path.suffix.lower() in COMPRESSED
    return n_bytes > least and is_plain(path) and not packed and is_utf8(path, reading.encoding)


class _Division:
    """Divides files larger than `size` into pieces."""

    def __init__(
        self, reading: Reading, skip: Skip | None, size: int, cut: Cut | None, drop_duplicates: bool
    ) -> None:
        self._reading, self._skip, self._size, self._cut = reading, skip, size, cut
        self._drop_duplicates = drop_duplicates
        # large files by fingerprint, with their splits
        self._seen: dict[str, list[tuple[Path, int | None]]] = {}
        self._n_large = self._n_duplicates = 0
        self._leaks: list[tuple[Path, Path]] = []

    def pieces(
        self, found: Sequence[Found], files: tuple[SourceFile, ...], side: int | None
    ) -> list[Piece]:
        """`side`: the split of all documents of these files; None if their content decides."""
        reading, pieces = self._reading, list[Piece]()
        for (path, named), file in zip(found, files, strict=True):
            parts = [WHOLE]
            with skipping_errors(self._skip), read_errors(path):
                if file.n_bytes > self._size and not is_plain(path):
                    parts = divide(path, self._size, reading.text_field, reading.encoding)
                elif _is_divisible(path, file.n_bytes, min(self._size, LARGE), reading):
                    if holds_separator(path, reading):
                        parts = self._behind_separators(path)
                    elif self._cut is not None and file.n_bytes > LARGE:
                        pieces += self._large(path, named, file.n_bytes, side)
                        continue
            in_groups = inner_suffix(path) in PARQUET
            for part in parts:
                length = file.n_bytes // len(parts) if in_groups else _length(part, file.n_bytes)
                pieces.append(Piece(file.path, part, length, named, side=side))
        return pieces

    def notes(self, n_files: int) -> Iterator[str]:
        if self._n_duplicates:
            yield (
                f"{plural(self._n_duplicates, 'large file')} identical to others, byte for byte; "
                "dropped."
            )
        for path, other in self._leaks:
            yield (
                f"{path} is for training and identical to {other}, which is for validation. "
                "Remove one of them."
            )
        if self._n_large and self._n_large + self._n_duplicates < n_files:
            yield (
                f"{plural(self._n_large, 'large file')} compared only by size and samples: the "
                "same text in another form, compressed or in a .jsonl, is not noticed and may "
                "be in the other split. Remove one of them."
            )

    def _behind_separators(self, path: Path) -> list[Part]:
        reading = self._reading
        if not can_divide(reading.separator):
            return [WHOLE]
        return divide(
            path, self._size, reading.text_field, reading.encoding, cut_after(reading.separator)
        )

    def _large(self, path: Path, named: bool, n_bytes: int, side: int | None) -> list[Piece]:
        """Returns the pieces of a large plain file: all in one split, or the tail in validation;
        none for a duplicate.
        """
        file_fingerprint = fingerprint(path)
        same_fingerprint = self._seen.setdefault(file_fingerprint, [])
        same = [(other, theirs) for other, theirs in same_fingerprint if same_bytes(path, other)]
        if same and self._drop_duplicates:
            self._n_duplicates += 1
            return []
        self._leaks += [(path, other) for other, theirs in same if theirs != side][:1]
        same_fingerprint.append((path, side))
        pieces = list(
            _large(
                path, named, n_bytes, file_fingerprint, self._reading, self._size, self._cut, side
            )
        )
        self._n_large += pieces[0].split is not None
        return pieces


def _large(
    path: Path,
    named: bool,
    n_bytes: int,
    file_fingerprint: str,
    reading: Reading,
    size: int,
    cut: Cut | None,
    side: int | None,
) -> Iterator[Piece]:
    assert cut is not None
    with open_bytes(path) as file:
        if looks_binary(file.read(SNIFFED), reading.encoding):  # `read_unit` reports it
            yield Piece(str(path), WHOLE, n_bytes, named, side=side)
            return
    if side is not None:
        tail = 0 if side == VALIDATION else n_bytes
    elif reading.by_document:
        tail = 0 if is_held_out([file_fingerprint.encode()], reading.fraction) else n_bytes
    else:
        tail = next_boundary(path, round(n_bytes * (1 - reading.fraction)), cut) or n_bytes
    starts = {part.start for part in divide(path, size, reading.text_field, reading.encoding, cut)}
    starts |= {tail} - {n_bytes}
    ordered = sorted(starts)
    for start, stop in zip(ordered, [*ordered[1:], None], strict=True):
        part = Part(start, stop)
        split = VALIDATION if start >= tail else TRAIN
        yield Piece(
            str(path), part, _length(part, n_bytes), named, split, begins=start in (0, tail)
        )


def _length(part: Part, n_bytes: int) -> int:
    return (n_bytes if part.stop is None else part.stop) - part.start


def _units(pieces: list[Piece], size: int) -> Iterator[Unit]:
    """Groups consecutive pieces until they have `size` bytes."""
    unit: list[Piece] = []
    n_bytes = 0
    for piece in pieces:
        unit.append(piece)
        path = Path(piece.path)
        packed = path.suffix.lower() in COMPRESSED or inner_suffix(path) in PARQUET
        n_bytes += piece.n_bytes * (EXPANDED if packed else 1) + OPENING
        if n_bytes >= size:
            yield tuple(unit)
            unit, n_bytes = [], 0
    if unit:
        yield tuple(unit)
