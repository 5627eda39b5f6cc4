"""Writes ids to shards of equal length in llm.c's format; resumes after a kill.

    writer = ShardWriter(folder, "train", tokenizer, shard_tokens)
    writer.append(records, ids)        # any number of times
    state = writer.sync()              # ShardWriter(..., state) resumes from here after a kill
    shards = writer.close()            # the last shard may be shorter

The end of a shard depends only on the number of tokens before it. A writer created from a state
truncates what was written after that `sync`.
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
    """The position of a writer: its finished shards, and the counts of the current one."""

    finished: list[ShardRecord] = field(default_factory=list)
    n_tokens: int = 0
    n_documents: int = 0
    n_bytes: int = 0
    n_unknown: int = 0  # in all shards together
    n_unknown_bytes: int = 0  # in all shards together

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "State":
        return cls(
            **{**content, "finished": [ShardRecord(**shard) for shard in content["finished"]]}
        )


class ShardWriter:
    """Writes the shards of one split."""

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
        """Appends texts: their `records` (of `encode.RECORD`, all of this split) and
        their `ids`.
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
            if len(records):  # the next text does not fit
                if room:
                    records, ids = self._part(records, ids[:room]), ids[room:]
                self._finish()

    def sync(self) -> State:
        """Forces what is written to the disk. The returned state is then safe."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.state

    def close(self) -> tuple[ShardRecord, ...]:
        if self.state.n_tokens:
            self._finish()
        return tuple(self.state.finished)

    def abandon(self) -> None:
        """Closes the file. Loses data that was not synced."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self) -> Path:
        return self._folder / f"{self._split}_{len(self.state.finished):06}.bin"

    def _write(self, ids: np.ndarray) -> None:
        if self._file is None and len(ids):
            self._file = self._path().open("w+b")
            self._file.write(bytes(HEADER_BYTES))  # filled in when the shard is finished
        if self._file is not None:
            self._file.write(np.ascontiguousarray(ids, dtype=self._kind).data)
        self.state.n_tokens += len(ids)

    def _count(self, records: np.ndarray) -> None:
        self.state.n_documents += int(records["begins"].sum())
        for name in ("n_bytes", "n_unknown", "n_unknown_bytes"):
            setattr(self.state, name, getattr(self.state, name) + int(records[name].sum()))

    def _part(self, records: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Writes `ids`, the beginning of the first record; returns the remaining records."""
        self._write(ids)
        first, rest = records[:1].copy(), records.copy()
        text = ids[1:] if first["begins"][0] and self._tokenizer.end_of_text is not None else ids
        first["n_bytes"] = min(int(first["n_bytes"][0]), len(self._tokenizer.decode_bytes(text)))
        first["n_unknown"] = first["n_unknown_bytes"] = 0  # counted with the rest of the text
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
