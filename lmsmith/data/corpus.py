"""The data of a run: training and validation ids, and the tokenizer that made them.

    corpus = load(RUN / "tokens")

A run on text alone, without mixture weights, has (`prepare/run_text.py` writes it):

    RUN/tokens/train.bin, val.bin     ids in llm.c's format
    RUN/tokens/validation.txt         the validation text, to score compressors and other models on
    RUN/tokens/tokenizer.json
    RUN/tokens/corpus.json            `Counts`

A run on several sources or on ready-made shards has (`prepare/run_sources.py` writes it):

    RUN/tokens/sources.json           the sources in order, with their weights
    RUN/tokens/source-1/ ...          train.bin and val.bin of each source that is text
    RUN/tokens/corpus.json, tokenizer.json, and validation.txt if the text is small

A run that learns from conversations has the files of `conversations.py`.

Ready-made shards (`ready.py`) are not copied. Their record in sources.json has their path, and the
hash of their manifest or, without one, the names and sizes of the shards. `load` refuses shards
that have changed since the run began.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith import foreign_json
from lmsmith.data import conversations
from lmsmith.data.batches.windows import Sources
from lmsmith.data.conversations import Conversations
from lmsmith.data.ready import Ready, open_shard_folder
from lmsmith.data.shards import Shards, read_shard
from lmsmith.errors import CheckpointError
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

FORMAT, WITH_ROLES = 1, 2  # formats of sources.json: without and with a `role` in each record


@dataclass(frozen=True)
class Counts:
    """Sizes of the training and validation splits. `n_val_bytes` counts the validation text in
    UTF-8; `n_val_unknown` and `n_val_unknown_bytes` count its parts that are not in the vocabulary
    (see `Tokenizer.count_unknown`). `notes` are sentences for the user.
    """

    n_train_tokens: int
    n_val_tokens: int
    n_val_bytes: int
    n_val_unknown: int
    n_val_unknown_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Training and validation ids, with the tokenizer that made them."""

    train: np.ndarray | Shards | Sources | Conversations
    validation: np.ndarray | Shards | Conversations
    tokenizer: Tokenizer
    counts: Counts

    @property
    def starts_with_end_of_text(self) -> bool:
        """Whether the validation ids begin with an end-of-text token. That token is context only:
        it is not scored.
        """
        end_of_text = self.tokenizer.end_of_text
        if isinstance(self.validation, Conversations):
            return False
        return end_of_text is not None and self.validation[:1].tolist() == [end_of_text]


def load(folder: Path) -> Corpus:
    """Loads the corpus in RUN/tokens, with memory-mapped ids.

    Raises CheckpointError if a file is missing or damaged or shards have changed, and DataError for
    damaged shards.
    """
    if (folder / conversations.FILE_NAME).exists():
        return _load_conversations(folder)
    path = folder / "sources.json"
    if not path.exists():
        return _load_text(folder)
    try:
        content = foreign_json.read(path)
        if content["format"] not in (FORMAT, WITH_ROLES):
            raise CheckpointError(
                f"{path} has format {content['format']!r}, but this version of lmsmith reads "
                f"formats up to {WITH_ROLES}. Upgrade lmsmith."
            )
        records = content["sources"]
        tokenizer, counts = load_tokenizer(folder), load_counts(folder)
        opened = [open_source(record, folder, tokenizer.vocab_size) for record in records]
        return join_sources(opened, records, tokenizer, counts)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Start the run again from its text."
        ) from error


def _load_text(folder: Path) -> Corpus:
    counts = load_counts(folder)
    return Corpus(
        read_shard(folder / "train.bin"),
        read_shard(folder / "val.bin"),
        load_tokenizer(folder),
        counts,
    )


def _load_conversations(folder: Path) -> Corpus:
    path = folder / conversations.FILE_NAME
    try:
        found = foreign_json.read(path)["format"]
        if found != conversations.FORMAT:
            raise CheckpointError(
                f"{path} has format {found!r}, but this version of lmsmith reads format "
                f"{conversations.FORMAT}. Upgrade lmsmith."
            )
        train, validation = (Conversations.open(folder, name) for name in ("train", "val"))
        return Corpus(train, validation, load_tokenizer(folder), load_counts(folder))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"the conversations in {folder} are damaged ({error}). Start the run again."
        ) from error


def load_counts(folder: Path) -> Counts:
    """Reads RUN/tokens/corpus.json. Raises CheckpointError if it is missing or damaged."""
    try:
        content = foreign_json.read(folder / "corpus.json")
        return Counts(**{**content, "notes": tuple(content["notes"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder} does not hold a run's tokens ({error}). Start the run again from its text."
        ) from error


def join_sources(
    opened: Sequence[tuple[Shards, Shards]],
    records: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    counts: Counts,
) -> Corpus:
    """Joins sources into one corpus: (training, validation) tokens and the record of each."""
    pairs = list(zip(opened, records, strict=True))
    train = [part for (part, _), record in pairs if record.get("role") != "validation"]
    validation = [part for (_, part), record in pairs if record.get("role") != "train"]
    weights = [record["weight"] for record in records if "weight" in record]
    mixed = Sources(train, weights) if weights else Shards.join(train)
    return Corpus(mixed, Shards.join(validation), tokenizer, counts)


def open_source(record: dict[str, Any], folder: Path, vocab_size: int) -> tuple[Shards, Shards]:
    """Opens the training and validation tokens of one source. Raises CheckpointError if shards are
    missing or have changed.
    """
    if "text" in record:
        path = folder / record["text"]
        return Shards.open([path / "train.bin"], vocab_size), Shards.open(
            [path / "val.bin"], vocab_size
        )
    path = Path(record["shards"])
    if not path.exists():
        raise CheckpointError(
            f"the run was trained on the shards in {path}, which does not exist. Put the folder "
            f"back, or write its new path into {folder / 'sources.json'}."
        )
    role = record.get("role")
    ready = open_shard_folder(path, one_sided=role is not None)
    if changed := _changes(record, ready):
        raise CheckpointError(
            f"the shards in {path} have changed since the run began: {changed}. Restore them, "
            "or start a new run."
        )
    if role is not None:
        everything, nothing = ready.open_all(vocab_size), Shards([], (), vocab_size)
        limit = record["validation_tokens"] or len(everything)
        return (everything, nothing) if role == "train" else (nothing, everything.first(limit))
    validation = ready.open_validation(vocab_size)
    limit = record["validation_tokens"] or len(validation)
    return ready.open_train(vocab_size), validation.first(limit)


def _changes(record: dict[str, Any], ready: Ready) -> str:
    """Describes the differences from the record; empty if there are none."""
    now = ready.identity()
    if "manifest_sha256" in record:
        return (
            "" if now == {"manifest_sha256": record["manifest_sha256"]} else "the manifest differs"
        )
    if "shards_bytes" not in now:
        return "a manifest was added"
    before, now = record["shards_bytes"], now["shards_bytes"]
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            sizes = [
                f"{size:,} bytes" if size is not None else "missing"
                for size in (before.get(name), now.get(name))
            ]
            return f"{name} was {sizes[0]} and is {sizes[1]}"
    return ""
