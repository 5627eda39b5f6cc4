"""Encoded units, in their order -> the shards of a folder: the one process among many that knows
all of it.

Whoever encodes may be done in any order; units are taken up in theirs, so shards do not depend on
it. Duplicates are left out here, for only here it is known what was before.

`state.json` says how far it is. It is written every `SYNC_SECONDS` and at the end, after what it
speaks of is on the disk; only then the units that went into it are removed. Whatever is killed and
whenever: an `Assembler` made anew goes on from there, and no unit is encoded twice.
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
BLOCK = 1 << 22  # ids taken up at once
NAMED = 20  # of what was skipped so much is kept word for word


@dataclass
class Summary:
    """What all units together have to say."""

    counts: Counts = field(default_factory=Counts)
    skipped: list[str] = field(default_factory=list)
    n_skipped: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)


class Assembler:
    """Makes shards in `partial`, from units in `partial/work/units`. Raises StorageError."""

    def __init__(
        self, partial: Path, tokenizer: Tokenizer, shard_tokens: int, keep: Keep | None
    ) -> None:
        self._work, self._keep = partial / "work", keep
        self._kind = np.dtype(ids_dtype(tokenizer.vocab_size))
        known = _read_state(self._work / "state.json")
        self.next_unit = self._first_there = int(known["next_unit"])
        self.n_bytes, self.n_dropped = (
            int(known["n_bytes"]),
            int(known["n_dropped"]),
        )  # of text; documents
        self._n_documents = 0
        self._synced = time.monotonic()
        with _explained(partial):
            self._hashes = _reopened(self._work / "hashes.bin", known["n_hash_bytes"])
            self._summaries = _reopened(self._work / "summaries.jsonl", known["n_summary_bytes"])
            while len(hashes := np.frombuffer(self._hashes.read(16 * BLOCK), "<u8").reshape(-1, 2)):
                assert keep is not None
                keep(hashes, self._n_documents)
                self._n_documents += len(hashes)
            self._summaries.seek(0, os.SEEK_END)
            self._writers = [
                ShardWriter(partial, split, tokenizer, shard_tokens, State.from_dict(state))
                for split, state in zip(SPLITS, known["splits"], strict=True)
            ]

    def add(self) -> None:
        """Takes up the next unit, which is finished."""
        place = unit_file(self._work, self.next_unit, "")
        kept = True  # a unit that begins within a document is of one that is never dropped
        with _explained(place):
            records = np.fromfile(place.with_suffix(".records"), RECORD)
            with place.with_suffix(".ids").open("rb") as file:
                for block in _blocks(records):
                    data = file.read(int(block["n_tokens"].sum()) * self._kind.itemsize)
                    kept = self._add_block(block, np.frombuffer(data, self._kind), kept)
            self._summaries.write(place.with_suffix(".json").read_bytes() + b"\n")
        self.n_bytes += int(records["n_bytes"].sum())
        self.next_unit += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Makes sure that nothing of this has to be done again."""
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
        """Ends the last shards."""
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
        """Lets go of the files. What was not synced is lost."""
        for writer in self._writers:
            writer.abandon()
        for file in (self._hashes, self._summaries):
            with contextlib.suppress(OSError):  # what is still in its buffer does not matter
                file.close()

    def _add_block(self, records: np.ndarray, ids: np.ndarray, kept: bool) -> bool:
        """`kept`: whether the document stays that the first record may be in the middle of; that
        of the last one.
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
    """The ids of some texts. Where these are in few runs, copying runs is ten times as fast as
    choosing ids.
    """
    edges = np.flatnonzero(np.diff(mine, prepend=False, append=False)).reshape(-1, 2)
    if 200 * len(edges) > len(ids):
        return ids[np.repeat(mine, lengths)]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([ids[start:stop] for start, stop in ends[edges].tolist()])


def _blocks(records: np.ndarray) -> Iterator[np.ndarray]:
    """Some records after the others, of about `BLOCK` tokens together."""
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
        found = json.loads(line)
        counts: dict[str, Any] = found["counts"]
        counts |= {
            name: Counter(counted) for name, counted in counts.items() if isinstance(counted, dict)
        }
        summary.counts.add(Counts(**counts))
        summary.skipped += found["skipped"][: NAMED - len(summary.skipped)]
        summary.n_skipped += found["n_skipped"]
        summary.fingerprints |= found["files"]
    return summary


def _read_state(path: Path) -> dict[str, Any]:
    start = dict.fromkeys(
        ("next_unit", "n_bytes", "n_dropped", "n_hash_bytes", "n_summary_bytes"), 0
    )
    if not path.exists():
        return {**start, "splits": [asdict(State()) for _ in SPLITS]}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _reopened(path: Path, n_bytes: int) -> BinaryIO:
    """A file to go on with after so many bytes, from its beginning to read what there is."""
    path.touch()
    file = path.open("r+b")
    file.truncate(n_bytes)
    return file


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(atomic.explain(error, place)) from error
