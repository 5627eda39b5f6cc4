"""Finds duplicate documents: exact ones by a hash of their content, near ones by MinHash.

Exact: the first of equal documents is kept. `Seen` stores 127 bits of each hash, in 32 to 64 bytes
per document; among 2⁴⁰ texts, the probability that two different ones collide is 2⁻⁴⁸.

Near: documents whose sets of runs of five words have a Jaccard similarity of about `SIMILAR` or
more. MinHash (Broder 1997), computed by rensa (`pip install 'lmsmith[dedup]'`), turns each set into
a signature of 128 numbers. Two documents are linked if they agree in one of 16 bands of 8 numbers
and if the similarity estimated from all 128 is at least `SIMILAR`. One document of each connected
group is kept: the first one in validation, or else the first. So no kept training document is a
near duplicate of a validation document, as far as MinHash finds it: pairs of similarity 0.9 nearly
always, 0.8 half of the time, 0.7 hardly ever. FineWeb does the same (Penedo et al. 2024,
arXiv:2406.17557), without the estimate.

Limits: texts that do not fit into memory (`units.Stream`) are not compared. Signatures take 513
bytes per document on disk; finding the links takes about 40 bytes of memory per document.
"""

import functools
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith import atomic
from lmsmith.data.prepare.engines import Work
from lmsmith.data.prepare.units import TRAIN, Job, Unit, read_unit, unit_file, utf8
from lmsmith.errors import ConfigError
from lmsmith.text.files import Counts
from lmsmith.text.skipping import ignore

SIMILAR = 0.8
N_BANDS, N_ROWS = 16, 8
N_NUMBERS = N_BANDS * N_ROWS
SIGNATURE = np.dtype([("split", "u1"), ("numbers", "<u4", (N_NUMBERS,))])
BATCH = 1 << 20  # characters of documents to sign at a time
RUN = 5  # words
KNOWN_WORDS = 1 << 20  # words whose hashes are cached
# A word: one character of a script without spaces (Thai to Khmer, kana, ideographs), or a run of
# other word characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

Near = tuple[npt.NDArray[np.bool_], int]
"""A mask of the documents to drop as near duplicates, and the number of training documents among
them that duplicate a validation document.
"""

Keep = Callable[[npt.NDArray[np.uint64], int], npt.NDArray[np.bool_]]
"""Maps the hashes (n, 2) of some documents, and the number of documents before them, to a mask of
the documents to keep. Called once for each document, in order; after a kill, again from the first
one.
"""


def content_hash(parts: Iterable[bytes]) -> bytes:
    """Returns a 128-bit hash of the text; how it is divided into parts does not matter."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


class Seen:
    """A set of hashes: an open-addressing table, at most half full."""

    def __init__(self) -> None:
        self._table = np.zeros((1 << 16, 2), dtype=np.uint64)
        self._n = 0

    def are_new(self, hashes: Hashes) -> Mask:
        """Returns a mask of the `hashes` (n, 2) that are new, and adds them. Repeats within
        `hashes` are not new.
        """
        if 2 * (self._n + len(hashes)) > len(self._table):
            old = self._table[self._table.any(axis=1)]
            n_slots = 1 << (4 * (self._n + len(hashes))).bit_length()
            self._table = np.zeros((n_slots, 2), dtype=np.uint64)
            _compiled()(self._table, old, np.empty(len(old), dtype=np.bool_))
        new = np.empty(len(hashes), dtype=np.bool_)
        _compiled()(self._table, hashes, new)
        self._n += int(new.sum())
        return new


def signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Returns the signature of each text: (n, 128). Raises ConfigError if rensa is not
    installed.
    """
    rensa = require_rensa()
    runs = [_runs(text) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in runs])]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate([*runs, np.empty(0, np.uint64)]), offsets, N_NUMBERS, 1
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), N_NUMBERS)


