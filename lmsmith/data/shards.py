"""Token ids on disk: llm.c's .bin format, which modded-nanogpt uses as well, so that their data
serves as it is.

A shard is a header of 256 little-endian int32 and then the ids, one after the other, little-endian:

    header[0]   header[1]   header[2]          ids
    20240520    1           number of tokens   uint16   a vocabulary of at most 65,536
    20240801    7           number of tokens   uint32   any other

The other 253 numbers are zero. Source: llm.c, dev/data/data_common.py.

Reading maps the file into memory: only what is touched is read from the disk, so a shard of
gigabytes opens at once. `Shards` reads many of them as if they were one array. The format does not
say which tokenizer made the ids; `check_ids` holds them against a vocabulary, and `Shards` does so
with all that it hands out.
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
MAX_TOKENS = 2**31 - 1  # what an int32 can count
# magic -> version, type of an id
_KINDS: dict[int, tuple[int, np.dtype]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
_BLOCK = 2**22  # ids looked at or converted at once: memory stays small however long the shard is


def write_shard(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Writes one shard, whole or not at all.

    `ids`: (n_tokens,) of any integer type, each at least 0 and below `vocab_size`; they may be a
    memory map. Raises DataError for ids outside the vocabulary and for more than 2³¹ - 1 of them;
    StorageError where it cannot be written.
    """
    assert ids.ndim == 1, f"ids of shape {ids.shape}"
    assert ids.dtype.kind in "iu" or not ids.size, f"ids of type {ids.dtype}"
    if len(ids) > MAX_TOKENS:
        raise DataError(
            f"{len(ids):,} tokens are too many for the shard {path}: the format counts to "
            f"{MAX_TOKENS:,}. "
            "Write several shards, of 100,000,000 tokens each for example."
        )
    check_ids(ids, vocab_size, path)
    _, kind = _KINDS[_magic(vocab_size)]
    with atomic.file(path) as file:
        file.write(shard_header(len(ids), vocab_size))
        for start in range(0, len(ids), _BLOCK):
            file.write(np.ascontiguousarray(ids[start : start + _BLOCK], dtype=kind).data)


def shard_header(n_tokens: int, vocab_size: int) -> bytes:
    """What stands before `n_tokens` ids of this vocabulary."""
    magic = _magic(vocab_size)
    header = np.zeros(N_HEADER, "<i4")
    header[:3] = magic, _KINDS[magic][0], n_tokens
    return header.tobytes()


def _magic(vocab_size: int) -> int:
    return 20240520 if vocab_size <= 2**16 else 20240801


