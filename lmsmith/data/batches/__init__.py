"""Shards -> batches, each computed from (seed, step). `packing.batches_of` chooses the class for a
config.
"""

from lmsmith.data.batches.batch_warmup import BatchWarmup
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.mixture import Mixture
from lmsmith.data.batches.packing import Packed, batches_of
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.streams import Streams
from lmsmith.data.batches.windows import AnyBatches, Batch, Batches, Sources, Windows

__all__ = [
    "AnyBatches",
    "Batch",
    "BatchWarmup",
    "Batches",
    "Mixture",
    "Packed",
    "PackedConversations",
    "ReadAhead",
    "Rows",
    "Sources",
    "Streams",
    "Windows",
    "batches_of",
]
