"""Token ids on disk, in the .bin format of llm.c and modded-nanogpt, so their data works unchanged.

A shard is a header of 256 little-endian int32, followed by the ids, also little-endian:

    header[0]   header[1]   header[2]          ids
    20240520    1           number of tokens   uint16   vocabularies of at most 65,536
    20240801    7           number of tokens   uint32   larger ones

The other 253 numbers are zero. Source: llm.c, dev/data/data_common.py.

Shards are memory-mapped: only the pages that are read come from the disk, so a shard of gigabytes
opens at once. `Shards` reads many of them as one array. The format does not record the tokenizer;
`check_ids` checks ids against a vocabulary, and `Shards` checks all ids that it returns.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lmsmith import atomic
from lmsmith.errors import DataError

N_HEADER = 256
HEADER_BYTES = 4 * N_HEADER
MAX_TOKENS = 2**31 - 1  # the header's count is an int32
# magic -> version, type of an id
_KINDS: dict[int, tuple[int, np.dtype]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
_BLOCK = 2**22  # ids checked or converted at a time, so that memory does not grow with the shard


def write_shard(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Writes one shard atomically.

    `ids`: (n_tokens,) of any integer type, from 0 to `vocab_size` - 1; may be a memory map. Raises
    DataError for ids outside the vocabulary or more than 2³¹ - 1 of them; StorageError if it cannot
    be written.
    """
    assert ids.ndim == 1, f"ids of shape {ids.shape}"
    assert ids.dtype.kind in "iu" or not ids.size, f"ids of type {ids.dtype}"
    if len(ids) > MAX_TOKENS:
        raise DataError(
            f"{len(ids):,} tokens are too many for the shard {path}: its format allows at most "
            f"{MAX_TOKENS:,}. Write several shards, for example of 100,000,000 tokens each."
        )
    check_ids(ids, vocab_size, path)
    _, kind = _KINDS[_magic(vocab_size)]
    with atomic.file(path) as file:
        file.write(shard_header(len(ids), vocab_size))
        for start in range(0, len(ids), _BLOCK):
            file.write(np.ascontiguousarray(ids[start : start + _BLOCK], dtype=kind).data)


def shard_header(n_tokens: int, vocab_size: int) -> bytes:
    """Returns the header of a shard with `n_tokens` ids of this vocabulary."""
    magic = _magic(vocab_size)
    header = np.zeros(N_HEADER, "<i4")
    header[:3] = magic, _KINDS[magic][0], n_tokens
    return header.tobytes()


def _magic(vocab_size: int) -> int:
    return 20240520 if vocab_size <= 2**16 else 20240801


