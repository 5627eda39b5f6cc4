"""Ids as they come -> shards of equal length, in llm.c's format, going on after a kill where it
was.

    writer = ShardWriter(folder, "train", tokenizer, shard_tokens)
    writer.append(records, ids)        # as often as there is something
    state = writer.sync()              # from here on this much is not lost: ShardWriter(..., state)
                                       # goes on from it
    shards = writer.close()            # of which the last may be shorter

Where a shard ends depends on the number of tokens before alone. What is written after the last
`sync` is cut off when a writer is made from its state.
"""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.data.manifest import ShardRecord
from lmsmith.data.shards import HEADER_BYTES, shard_header
from lmsmith.hashes import sha256_of
from lmsmith.tokens.tokenizer import Tokenizer, ids_dtype


@dataclass
class State:
    """Where a writer is: shards that are finished, and how much of the next one there is."""

    finished: list[ShardRecord] = field(default_factory=list)
    n_tokens: int = 0
    n_documents: int = 0
    n_bytes: int = 0
    n_unknown: int = 0  # in all shards together, as the next
    n_unknown_bytes: int = 0

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "State":
        return cls(**{**found, "finished": [ShardRecord(**shard) for shard in found["finished"]]})


class ShardWriter:
    """The shards of one split."""

    def __init__(
        self,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        shard_tokens: int,
        state: State | None = None,
    ) -> None:
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        self._shard_tokens = shard_tokens
        self._kind = np.dtype(ids_dtype(tokenizer.vocab_size)).newbyteorder("<")
        self._file: io.BufferedRandom | None = None
        self.state = state or State()
        if self.state.n_tokens:
            self._file = self._path().open("r+b")
            self._file.truncate(HEADER_BYTES + self.state.n_tokens * self._kind.itemsize)
            self._file.seek(0, os.SEEK_END)

    def append(self, records: np.ndarray, ids: np.ndarray) -> None:
        """Texts, of which `records` (of `encode.RECORD`, all of this split) tell; `ids` are
        theirs.
        """
        while len(records):
            room = self._shard_tokens - self.state.n_tokens
            ends = np.cumsum(records["n_tokens"])
            n_whole = int(np.searchsorted(ends, room, side="right"))
            if n_whole:
                n_tokens = int(ends[n_whole - 1])
                self._write(ids[:n_tokens])
                self._count(records[:n_whole])
                room -= n_tokens
                records, ids = records[n_whole:], ids[n_tokens:]
            if len(records):  # there is no room for all of the next
                if room:
                    records, ids = self._part(records, ids[:room]), ids[room:]
                self._finish()

    def sync(self) -> State:
        """Forces what is written to the disk; what `State` says is safe then."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.state

    def close(self) -> tuple[ShardRecord, ...]:
        if self.state.n_tokens:
            self._finish()
        return tuple(self.state.finished)

    def abandon(self) -> None:
        """Lets go of the file; what was not synced counts for nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self) -> Path:
        return self._folder / f"{self._split}_{len(self.state.finished):06}.bin"

    def _write(self, ids: np.ndarray) -> None:
        if self._file is None and len(ids):
            self._file = self._path().open("w+b")
            self._file.write(bytes(HEADER_BYTES))  # until it is known how many tokens there are
        if self._file is not None:
            self._file.write(np.ascontiguousarray(ids, dtype=self._kind).data)
        self.state.n_tokens += len(ids)

    def _count(self, records: np.ndarray) -> None:
        self.state.n_documents += int(records["begins"].sum())
        for name in ("n_bytes", "n_unknown", "n_unknown_bytes"):
            setattr(self.state, name, getattr(self.state, name) + int(records[name].sum()))

    def _part(self, records: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Writes `ids`, the first of the first record; what is left of the records."""
        self._write(ids)
        first, rest = records[:1].copy(), records.copy()
        text = ids[1:] if first["begins"][0] and self._tokenizer.end_of_text is not None else ids
        first["n_bytes"] = min(int(first["n_bytes"][0]), len(self._tokenizer.decode_bytes(text)))
        first["n_unknown"] = first["n_unknown_bytes"] = 0  # they go with the rest
        self._count(first)
        rest["n_tokens"][0] -= len(ids)
        rest["n_bytes"][0] -= first["n_bytes"][0]
        rest["begins"][0] = 0
        return rest

    def _finish(self) -> None:
        assert self._file is not None
        state, path = self.state, self._path()
        self._file.seek(0)
        self._file.write(shard_header(state.n_tokens, self._tokenizer.vocab_size))
        self.sync()
        self._file.close()
        self._file = None
        sha256 = sha256_of(path)
        state.finished.append(
            ShardRecord(path.name, state.n_tokens, state.n_documents, state.n_bytes, sha256)
        )
        state.n_tokens = state.n_documents = state.n_bytes = 0
