"""One document a row: cut at the context, padded to the longest of its batch, batches of about
equal lengths.

An epoch is a permutation of all rows, cut into pools of POOL batches. Within a pool rows are sorted
by length before they are cut into batches, so that those of one batch need little padding; the
pool's batches then come in a permuted order, so that lengths are mixed over time. All of it follows
from (seed, epoch): batch `step` is computed, whatever came before, and is the same however it is
split. One batch of each epoch is filled up with empty rows.

Padding stands behind a row's tokens, where causal attention lets none of them see it, and is never
a target: it costs no loss, and whatever its id, no gradient comes from it.

Of a document longer than the context, what is beyond is not trained on; `share_cut` says how much
that is.
"""

import numpy as np

from lmsmith.data.batches.windows import Batch, Sources, _keys, permute
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.targets import IGNORED

POOL = 64
"""Batches that are sorted by length together."""

WIDTHS = 8
"""Rows are padded to a multiple of this: few different shapes, which compiled models and GPUs
prefer.
"""

_SCAN = 2**22  # ids looked at at once for boundaries


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
        """`boundary`: the id that stands before each document, and is the last target of the one
        that it ends.

        Raises DataError where nothing can be predicted, ConfigError for several sources.
        """
        if isinstance(ids, Sources):
            if len(ids.ids) > 1:
                raise ConfigError(
                    "data.documents = 'rows' reads one source, and data.mixture names several to "
                    "be mixed: set "
                    "data.documents to stream or packed."
                )
            ids = ids.ids[0]
        self.ids, self.T, self.batch_size, self.seed, self.pad_id = (
            ids,
            context_length,
            batch_size,
            seed,
            pad_id,
        )
        self.begins, whole = document_bounds(ids, boundary)
        if not len(self.begins):
            raise DataError(
                f"the training text has {len(ids):,} tokens: nothing to predict. Add text."
            )
        self.lengths = np.minimum(whole, context_length)  # inputs of a row, and targets as many
        self.share_cut = 1 - int(self.lengths.sum()) / int(whole.sum())
        self.n_rows = len(self.begins)
        self.n_batches = -(-self.n_rows // batch_size)  # of an epoch
        self._latest: tuple[tuple[int, int], list[np.ndarray]] = (-1, -1), []

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`, as wide as the whole batch needs."""
        found = self.documents(step)
        width = min(self.T, -(-int(self.lengths[found].max()) // WIDTHS) * WIDTHS)
        end = self.batch_size if end is None else end
        inputs = np.full((end - start, width), self.pad_id, np.int64)
        targets = np.full((end - start, width), IGNORED, np.int64)
        for row, document in enumerate(found[start:end].tolist()):
            first, n = int(self.begins[document]), int(self.lengths[document])
            tokens = self.ids[first : first + n + 1]
            inputs[row, :n], targets[row, :n] = tokens[:-1], tokens[1:]
        return Batch(inputs, targets)

    def n_counted(self, step: int) -> int:
        """How many targets of the whole batch `step` are predicted."""
        return int(self.lengths[self.documents(step)].sum())

    @property
    def tokens_per_batch(self) -> int:
        """On average."""
        return max(1, round(int(self.lengths.sum()) / self.n_batches))

    def documents(self, step: int) -> np.ndarray:
        """Which documents make up batch `step`: (batch_size,) int64, fewer in one batch of each
        epoch.
        """
        epoch, place = divmod(step, self.n_batches)
        pool, place = divmod(place, POOL)
        latest, batches = self._latest
        if latest != (epoch, pool):
            batches = self._pool(epoch, pool)
            self._latest = (epoch, pool), batches
        return batches[place]

    def _pool(self, epoch: int, pool: int) -> list[np.ndarray]:
        n = POOL * self.batch_size
        found = np.arange(pool * n, min((pool + 1) * n, self.n_rows))
        found = permute(found, self.n_rows, _keys(self.seed, epoch, "rows"))
        found = found[np.argsort(self.lengths[found], kind="stable")]
        fewer = (
            len(found) % self.batch_size or self.batch_size
        )  # the shortest make the batch that is not full
        batches = np.split(found, range(fewer, len(found), self.batch_size))
        order = permute(
            np.arange(len(batches)), len(batches), _keys(self.seed, epoch, f"pool/{pool}")
        )
        return [batches[place] for place in order.tolist()]


def document_bounds(ids: np.ndarray | Shards, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each document begins, and how many tokens after its first one can be predicted: two
    (n,) int64.

    The boundary before the next document is the last of them. Documents without any are left out.
    """
    found = [
        np.flatnonzero(ids[start : start + _SCAN] == boundary) + start
        for start in range(0, len(ids), _SCAN)
    ]
    begins = np.concatenate([np.zeros(1, np.int64), *found])
    if len(begins) > 1 and begins[1] == 0:
        begins = begins[1:]
    lengths = np.diff(np.append(begins, max(0, len(ids) - 1)))
    return begins[lengths > 0], lengths[lengths > 0]
