"""One document per row: truncated to the context length, padded to the longest of its batch, in
batches of similar lengths.

An epoch is a permutation of all rows, divided into pools of POOL batches. Within a pool, rows are
sorted by length before they are cut into batches, which keeps padding low; the batches of the pool
are then permuted, which mixes lengths over time. All of it is a function of (seed, epoch), so batch
`step` can be computed directly and is the same however it is split. One batch of each epoch is
filled up with empty rows.

Padding follows a row's tokens, so causal attention hides it, and it is never a target: it adds no
loss and no gradient, whatever its id.

The part of a document beyond the context length is not trained on; `share_cut` is its share of the
tokens.
"""

import numpy as np

from lmsmith.data.batches.windows import Batch, Sources, _keys, permute
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.targets import IGNORED

POOL = 64
"""Number of batches that are sorted by length together."""

WIDTHS = 8
"""Rows are padded to a multiple of this, which gives few different shapes for compiled models and
GPUs.
"""

_SCAN = 2**22  # ids searched for boundaries at a time


class Rows:
    """Documents of one source, in batches of `batch_size` rows."""

    def __init__(
        self,
        ids: np.ndarray | Shards | Sources,
        boundary: int,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        pad_id: int = 0,
    ) -> None:
        """`boundary`: the id before each document; it is also the last target of the document
        before it.

        Raises DataError if there is nothing to predict, ConfigError for several sources.
        """
        if isinstance(ids, Sources):
            if len(ids.ids) > 1:
                raise ConfigError(
                    "data.documents = 'rows' reads one source, but data.mixture names "
                    f"{len(ids.ids)}. Set data.documents to stream or packed."
                )
            ids = ids.ids[0]
        self.ids, self.T, self.batch_size, self.seed, self.pad_id = (
            ids,
            context_length,
            batch_size,
            seed,
            pad_id,
        )
        self.begins, full_lengths = document_bounds(ids, boundary)
        if not len(self.begins):
            raise DataError(
                f"the training text has {len(ids):,} tokens, so there is nothing to predict. Add "
                "text."
            )
        # The number of inputs, and of targets, of each row.
        self.lengths = np.minimum(full_lengths, context_length)
        self.share_cut = 1 - int(self.lengths.sum()) / int(full_lengths.sum())
        self.n_rows = len(self.begins)
        self.n_batches = -(-self.n_rows // batch_size)  # per epoch
        self._latest: tuple[tuple[int, int], list[np.ndarray]] = (-1, -1), []

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`, as wide as the full batch needs."""
        documents = self.documents(step)
        width = min(self.T, -(-int(self.lengths[documents].max()) // WIDTHS) * WIDTHS)
        end = self.batch_size if end is None else end
        inputs = np.full((end - start, width), self.pad_id, np.int64)
        targets = np.full((end - start, width), IGNORED, np.int64)
        for row, document in enumerate(documents[start:end].tolist()):
            first, n = int(self.begins[document]), int(self.lengths[document])
            tokens = self.ids[first : first + n + 1]
            inputs[row, :n], targets[row, :n] = tokens[:-1], tokens[1:]
        return Batch(inputs, targets)

    def n_targets(self, step: int) -> int:
        """Returns the number of predicted targets in the full batch `step`."""
        return int(self.lengths[self.documents(step)].sum())

    @property
    def tokens_per_batch(self) -> int:
        """Average."""
        return max(1, round(int(self.lengths.sum()) / self.n_batches))

    def documents(self, step: int) -> np.ndarray:
        """Returns the documents of batch `step`: (batch_size,) int64, fewer in one batch of each
        epoch.
        """
        epoch, index = divmod(step, self.n_batches)
        pool, index = divmod(index, POOL)
        latest, batches = self._latest
        if latest != (epoch, pool):
            batches = self._pool(epoch, pool)
            self._latest = (epoch, pool), batches
        return batches[index]

    def _pool(self, epoch: int, pool: int) -> list[np.ndarray]:
        n = POOL * self.batch_size
        documents = np.arange(pool * n, min((pool + 1) * n, self.n_rows))
        documents = permute(documents, self.n_rows, _keys(self.seed, epoch, "rows"))
        documents = documents[np.argsort(self.lengths[documents], kind="stable")]
        # The batch that is not full gets the shortest documents.
        fewer = len(documents) % self.batch_size or self.batch_size
        batches = np.split(documents, range(fewer, len(documents), self.batch_size))
        order = permute(
            np.arange(len(batches)), len(batches), _keys(self.seed, epoch, f"pool/{pool}")
        )
        return [batches[index] for index in order.tolist()]


def document_bounds(ids: np.ndarray | Shards, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the start of each document, and the number of its tokens that can be predicted: two
    (n,) int64.

    Every token except a document's first is predicted, and so is the boundary after the document.
    Documents with nothing to predict are skipped.
    """
    positions = [
        np.flatnonzero(ids[start : start + _SCAN] == boundary) + start
        for start in range(0, len(ids), _SCAN)
    ]
    begins = np.concatenate([np.zeros(1, np.int64), *positions])
    if len(begins) > 1 and begins[1] == 0:
        begins = begins[1:]
    lengths = np.diff(np.append(begins, max(0, len(ids) - 1)))
    return begins[lengths > 0], lengths[lengths > 0]
