"""Sources -> numbered units of work: which files there are, how they are split, what one process does at one go.

Everything that follows (the shards, to the byte) is a function of the plan, and the plan of the sources and settings
alone: not of how many processes there are, nor of who is done first. The files are not read for it, but for samples,
a first look at no more than `MANY` documents, and the neighbourhood of the places where large files are cut.

The split (Held out: validation):

- Many documents: whole ones by a hash of their content below a fixed bound, one in twenty where no fraction is given. A
  document stays on its side whatever files are added. (A large corpus wants a smaller fraction; and who trains on it
  need not evaluate on all that is held out: `data.validation_tokens`.)
- Fewer than `MANY` distinct ones: the tail of each, exact duplicates dropped before; as for `lmsmith train`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lmsmith.data.units import (
    LARGE,
    TRAIN,
    VALIDATION,
    Piece,
    Reading,
    Unit,
    fingerprint,
    ignore,
    is_plain,
    same_bytes,
    tolerating,
    utf8,
)
from lmsmith.errors import DataError
from lmsmith.strict_json import to_json
from lmsmith.text.documents import FRACTION, MANY, MOST_HELD_OUT, hash_bound, split_hash
from lmsmith.text.files import (
    COMPRESSED,
    PARQUET,
    WHOLE,
    BinaryFile,
    Counts,
    Part,
    Skip,
    inner_suffix,
    open_bytes,
    plural,
    read_errors,
    read_texts,
    size_and_time,
)
from lmsmith.text.parts import Cut, divide, is_utf8, next_cut
from lmsmith.text.sources import Found

UNIT_BYTES = (1 << 22, 1 << 28)  # smallest and largest unit, as on the disk
UNITS = 512  # that there should be at least, in between
LOOK = 10_000  # documents after which they count as many, be they all the same
OPENING = 1 << 13  # bytes that could be encoded while a file is opened
EXPANDED = 4  # times that compressed text takes when it is not, about
HELD_OUT = (
    0.05  # of many documents, whatever their size: with another share some would change sides
)


class SourceFile(NamedTuple):
    path: str
    n_bytes: int
    changed: int  # when it was, in nanoseconds


@dataclass(frozen=True)
class Plan:
    files: tuple[SourceFile, ...]
    units: tuple[Unit, ...]
    reading: Reading
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    @property
    def drops_duplicates(self) -> bool:
        """Of few documents exact ones have to go: else one copy's tail would be trained on in another."""
        return not self.reading.by_document

    def digest(self) -> str:
        """Of all that the shards follow from, but for the tokenizer. (Who skips what is bad may go on where another
        stopped at it.)"""
        state = hashlib.sha256()
        for part in (asdict(replace(self.reading, skip_bad=False)), *self.files, *self.units):
            state.update(to_json(part).encode())
        return state.hexdigest()


