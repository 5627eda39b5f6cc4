"""Documents of the validation ids that are in the training ids too, word for word: in shards, and
in text that was encoded beside them.

What stands between two end-of-text tokens is a document. Reading ids takes about a second for fifty
million, so of the training ids the first `MOST_COMPARED` are looked at.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmsmith.data.prepare.plan import Plan
from lmsmith.data.prepare.units import read_unit
from lmsmith.data.shards import Shards
from lmsmith.text.files import Counts
from lmsmith.text.leaks import NAMED, note
from lmsmith.text.skipping import ignore

MOST_COMPARED = 500_000_000  # training tokens that validation documents are looked for in
_BLOCK = 1 << 22  # ids read at once


class Shared(NamedTuple):
    """How many validation documents are in the training ids, of how many; the first of them, and
    what was looked at.

    `first`: (document of the validation ids, document of the training ids), counted from 1.
    """

    n: int
    n_documents: int
    first: tuple[int, int]
    n_compared: int


def shared_documents(train: Sequence[Shards], validation: Shards, end_of_text: int) -> Shared:
    """Looks for the documents of `validation` in the training ids. All are made by one
    tokenizer.
    """
    places: dict[bytes, int] = {}
    n_documents = n_compared = 0
    for n_documents, content in enumerate(_documents(validation, end_of_text), start=1):
        places.setdefault(content, n_documents)
    found: dict[bytes, int] = {}
    number = 0
    for ids in train:
        part = ids.first(MOST_COMPARED - n_compared)
        n_compared += len(part)
        for content in _documents(part, end_of_text):
            number += 1
            if content in places:
                found.setdefault(content, number)
    first = min(((places[content], other) for content, other in found.items()), default=(0, 0))
    return Shared(len(found), n_documents, first, n_compared)


def leak_notes(work: Path, plan: Plan, n_validation: int) -> Iterator[str]:
    """Of a folder that is being prepared with validation text of its own: which of it is in the
    training text too.

    `work` holds the hashes of all documents in their order, those for validation first. To name
    documents, the units in which the first few are are read once more.
    """
    path = work / "hashes.bin"
    if not path.stat().st_size:
        return
    hashes = np.memmap(path, "<u8", "r").reshape(-1, 2)
    ends = np.cumsum([_n_documents(line) for line in (work / "summaries.jsonl").open("rb")])
    n_held_out = int(ends[plan.n_validation_units - 1])
    places = {
        tuple(found): number
        for number, found in reversed(list(enumerate(hashes[:n_held_out].tolist())))
    }
    places.pop((0, 0), None)  # pieces of large files, which are compared by `plan.py`
    wanted = np.array([low for low, _ in places], dtype=np.uint64)
    found: dict[int, int] = {}
    for start in range(n_held_out, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        for index in np.flatnonzero(np.isin(block[:, 0], wanted)).tolist():
            if (place := places.get(tuple(block[index].tolist()))) is not None:
                found.setdefault(place, start + index)
    if found:
        named = sorted(found.items())[:NAMED]
        names = [(_name(plan, ends, one), _name(plan, ends, other)) for one, other in named]
        yield note(len(found), n_validation, names)


def _n_documents(line: bytes) -> int:
    return int(json.loads(line)["counts"]["n_documents"])


def _name(plan: Plan, ends: np.ndarray, number: int) -> str:
    """Where the document of this number, counted from 0, is from, and how it begins."""
    index = int(np.searchsorted(ends, number, side="right"))
    left = number - (int(ends[index - 1]) if index else 0)
    for piece in plan.units[index]:
        for document in read_unit((piece,), plan.reading, Counts(), ignore):
            if not document.begins:
                continue
            if left == 0:
                text = document.whole if isinstance(document.whole, str) else ""
                return f"{piece.path} ({text[:40]!r})"
            left -= 1
    return f"document {number + 1:,}"


def _documents(ids: Shards, end_of_text: int) -> Iterator[bytes]:
    """128 bits of each document that is not empty."""
    state, begun = hashlib.blake2b(digest_size=16), False
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK].astype("<u4")
        place = 0
        for end in [*np.flatnonzero(block == end_of_text).tolist(), len(block)]:
            state.update(block[place:end].tobytes())
            begun |= end > place
            if end < len(block):
                if begun:
                    yield state.digest()
                state, begun = hashlib.blake2b(digest_size=16), False
            place = end + 1
    if begun:
        yield state.digest()
