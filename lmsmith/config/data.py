"""Settings of the data: where the text comes from and how it is read."""

import math
from dataclasses import dataclass
from typing import Literal

from lmsmith.config.settings import check, setting
from lmsmith.errors import ConfigError


@dataclass(frozen=True)
class DataSource:
    """One of several sources that are mixed by weight: a `[[data.mixture]]` of a recipe."""

    path: str = setting("", "a file, folder or glob of text, or a folder of token shards")
    weight: float = setting(1.0, "share of the training rows, relative to the other weights")

    def __post_init__(self) -> None:
        check(bool(self.path), "data.mixture.path", repr(self.path), "a file, folder or glob")
        check(0 < self.weight < math.inf, "data.mixture.weight", self.weight, "above 0")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is read."""

    sources: tuple[str, ...] = setting((), "files, folders or globs")
    mixture: tuple[DataSource, ...] = setting(
        (), "in a recipe, instead of sources: [[data.mixture]] tables with path and weight"
    )
    text_field: str = setting("text", "field of .jsonl and column of .parquet that holds the text")
    encoding: str = setting(
        "auto", "auto: UTF-8, or UTF-16/32 by byte-order mark; or any encoding Python knows"
    )
    errors: Literal["strict", "replace"] = setting(
        "strict", "undecodable bytes: stop, or replace them with U+FFFD and count them"
    )
    documents: Literal["stream", "packed", "rows"] = setting(
        "stream",
        "stream: windows of the whole text; packed: the same, but no token attends to another "
        "document; rows: one document (in a text of one document: one line) per row, cut or "
        "padded to the context",
    )
    document_separator: str = setting(
        "auto",
        "cut plain text files into documents at this text; auto: at <|endoftext|>; none: nowhere",
    )
    special_tokens: Literal["text", "control"] = setting(
        "text",
        "encode special tokens that are written out in a document, such as <|im_start|>, as text "
        "or as their ids (control)",
    )
    skip_bad: bool = setting(
        False, "skip lines, rows and files that cannot be read; name and count them"
    )
    validation: tuple[str, ...] = setting(
        (),
        "files, folders or globs of validation text, or shards; all of SOURCE is then for training",
    )
    validation_fraction: float = setting(
        0.0,
        "share of the text held out; auto: a tenth, at most 250,000 characters",
        zero="auto",
    )
    validation_tokens: int = setting(
        0, "of a folder of shards: validate on the first N tokens held out", zero="all"
    )

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        check(0 <= fraction < 1, "data.validation_fraction", fraction, "0 to below 1")
        tokens = self.validation_tokens
        check(tokens >= 0, "data.validation_tokens", tokens, "all or more than 0")
        if self.sources and self.mixture:
            raise ConfigError(
                f"data.sources = {', '.join(self.sources)} and {len(self.mixture)} "
                "[[data.mixture]] both say what to train on: use one of them, the latter to mix "
                "sources by weight."
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """All training sources, mixed by weight or not."""
        return self.sources or tuple(source.path for source in self.mixture)