def make_plan(
    found: Sequence[Found], reading: Reading, *, cut: Cut | None, drop_duplicates: bool
) -> Plan:
    """Of the files that were found. `reading.fraction` 0: chosen; `reading.by_document` is decided here.

    `cut`: where a text may be cut for the tokenizer; None: nowhere, so that a large plain file is one piece of work.
    Raises DataError where a file cannot be read.
    """
    skip = (
        ignore if reading.skip_bad else None
    )  # whoever reads a file will say what is wrong with it
    files = tuple(_measured(path, skip) for path, _ in found)
    look = _look(found, files, reading, skip)
    n_bytes = sum(file.n_bytes for file in files)
    fraction = reading.fraction
    if look.many and not fraction:
        fraction = HELD_OUT
    elif not fraction:
        fraction = min(FRACTION, MOST_HELD_OUT / max(1, look.n_characters))
    reading = replace(reading, fraction=fraction, by_document=look.many)

    drop_duplicates |= not look.many
    size = min(max(n_bytes // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    pieces, n_duplicates = _pieces(found, files, reading, skip, size, cut, drop_duplicates)
    notes = []
    if n_duplicates:
        notes.append(
            f"{n_duplicates:,} of the large files are the same as others, byte for byte; dropped."
        )
    large = {piece.path for piece in pieces if piece.split is not None}
    if large and len(large) + n_duplicates < len(files):
        notes.append(
            f"{plural(len(large), 'large file')} known by size and samples alone: the same text in another form, "
            "compressed or in a .jsonl, is not noticed, and may be on the other side. Leave one of them out."
        )
    return Plan(files, tuple(_units(pieces, size)), reading, tuple(notes))


def check_unchanged(plan: Plan) -> None:
    """Raises DataError for a file that is not as it was when the plan was made."""
    for file in plan.files:
        if _measured(Path(file.path), ignore) != file:
            raise DataError(
                f"{file.path} changed while it was being prepared. Prepare it when nobody writes to it."
            )


def _measured(path: Path, skip: Skip | None) -> SourceFile:
    with tolerating(skip), read_errors(path):
        return SourceFile(str(path), *size_and_time(path))
    return SourceFile(str(path), 0, 0)


class _Look(NamedTuple):
    many: bool
    n_characters: int  # of all, where they are few, about


def _look(
    found: Sequence[Found], files: tuple[SourceFile, ...], reading: Reading, skip: Skip | None
) -> _Look:
    """Whether documents are many: reads until `MANY` distinct ones have been met. Of plain files samples are enough."""
    distinct: set[str | int] = set()
    n_documents = n_characters = 0
    for (path, named), file in zip(found, files, strict=True):
        with tolerating(skip):
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
    """What each document of a file is known by, and its length."""
    if is_plain(path):
        if file.n_bytes:
            yield (
                fingerprint(path),
                file.n_bytes * (EXPANDED if path.suffix.lower() in COMPRESSED else 1),
            )
        return
    for text, _ in read_texts(
        path, reading.text_field, reading.encoding, reading.errors, Counts(), WHOLE, skip
    ):
        if text and not text.isspace():
            yield split_hash(utf8(text)), len(text)


def _is_divisible(path: Path, n_bytes: int, reading: Reading) -> bool:
    return (
        n_bytes > LARGE
        and is_plain(path)
        and path.suffix.lower() not in COMPRESSED
        and is_utf8(path, reading.encoding)
    )


def _pieces(
    found: Sequence[Found],
    files: tuple[SourceFile, ...],
    reading: Reading,
    skip: Skip | None,
    size: int,
    cut: Cut | None,
    drop_duplicates: bool,
) -> tuple[list[Piece], int]:
    """The files, cut where they are larger than `size`, and how many large ones are another's copies."""
    pieces: list[Piece] = []
    seen: dict[str, list[Path]] = {}
    n_duplicates = 0
    for (path, named), file in zip(found, files, strict=True):
        parts = [WHOLE]
        with tolerating(skip), read_errors(path):
            if cut is not None and _is_divisible(path, file.n_bytes, reading):
                known = fingerprint(path)
                alike = seen.setdefault(known, [])
                if drop_duplicates and any(same_bytes(path, other) for other in alike):
                    n_duplicates += 1
                    continue
                alike.append(path)
                pieces += list(_large(path, named, file.n_bytes, known, reading, size, cut))
                continue
            if file.n_bytes > size and not is_plain(path):
                parts = divide(path, size, reading.text_field, reading.encoding)
        in_groups = inner_suffix(path) in PARQUET
        for part in parts:
            length = file.n_bytes // len(parts) if in_groups else _length(part, file.n_bytes)
            pieces.append(Piece(file.path, part, length, named))
    return pieces, n_duplicates


def _large(
    path: Path, named: bool, n_bytes: int, known: str, reading: Reading, size: int, cut: Cut
) -> Iterator[Piece]:
    """A plain file in pieces, which one side gets whole, or one of them the tail."""
    with open_bytes(path) as file:
        if b"\0" in file.read(8192):  # binary: whoever reads it will say so
            yield Piece(str(path), WHOLE, n_bytes, named)
            return
    if reading.by_document:
        tail = 0 if split_hash([known.encode()]) < hash_bound(reading.fraction) else n_bytes
    else:
        tail = next_cut(path, round(n_bytes * (1 - reading.fraction)), cut) or n_bytes
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
    """Pieces one after the other until they are `size` bytes."""
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
