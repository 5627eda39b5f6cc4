"""Document boundaries in batches: the setting `data.documents`.

    stream    windows of the continuous text, across document boundaries (`windows.py`)
    packed    the same windows, plus the document of each token: attention stays within documents
    rows      one document per row (`rows.py`)
    conversations   several per row, with a mask of what is learned (`conversations.py`)

With `train.truncated_bptt`, the rows of a stream continue from batch to batch (`streams.py`).

A boundary is the end-of-text token before each document. A text without any is one document; `rows`
then uses its lines, so that a list of names or sentences is trained on one at a time.
"""

import numpy as np

from lmsmith.config import RunConfig
from lmsmith.data.batches.batch_warmup import BatchWarmup
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.pairs import PairBatches
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.streams import Streams
from lmsmith.data.batches.windows import AnyBatches, Batch, Batches, Sources
from lmsmith.data.conversations import Conversations
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import Tokenizer


def batches_of(
    config: RunConfig, ids: np.ndarray | Shards | Sources | Conversations, tokenizer: Tokenizer
) -> AnyBatches:
    """Returns the training batches of a run. Raises DataError for too little text, ConfigError if
    the text has no documents but the settings need them.
    """
    check_documents(config)
    T, size, seed = config.model.context_length, config.train.batch_size, config.train.seed
    if isinstance(ids, Conversations) and config.train.objective == "preferences":
        return PairBatches(ids, context_length=T, batch_size=size, seed=seed)
    if isinstance(ids, Conversations):
        return PackedConversations(
            ids, context_length=T, batch_size=size, seed=seed, pack=config.model.packs_documents
        )
    boundary = boundary_of(config.data.documents, tokenizer)
    if config.train.truncated_bptt:
        assert not isinstance(ids, Sources)
        return Streams(ids, context_length=T, batch_size=size, seed=seed)
    if config.data.documents == "rows":
        assert boundary is not None
        return Rows(ids, boundary, context_length=T, batch_size=size, seed=seed)
    fixed = Batches(ids, context_length=T, batch_size=size, seed=seed)
    grows = bool(config.train.initial_batch_size)
    windows: AnyBatches = (
        BatchWarmup(fixed, config.train.rows_of, config.train.steps) if grows else fixed
    )
    return windows if boundary is None else Packed(windows, boundary)


def check_documents(config: RunConfig) -> None:
    """Raises ConfigError for settings that contradict each other. Does not need the text."""
    documents, n_sources = config.data.documents, len(config.data.mixture)
    if documents == "packed" and not config.model.packs_documents:
        raise ConfigError(
            "data.documents = 'packed' needs attention, which a model of kind "
            f"{config.model.kind} does not have. Set it to stream or rows."
        )
    if documents == "conversations" and (n_sources or config.train.initial_batch_size):
        name = "data.mixture" if n_sources else "train.initial_batch_size"
        raise ConfigError(f"{name} cannot be used with conversations. Leave it out.")
    if config.train.truncated_bptt and (documents != "stream" or n_sources):
        raise ConfigError(
            "train.truncated_bptt continues one text from batch to batch, so it needs "
            "data.documents = 'stream' and no data.mixture."
        )
    if documents == "rows" and n_sources > 1:
        raise ConfigError(
            f"data.documents = 'rows' reads one source, but data.mixture names {n_sources}. Set "
            "data.documents to stream or packed."
        )


def boundary_of(documents: str, tokenizer: Tokenizer) -> int | None:
    """Returns the id before each document; None for a stream, where boundaries do not matter.
    Raises ConfigError.
    """
    if documents in ("stream", "conversations"):
        return None
    if tokenizer.end_of_text is not None:
        return tokenizer.end_of_text
    if documents == "packed":
        raise ConfigError(
            "data.documents = 'packed' separates documents, but this text is a single one. Name "
            "several files or a .jsonl with one document per line, or set data.documents to "
            "stream."
        )
    with_line_end = [
        id for id in range(tokenizer.vocab_size) if b"\n" in tokenizer.decode_bytes([id])
    ]
    if len(with_line_end) == 1 and tokenizer.decode_bytes(with_line_end) == b"\n":
        return with_line_end[0]
    raise ConfigError(
        "data.documents = 'rows' needs one document per row. This text is a single document, "
        f"and the ids of the {tokenizer.kind} tokenizer cannot separate its lines: "
        f"{len(with_line_end)} of them contain a line break, expected exactly one. Use the char, "
        "byte or word tokenizer, or a text of several documents, such as a .jsonl with one per "
        "line."
    )


class Packed:
    """Batches that also have the document of each token within its row. An end-of-text token
    belongs to the document after it.
    """

    def __init__(self, windows: AnyBatches, boundary: int) -> None:
        self.windows, self.boundary = windows, boundary

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        batch = self.windows.rows(step, start, end)
        documents = np.cumsum(batch.inputs == self.boundary, axis=1, dtype=np.int32)
        return Batch(batch.inputs, batch.targets, documents)

    def n_targets(self, step: int) -> int:
        return self.windows.n_targets(step)

    @property
    def tokens_per_batch(self) -> int:
        return self.windows.tokens_per_batch