def read_shard(path: Path) -> np.memmap:
    """Returns the ids of a shard, memory-mapped and read-only: (n_tokens,) uint16 or uint32.

    Raises DataError if the file is missing, is not a shard, or has another length than its header
    says.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
            file_bytes = file.seek(0, 2)
    except OSError as error:
        raise DataError(
            f"The shard {path} cannot be read: {error.strerror}. Check the "
            f"path and its permissions."
        ) from error
    if len(start) < HEADER_BYTES:
        raise DataError(
            f"{path} is not a shard: it has {file_bytes:,} bytes, and a shard's header alone has "
            f"{HEADER_BYTES:,}."
        )
    magic, version, n_tokens = (int(number) for number in np.frombuffer(start, "<i4", count=3))
    if magic not in _KINDS:
        raise DataError(
            f"{path} is not a shard: its first number is {magic}, expected "
            f"{' or '.join(map(str, _KINDS))}. A .bin file without llm.c's header (nanoGPT's) "
            "does not record the type of its ids: prepare it again from its text."
        )
    expected_version, kind = _KINDS[magic]
    if version != expected_version:
        raise DataError(
            f"The shard {path} has version {version}, expected {expected_version}. Prepare it "
            "again."
        )
    expected_bytes = HEADER_BYTES + n_tokens * kind.itemsize
    if n_tokens < 0 or file_bytes != expected_bytes:
        n_found = (file_bytes - HEADER_BYTES) // kind.itemsize
        raise DataError(
            f"The shard {path} is {'truncated' if n_found < n_tokens else 'damaged'}: its header "
            f"lists {n_tokens:,} tokens, which take {expected_bytes:,} bytes, but it has "
            f"{file_bytes:,} bytes ({n_found:,} tokens). Copy or prepare it again."
        )
    return np.memmap(path, dtype=kind, mode="r", offset=HEADER_BYTES, shape=(n_tokens,))


class Shards:
    """The ids of several shards as one array: `len`, slices, windows.

    Copies only the ids that are asked for. With a `vocab_size`, raises DataError when it would
    return an id beyond the vocabulary.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], paths: Sequence[Path] = (), vocab_size: int | None = None
    ) -> None:
        """`parts`: arrays (n,) of unsigned types, possibly memory-mapped; `paths`: their files, for
        errors.
        """
        self.paths, self.vocab_size = tuple(paths), vocab_size
        # As plain arrays: slicing a memmap takes ten times as long.
        self._parts = [part.view(np.ndarray) for part in parts]
        self._ends = list(itertools.accumulate(map(len, parts)))

    @classmethod
    def open(cls, paths: Iterable[Path], vocab_size: int | None = None) -> "Shards":
        """Memory-maps shards. Raises DataError as `read_shard` does."""
        paths = tuple(paths)
        return cls([read_shard(path) for path in paths], paths, vocab_size)

    @classmethod
    def join(cls, several: Sequence["Shards"]) -> "Shards":
        """Concatenates several `Shards`. All share one vocabulary; either all have paths or none
        has.
        """
        parts, paths = (
            [part for one in several for part in one._parts],
            [path for one in several for path in one.paths],
        )
        return cls(parts, paths, several[0].vocab_size)

    def first(self, n_tokens: int) -> "Shards":
        """Returns the first `n_tokens` ids, or all if there are fewer."""
        begins = [end - len(part) for end, part in zip(self._ends, self._parts, strict=True)]
        parts = [
            part[: max(0, n_tokens - begin)]
            for part, begin in zip(self._parts, begins, strict=True)
        ]
        return Shards(parts, self.paths, self.vocab_size)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each shard."""
        return [len(part) for part in self._parts]

    def __getitem__(self, place: slice) -> np.ndarray:
        """Returns a slice of the ids: a view if it lies in one shard, else a copy. Raises DataError
        for an id beyond the vocabulary.
        """
        start, end, stride = place.indices(len(self))
        assert stride == 1, f"every {stride}th id"
        pieces = [
            self._parts[number][begin:stop] for number, begin, stop in self._pieces(start, end)
        ]
        ids = (
            pieces[0]
            if len(pieces) == 1
            else np.concatenate(pieces)
            if pieces
            else np.empty(0, np.uint16)
        )
        if self.vocab_size is not None and ids.size and ids.max() >= self.vocab_size:
            self._refuse(start + int(np.argmax(ids >= self.vocab_size)))
        return ids

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the `length` ids from each of `starts` (n,): (n, length) int64. Raises DataError
        for an id beyond the vocabulary.
        """
        windows = np.empty((len(starts), length), np.int64)
        for window, start in zip(windows, starts.tolist(), strict=True):
            filled = 0
            for number, begin, stop in self._pieces(start, start + length):
                window[filled : filled + stop - begin] = self._parts[number][begin:stop]
                filled += stop - begin
        if self.vocab_size is not None and windows.size and windows.max() >= self.vocab_size:
            row, column = np.unravel_index(np.argmax(windows >= self.vocab_size), windows.shape)
            self._refuse(int(starts[row] + column))
        return windows

    def _pieces(self, start: int, end: int) -> Iterable[tuple[int, int, int]]:
        """Yields (shard, begin, stop) for the parts of shards that hold ids `start` to `end`."""
        number = bisect_right(self._ends, start)
        while start < end:
            n = len(self._parts[number])
            begin = start - self._ends[number] + n
            stop = min(n, begin + end - start)
            if stop > begin:
                yield number, begin, stop
            start += stop - begin
            number += 1

    def _refuse(self, place: int) -> None:
        """Raises the DataError for the id at `place`, which is beyond the vocabulary."""
        assert self.vocab_size is not None
        ((number, position, _),) = self._pieces(place, place + 1)
        where = self.paths[number] if self.paths else "the text"
        raise _beyond(int(self._parts[number][position]), position, self.vocab_size, where)


def is_shard(path: Path) -> bool:
    """Returns whether a file begins like a shard."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(4), "little") in _KINDS
    except OSError:
        return False


def check_ids(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    """Raises DataError for the first id outside 0 ... `vocab_size` - 1.

    `path` names the file in the error. Reads all ids, at about the speed of memory or disk.
    """
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        if block.max() >= vocab_size or (block.dtype.kind == "i" and block.min() < 0):
            at = int(np.argmax((block < 0) | (block >= vocab_size)))
            raise _beyond(int(block[at]), start + at, vocab_size, path)


def _beyond(id: int, position: int, vocab_size: int, where: Path | str) -> DataError:
    return DataError(
        f"{where} has id {id} at position {position:,}, but the vocabulary has {vocab_size:,} "
        f"ids (0 to {vocab_size - 1:,}). Either another tokenizer made these tokens, or the file "
        "is damaged."
    )