def sign_unit(job: Job, number: int, unit: Unit) -> None:
    """Writes the signatures of a unit's documents: (n,) of `SIGNATURE`. Raises DataError,
    StorageError.
    """
    skip = ignore if job.reading.skip_bad else None
    with atomic.file(unit_file(job.folder, number, ".signatures")) as file:
        splits, texts, n_characters, n_pieces = list[int](), list[str](), 0, 0
        for document in read_unit(unit, job.reading, Counts(), skip):
            if not document.begins:
                continue
            split = document.spans[0][0] if job.reading.by_document else TRAIN
            if isinstance(document.whole, str):
                splits.append(split)
                texts.append(document.whole)
                n_characters += len(document.whole)
                if n_characters < BATCH:
                    continue
            file.write(_signed(splits, texts).tobytes())
            splits, texts, n_characters = [], [], 0
            # A long text is compared with exact copies only; a piece of a large file is not
            # compared.
            if not isinstance(document.whole, str):
                n_pieces += 1
                name = (
                    content_hash(utf8(document.whole))
                    if document.whole
                    else f"{number}/{n_pieces}".encode()
                )
                row = np.zeros(1, SIGNATURE)
                row["split"] = split
                row["numbers"] = np.frombuffer(hashlib.shake_128(name).digest(4 * N_NUMBERS), "<u4")
                file.write(row.tobytes())
        file.write(_signed(splits, texts).tobytes())


def _signed(splits: list[int], texts: list[str]) -> npt.NDArray[np.void]:
    rows = np.zeros(len(texts), SIGNATURE)
    rows["split"], rows["numbers"] = splits, signatures(texts)
    return rows


def near_duplicates(found: npt.NDArray[np.void]) -> tuple[Mask, int]:
    """Returns a mask of the documents to drop, and the number of training documents among them that
    duplicate a validation document.

    `found`: signatures (n,) of `SIGNATURE`, in document order; may be a memory map.
    """
    order = np.argsort(found["split"] == TRAIN, kind="stable")  # validation first
    # For each document, the first document linked with it, as positions in `order`.
    first = np.arange(len(order))
    links = np.concatenate(
        [*(_links(found, order, band) for band in range(N_BANDS)), np.empty((0, 2), np.int64)]
    )
    while True:
        lower = np.minimum(first[links[:, 0]], first[links[:, 1]])
        before = first.copy()
        np.minimum.at(first, links[:, 0], lower)
        np.minimum.at(first, links[:, 1], lower)
        first = first[first]
        if np.array_equal(first, before):
            break
    dropped = np.empty(len(order), dtype=np.bool_)
    dropped[order] = first != np.arange(len(order))
    n_validation = int((found["split"] != TRAIN).sum())
    return dropped, int((first[n_validation:] < n_validation).sum())


def require_rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise ConfigError(
            "--dedup near needs the package rensa, which computes MinHash and is not installed: "
            "`pip install 'lmsmith[dedup]'`."
        ) from error
    return rensa


_words: dict[str, int] = {}


def _runs(text: str) -> Hashes:
    """Returns a hash of each run of `RUN` consecutive words; if there are fewer words, one hash of
    them all.
    """
    words = _WORD.findall(text.lower()) or [text]
    if len(_words) > KNOWN_WORDS:
        _words.clear()
    for word in set(words).difference(_words):
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        _words[word] = int.from_bytes(digest, "little")
    hashes = np.fromiter(map(_words.__getitem__, words), dtype=np.uint64, count=len(words))
    n_words = min(RUN, len(words))
    runs = np.zeros(len(words) - n_words + 1, dtype=np.uint64)
    for offset in range(n_words):
        runs = (runs + hashes[offset : offset + len(runs)]) * _ODD
        runs ^= runs >> np.uint64(29)
    return runs


