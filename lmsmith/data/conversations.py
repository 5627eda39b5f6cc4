"""Token ids in conversations, with a mark for each id that is learned.

A run that learns from conversations has these files, which `lmsmith/chat` writes:

    RUN/tokens/train.bin, val.bin         ids in llm.c's format, one conversation after another
    RUN/tokens/train.learned.npy, val...  (n,) bool: the ids that are learned
    RUN/tokens/train.starts.npy, val...   (number of conversations + 1,) int64: where each starts
    RUN/tokens/train.labels.npy, val...   (pairs,) bool: desirable answers, in KTO only
    RUN/tokens/conversations.json         the format; `data/corpus.py` recognizes the run by it
    RUN/tokens/corpus.json, tokenizer.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lmsmith import atomic
from lmsmith.data.shards import read_shard, write_shard
from lmsmith.errors import StorageError

FILE_NAME, FORMAT = "conversations.json", 1


class Conversations:
    """Ids (n,), the learned ones (n,), and the start of each conversation, then n. `len` is n.

    In preference training two in a row are a pair, chosen and rejected. In KTO the second of a pair
    is the first one's prompt with another prompt's answer, and `labels` (pairs,) has the first
    ones that are desirable.
    """

    def __init__(
        self,
        ids: npt.NDArray[Any],
        learned: npt.NDArray[np.bool_],
        starts: npt.NDArray[np.int64],
        labels: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.ids, self.learned, self.starts, self.labels = ids, learned, starts, labels
        if not (len(ids) == len(learned) == int(starts[-1]) and (np.diff(starts) > 1).all()):
            raise ValueError("ids, marks and starts do not fit each other")

    @classmethod
    def join(
        cls, several: Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]], dtype: Any
    ) -> Self:
        """Joins conversations, each as ids and marks."""
        lengths = [len(ids) for ids, _ in several]
        nothing: tuple[Any, Any] = np.empty(0, dtype), np.empty(0, np.bool_)
        return cls(
            np.concatenate([nothing[0], *(ids for ids, _ in several)]).astype(dtype, copy=False),
            np.concatenate([nothing[1], *(learned for _, learned in several)]),
            np.cumsum([0, *lengths], dtype=np.int64),
        )

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Opens `folder`/NAME.bin and the files beside it, memory-mapped. Raises OSError,
        ValueError, DataError.
        """
        learned = np.load(folder / f"{name}.learned.npy", mmap_mode="r", allow_pickle=False)
        starts = np.load(folder / f"{name}.starts.npy", allow_pickle=False)
        path = folder / f"{name}.labels.npy"
        labels = np.load(path, allow_pickle=False) if path.exists() else None
        return cls(read_shard(folder / f"{name}.bin"), learned, starts, labels)

    def save(self, folder: Path, name: str, vocab_size: int) -> None:
        """Writes what `open` reads. Raises StorageError."""
        write_shard(folder / f"{name}.bin", self.ids, vocab_size)
        save_array(folder / f"{name}.learned.npy", self.learned)
        save_array(folder / f"{name}.starts.npy", self.starts)
        if self.labels is not None:
            save_array(folder / f"{name}.labels.npy", self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n(self) -> int:
        """The number of conversations."""
        return len(self.starts) - 1

    @property
    def n_learned(self) -> int:
        return int(self.learned.sum())

    def __getitem__(self, place: slice) -> Conversations:
        """The conversations that lie in a range of tokens; the longest one if none does."""
        start, stop, _ = place.indices(len(self))
        inside = np.flatnonzero((self.starts[:-1] >= start) & (self.starts[1:] <= stop))
        if not len(inside):
            inside = np.array([int(np.diff(self.starts).argmax())])
        first, last = self.starts[inside[0]], self.starts[inside[-1] + 1]
        starts = self.starts[inside[0] : inside[-1] + 2] - first
        return Conversations(self.ids[first:last], self.learned[first:last], starts)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Writes an .npy file, atomically. Raises StorageError."""
    try:
        with atomic.file(path) as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise StorageError(atomic.explain(error, path)) from error