def read_shard(path: Path) -> np.memmap:
    """The ids of a shard, (n_tokens,) uint16 or uint32, read-only, mapped from the disk.

    Raises DataError where the file is missing, is no shard, or is not as long as its header says.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
            file_bytes = file.seek(0, 2)
    except OSError as error:
        raise DataError(f"The shard {path} cannot be read: {error.strerror}.") from error
    if len(start) < HEADER_BYTES:
        raise DataError(
            f"{path} is no shard: it has {file_bytes:,} bytes, and a shard's header alone has "
            f"{HEADER_BYTES:,}."
        )
    magic, version, n_tokens = (int(number) for number in np.frombuffer(start, "<i4", count=3))
    if magic not in _KINDS:
        raise DataError(
            f"{path} is no shard: it starts with {magic}, wanted {' or '.join(map(str, _KINDS))}. "
            "A .bin without llm.c's header (nanoGPT's) has to be prepared again, from its text: "
            "nothing in it says of "
            "which type its ids are."
        )
    wanted_version, kind = _KINDS[magic]
    if version != wanted_version:
        raise DataError(
            f"The shard {path} has version {version}, wanted {wanted_version}: prepare it again."
        )
    wanted_bytes = HEADER_BYTES + n_tokens * kind.itemsize
    if n_tokens < 0 or file_bytes != wanted_bytes:
        found = (file_bytes - HEADER_BYTES) // kind.itemsize
        raise DataError(
            f"The shard {path} is {'cut short' if found < n_tokens else 'damaged'}: its header "
            f"tells of {n_tokens:,} "
            f"tokens, which makes {wanted_bytes:,} bytes, and it has {file_bytes:,} bytes "
            f"({found:,} tokens). "
            "Copy or prepare it again."
        )
    return np.memmap(path, dtype=kind, mode="r", offset=HEADER_BYTES, shape=(n_tokens,))


class Shards:
    """The ids of shards, one after the other, as if they were one array: `len`, slices, windows.

    Nothing is copied but what is asked for. With a `vocab_size`, ids beyond it are refused when
    they are handed out.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], paths: Sequence[Path] = (), vocab_size: int | None = None
    ) -> None:
        """`parts`: arrays (n,) of unsigned types, in memory or memory-mapped; `paths`: whose
        they are, for errors.
        """
        self.paths, self.vocab_size = tuple(paths), vocab_size
        self._parts = [
            part.view(np.ndarray) for part in parts
        ]  # slices of a memmap take ten times as long
        self._ends = list(itertools.accumulate(map(len, parts)))

    @classmethod
    def open(cls, paths: Iterable[Path], vocab_size: int | None = None) -> "Shards":
        """Maps shards from the disk. Raises DataError as `read_shard` does."""
        paths = tuple(paths)
        return cls([read_shard(path) for path in paths], paths, vocab_size)

    @classmethod
    def join(cls, several: Sequence["Shards"]) -> "Shards":
        """All of them, one after the other: of one vocabulary, and with the paths of all or of
        none.
        """
        parts, paths = (
            [part for one in several for part in one._parts],
            [path for one in several for path in one.paths],
        )
        return cls(parts, paths, several[0].vocab_size)

    def first(self, n_tokens: int) -> "Shards":
        """The first so many ids, or all if they are fewer."""
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
        """Tokens of each shard."""
        return [len(part) for part in self._parts]

    def __getitem__(self, place: slice) -> np.ndarray:
        """Ids from one place to another: a view where they lie in one shard. Raises DataError
        for an id beyond.
        """
        start, end, stride = place.indices(len(self))
        assert stride == 1, f"every {stride}th id"
        found = [
            self._parts[number][begin:stop] for number, begin, stop in self._pieces(start, end)
        ]
        ids = (
            found[0]
            if len(found) == 1
            else np.concatenate(found)
            if found
            else np.empty(0, np.uint16)
        )
        if self.vocab_size is not None and ids.size and ids.max() >= self.vocab_size:
            self._refuse(start + int(np.argmax(ids >= self.vocab_size)))
        return ids

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Ids from each of `starts` (n,) on: (n, length) int64. Raises DataError for an id
        beyond the vocabulary.
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
        """Which shard, from where to where in it: of the ids from `start` to `end`."""
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
    """Whether a file begins as a shard does."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(4), "little") in _KINDS
    except OSError:
        return False


def check_ids(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    """Raises DataError for the first id, if any, that is not in 0 ... `vocab_size` - 1: the wrong
    tokenizer.

    `path` says in the error whose ids they are. Reads all of them, at about the speed of memory or
    disk.
    """
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        if block.max() >= vocab_size or (block.dtype.kind == "i" and block.min() < 0):
            at = int(np.argmax((block < 0) | (block >= vocab_size)))
            raise _beyond(int(block[at]), start + at, vocab_size, path)


def _beyond(found: int, position: int, vocab_size: int, where: Path | str) -> DataError:
    return DataError(
        f"{where} has id {found} at position {position:,}, and the vocabulary has {vocab_size:,} "
        f"ids "
        f"(0 to {vocab_size - 1:,}): these tokens were made with another tokenizer, or the file "
        f"is damaged."
    )