def _links(
    found: npt.NDArray[np.void], order: npt.NDArray[np.int64], band: int
) -> npt.NDArray[np.int64]:
    """Pairs (first, other), as positions in `order`, of documents that agree in one band and are
    similar by their full signatures.
    """
    keys = np.zeros(len(order), dtype=np.uint64)
    columns = slice(band * N_ROWS, (band + 1) * N_ROWS)
    for start in range(0, len(order), _BLOCK):
        rows = found["numbers"][start : start + _BLOCK, columns].astype(np.uint64)
        for column in rows.T:
            keys[start : start + _BLOCK] = (keys[start : start + _BLOCK] ^ column) * _ODD
            keys[start : start + _BLOCK] ^= keys[start : start + _BLOCK] >> np.uint64(29)
    keys = keys[order]
    by_key = np.argsort(keys, kind="stable")
    keys = keys[by_key]
    new = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.bool_)
    firsts = by_key[np.flatnonzero(new)[np.cumsum(new) - 1]]
    pairs = np.stack([firsts, by_key], axis=1)[~new]
    similar = np.empty(len(pairs), dtype=np.bool_)
    for start in range(0, len(pairs), _BLOCK):
        left, right = (found["numbers"][order[side]] for side in pairs[start : start + _BLOCK].T)
        similar[start : start + _BLOCK] = (left == right).mean(axis=1) >= SIMILAR
    return pairs[similar]


_BLOCK = 1 << 16  # documents compared at a time


@functools.cache
def _compiled() -> Any:
    """Returns the lookup in `Seen`'s table, compiled on first use."""
    # Importing the compiler takes half a second, and most uses do not need it.
    from lmsmith.tokens.compiled import kernel

    @kernel
    def insert(table, hashes, new):  # type: ignore[no-untyped-def]
        mask = np.uint64(len(table) - 1)
        for k in range(len(hashes)):
            low, high = hashes[k, 0], hashes[k, 1] | np.uint64(1)  # an empty slot has 0 there
            slot = low & mask
            while table[slot, 1] != 0 and (table[slot, 0] != low or table[slot, 1] != high):
                slot = (slot + np.uint64(1)) & mask
            new[k] = table[slot, 1] == 0
            table[slot, 0], table[slot, 1] = low, high

    return insert


# ---- for a folder that is being prepared ---------------------------------------------------------


def find_near(
    work: Path, n_units: int, run: Callable[[str, Work, Sequence[int]], Iterator[int]]
) -> Near:
    """Signs all units with `run`, unless that has been done, and finds near duplicates among their
    documents.
    """
    path = work / "near.npz"
    if not path.exists():
        numbers = range(n_units)
        left = [number for number in numbers if not unit_file(work, number, ".signatures").exists()]
        for _ in run("comparing", sign_unit, left):
            pass
        joined = work / "signatures.bin"
        with joined.open("wb") as file:
            for number in numbers:
                with unit_file(work, number, ".signatures").open("rb") as part:
                    shutil.copyfileobj(part, file)
        found = (
            np.memmap(joined, SIGNATURE, "r") if joined.stat().st_size else np.empty(0, SIGNATURE)
        )
        dropped, n_for_validation = near_duplicates(found)
        del found
        with atomic.file(path) as file:
            np.savez(file, dropped=dropped, n_for_validation=n_for_validation)
        for number in numbers:
            unit_file(work, number, ".signatures").unlink()
        joined.unlink()
    with np.load(path) as found:
        return found["dropped"], int(found["n_for_validation"])


def which_to_keep(near: Near | None, *, drops: bool, compares: bool) -> Keep | None:
    """Returns the rule that decides which documents to keep; None if all are kept and hashes are
    not needed.

    `drops`: exact duplicates are dropped. `compares`: all are kept, but their hashes are used
    later.
    """
    if near is not None:
        dropped = near[0]
        return lambda found, first: ~dropped[first : first + len(found)]
    if compares:
        return lambda found, first: np.ones(len(found), dtype=np.bool_)
    if not drops:
        return None
    seen = Seen()
    # A hash of zeros marks a document that is not compared.
    return lambda found, first: seen.are_new(found) | ~found.any(axis=1)
