"""Writes encoded units, in order, into the shards of a folder. One process does this.

Units may be encoded in any order; they are added in the order of their numbers, so the shards are
always the same. Exact duplicates are dropped here, where all earlier documents are known.

`state.json` records the progress. It is written every `SYNC_SECONDS` and at the end, after the data
it describes is on the disk. Only then are the files of the added units removed. After a kill at any
moment, a new `Assembler` continues from there, and no unit is encoded twice.
"""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmsmith import atomic
from lmsmith.data.manifest import SPLITS, SplitRecord
from lmsmith.data.prepare.dedup import Keep
from lmsmith.data.prepare.encode import RECORD
from lmsmith.data.prepare.shard_writer import ShardWriter, State
from lmsmith.data.prepare.units import unit_file
from lmsmith.errors import StorageError
from lmsmith.strict_json import to_json
from lmsmith.text.files import Counts
from lmsmith.tokens.tokenizer import Tokenizer, ids_dtype

SYNC_SECONDS = 5.0
BLOCK = 1 << 22  # ids read at a time
NAMED = 20  # number of messages about skipped text that are kept


@dataclass
class Summary:
    """Counts and messages of all units together."""

    counts: Counts = field(default_factory=Counts)
    skipped: list[str] = field(default_factory=list)
    n_skipped: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)


class Assembler:
    """Makes shards in `partial` from the units in `partial/work/units`. Raises StorageError."""

    def __init__(
        self, partial: Path, tokenizer: Tokenizer, shard_tokens: int, keep: Keep | None
    ) -> None:
        self._work, self._keep = partial / "work", keep
        self._kind = np.dtype(ids_dtype(tokenizer.vocab_size))
        saved = _read_state(self._work / "state.json")
        self.next_unit = self._first_there = int(saved["next_unit"])
        self.n_bytes = int(saved["n_bytes"])  # of text
        self.n_dropped = int(saved["n_dropped"])  # documents
        self._n_documents = 0
        self._synced = time.monotonic()
        with _explained(partial):
            self._hashes = _reopened(self._work / "hashes.bin", saved["n_hash_bytes"])
            self._summaries = _reopened(self._work / "summaries.jsonl", saved["n_summary_bytes"])
            while len(hashes := np.frombuffer(self._hashes.read(16 * BLOCK), "<u8").reshape(-1, 2)):
                assert keep is not None
                keep(hashes, self._n_documents)
                self._n_documents += len(hashes)
            self._summaries.seek(0, os.SEEK_END)
            self._writers = [
                ShardWriter(partial, split, tokenizer, shard_tokens, State.from_dict(state))
                for split, state in zip(SPLITS, saved["splits"], strict=True)
            ]

    def add(self) -> None:
        """Adds the next unit, which must be finished."""
        path = unit_file(self._work, self.next_unit, "")
        kept = True  # a unit that begins within a document: such documents are never dropped
        with _explained(path):
            records = np.fromfile(path.with_suffix(".records"), RECORD)
            with path.with_suffix(".ids").open("rb") as file:
                for block in _blocks(records):
                    data = file.read(int(block["n_tokens"].sum()) * self._kind.itemsize)
                    kept = self._add_block(block, np.frombuffer(data, self._kind), kept)
            self._summaries.write(path.with_suffix(".json").read_bytes() + b"\n")
        self.n_bytes += int(records["n_bytes"].sum())
        self.next_unit += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Makes all work so far survive a kill."""
        with _explained(self._work):
            for file in (self._hashes, self._summaries):
                file.flush()
                os.fsync(file.fileno())
            state = {
                "next_unit": self.next_unit,
                "n_bytes": self.n_bytes,
                "n_dropped": self.n_dropped,
                "n_hash_bytes": self._hashes.tell(),
                "n_summary_bytes": self._summaries.tell(),
                "splits": [asdict(writer.sync()) for writer in self._writers],
            }
            atomic.write(self._work / "state.json", to_json(state))
            for number in range(self._first_there, self.next_unit):
                for suffix in (".json", ".ids", ".records"):
                    unit_file(self._work, number, suffix).unlink(missing_ok=True)
        self._first_there, self._synced = self.next_unit, time.monotonic()

    def finish(self) -> tuple[dict[str, SplitRecord], Summary]:
        """Finishes the last shards."""
        splits = {}
        with _explained(self._work):
            for split, writer in zip(SPLITS, self._writers, strict=True):
                shards, state = writer.close(), writer.state
                splits[split] = SplitRecord(
                    n_tokens=sum(shard.n_tokens for shard in shards),
                    n_documents=sum(shard.n_documents for shard in shards),
                    n_bytes=sum(shard.n_bytes for shard in shards),
                    shards=shards,
                    n_unknown=state.n_unknown,
                    n_unknown_bytes=state.n_unknown_bytes,
                )
            self._summaries.seek(0)
            return splits, _summary(self._summaries)

    def close(self) -> None:
        """Closes the files. Loses what was not synced."""
        for writer in self._writers:
            writer.abandon()
        for file in (self._hashes, self._summaries):
            with contextlib.suppress(OSError):  # losing buffered data does not matter
                file.close()

    def _add_block(self, records: np.ndarray, ids: np.ndarray, kept: bool) -> bool:
        """Adds some records. `kept`: whether to keep the document that the first record may
        continue. Returns the same for the document of the last record.
        """
        stays = np.ones(len(records), dtype=np.bool_)
        if self._keep is not None:
            begins = records["document"] == 1
            hashes = records["content"][begins]
            new = self._keep(hashes, self._n_documents)
            self._hashes.write(hashes.tobytes())
            self._n_documents += len(new)
            self.n_dropped += int((~new).sum())
            stays = np.concatenate([[kept], new])[np.cumsum(begins)]
        for split, writer in enumerate(self._writers):
            mine = stays & (records["split"] == split)
            if mine.all():
                writer.append(records, ids)
            elif mine.any():
                writer.append(records[mine], _of(mine, records["n_tokens"].astype(np.int64), ids))
        return bool(stays[-1])


def _of(mine: np.ndarray, lengths: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the ids of the texts selected by `mine`. For a few contiguous sections, copying
    sections is ten times as fast as a boolean mask.
    """
    edges = np.flatnonzero(np.diff(mine, prepend=False, append=False)).reshape(-1, 2)
    if 200 * len(edges) > len(ids):
        return ids[np.repeat(mine, lengths)]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([ids[start:stop] for start, stop in ends[edges].tolist()])


