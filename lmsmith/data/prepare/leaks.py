"""Finds validation documents that are also in the training data, word for word: in shards, and in
text that is encoded with them.

A document is the text between two end-of-text tokens. Reading takes about one second per fifty
million ids, so only the first `MOST_COMPARED` training ids are searched.
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

MOST_COMPARED = 500_000_000  # training tokens that are searched for validation documents
_BLOCK = 1 << 22  # ids read at a time


class Shared(NamedTuple):
    """Counts of validation documents that are also in the training ids, the first such document,
    and the number of training tokens that were searched.

    `first`: (document of the validation ids, document of the training ids), counted from 1.
    """

    n: int
    n_documents: int
    first: tuple[int, int]
    n_compared: int


def shared_documents(train: Sequence[Shards], validation: Shards, end_of_text: int) -> Shared:
    """Searches the training ids for the documents of `validation`. One tokenizer must have made all
    of them.
    """
    numbers: dict[bytes, int] = {}
    n_documents = n_compared = 0
    for n_documents, content in enumerate(_documents(validation, end_of_text), start=1):
        numbers.setdefault(content, n_documents)
    first_seen: dict[bytes, int] = {}
    number = 0
    for ids in train:
        part = ids.first(MOST_COMPARED - n_compared)
        n_compared += len(part)
        for content in _documents(part, end_of_text):
            number += 1
            if content in numbers:
                first_seen.setdefault(content, number)
    first = min(
        ((numbers[content], other) for content, other in first_seen.items()), default=(0, 0)
    )
    return Shared(len(first_seen), n_documents, first, n_compared)


def leak_notes(work: Path, plan: Plan, n_validation: int) -> Iterator[str]:
    """Yields a note on validation documents that are also in the training text, for a folder that
    is prepared with validation text of its own.

    `work` has the hashes of all documents in order, those for validation first. To describe the
    first few documents, their units are read again.
    """
    path = work / "hashes.bin"
    if not path.stat().st_size:
        return
    hashes = np.memmap(path, "<u8", "r").reshape(-1, 2)
    ends = np.cumsum([_n_documents(line) for line in (work / "summaries.jsonl").open("rb")])
    n_held_out = int(ends[plan.n_validation_units - 1])
    held_out = {
        tuple(content): number
        for number, content in reversed(list(enumerate(hashes[:n_held_out].tolist())))
    }
    held_out.pop((0, 0), None)  # pieces of large files, which `plan.py` compares
    wanted = np.array([low for low, _ in held_out], dtype=np.uint64)
    matches: dict[int, int] = {}
    for start in range(n_held_out, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        for index in np.flatnonzero(np.isin(block[:, 0], wanted)).tolist():
            if (held_out_number := held_out.get(tuple(block[index].tolist()))) is not None:
                matches.setdefault(held_out_number, start + index)
    if matches:
        named = sorted(matches.items())[:NAMED]
        names = [(_name(plan, ends, one), _name(plan, ends, other)) for one, other in named]
        yield note(len(matches), n_validation, names)


def _n_documents(line: bytes) -> int:
    return int(json.loads(line)["counts"]["n_documents"])


def _name(plan: Plan, ends: np.ndarray, number: int) -> str:
    """Returns the file of document `number`, counted from 0, and its first characters."""
    index = int(np.searchsorted(ends, number, side="right"))
    n_before = number - (int(ends[index - 1]) if index else 0)
    for piece in plan.units[index]:
        for document in read_unit((piece,), plan.reading, Counts(), ignore):
            if not document.begins:
                continue
            if n_before == 0:
                text = document.whole if isinstance(document.whole, str) else ""
                return f"{piece.path} ({text[:40]!r})"
            n_before -= 1
    return f"document {number + 1:,}"


def _documents(ids: Shards, end_of_text: int) -> Iterator[bytes]:
    """Yields a 128-bit hash of each document that is not empty."""
    state, begun = hashlib.blake2b(digest_size=16), False
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK].astype("<u4")
        position = 0
        for end in [*np.flatnonzero(block == end_of_text).tolist(), len(block)]:
            state.update(block[position:end].tobytes())
            begun |= end > position
            if end < len(block):
                if begun:
                    yield state.digest()
                state, begun = hashlib.blake2b(digest_size=16), False
            position = end + 1
    if begun:
        yield state.digest()