def _blocks(records: np.ndarray) -> Iterator[np.ndarray]:
    """Splits records into blocks of about `BLOCK` tokens."""
    ends = np.cumsum(records["n_tokens"])
    start = 0
    while start < len(records):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        yield records[start:stop]
        start = stop


def _summary(lines: BinaryIO) -> Summary:
    summary = Summary()
    for line in lines:
        record = json.loads(line)
        counts: dict[str, Any] = record["counts"]
        counts |= {
            name: Counter(counted) for name, counted in counts.items() if isinstance(counted, dict)
        }
        summary.counts.add(Counts(**counts))
        summary.skipped += record["skipped"][: NAMED - len(summary.skipped)]
        summary.n_skipped += record["n_skipped"]
        summary.fingerprints |= record["files"]
    return summary


def _read_state(path: Path) -> dict[str, Any]:
    start = dict.fromkeys(
        ("next_unit", "n_bytes", "n_dropped", "n_hash_bytes", "n_summary_bytes"), 0
    )
    if not path.exists():
        return {**start, "splits": [asdict(State()) for _ in SPLITS]}
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def _reopened(path: Path, n_bytes: int) -> BinaryIO:
    """Opens a file to read its first `n_bytes` and then append; truncates what follows them."""
    path.touch()
    file = path.open("r+b")
    file.truncate(n_bytes)
    return file


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(atomic.explain(error, path)) from error
