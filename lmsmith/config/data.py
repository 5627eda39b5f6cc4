"""Settings of the data: which text to train on and how to read it."""

import math
from dataclasses import dataclass
from typing import Literal

from lmsmith.config.settings import check, setting
from lmsmith.errors import ConfigError


@dataclass(frozen=True)
class DataSource:
    """One source of a weighted mixture: a `[[data.mixture]]` table of a recipe."""

    path: str = setting("", "a file, folder or glob of text, or a folder of token shards")
    weight: float = setting(
        1.0, "sampling weight: share of the training rows, relative to the other sources' weights"
    )

    def __post_init__(self) -> None:
        check(bool(self.path), "data.mixture.path", repr(self.path), "a file, folder or glob")
        check(0 < self.weight < math.inf, "data.mixture.weight", self.weight, "above 0")


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data: the text to train on and how to read it."""

    sources: tuple[str, ...] = setting(
        (), "training data: files, folders or globs of text, or folders of token shards"
    )
    mixture: tuple[DataSource, ...] = setting(
        (),
        "weighted mixture of training data, instead of data.sources: [[data.mixture]] tables in a "
        "recipe, each with path and weight",
    )
    text_field: str = setting(
        "text", "name of the .jsonl field or .parquet column that holds the text"
    )
    encoding: str = setting(
        "auto",
        "character encoding of text files: any that Python knows; auto: UTF-8, or UTF-16 or "
        "UTF-32 with a byte-order mark",
    )
    errors: Literal["strict", "replace"] = setting(
        "strict",
        "on undecodable bytes: strict: stop with an error; replace: read them as U+FFFD and "
        "count them",
    )
    documents: Literal["stream", "packed", "rows", "conversations"] = setting(
        "stream",
        "stream: windows over the concatenated documents; packed: the same, with attention masked "
        "between documents; rows: one document per row (one line, if the text is one document), "
        "truncated or padded to the context length; conversations: what `lmsmith tune` does",
    )
    chat_template: str = setting(
        "",
        "chat template of conversations: lmsmith, chatml, llama3, or a Jinja file; auto: the "
        "model's own, else lmsmith",
        zero="auto",
    )
    document_separator: str = setting(
        "auto",
        "text that separates the documents of a plain text file; auto: <|endoftext|>; none: each "
        "file is one document",
    )
    special_tokens: Literal["text", "control"] = setting(
        "text",
        "special tokens written in a document, such as <|im_start|>: text: encode them as "
        "ordinary characters; control: encode them as their special ids",
    )
    skip_bad: bool = setting(
        False, "skip lines, rows and files that cannot be read; report their names and number"
    )
    validation: tuple[str, ...] = setting(
        (),
        "validation set: files, folders or globs of text, or shards; all of SOURCE is then "
        "training data",
    )
    validation_fraction: float = setting(
        0.0,
        "fraction of the text held out for validation; auto: a tenth, at most 250,000 characters",
        zero="auto",
    )
    validation_tokens: int = setting(
        0,
        "with a folder of token shards: use only the first N tokens of its validation set",
        zero="all",
    )

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        check(
            0 <= fraction < 1, "data.validation_fraction", fraction, "auto, or above 0 and below 1"
        )
        tokens = self.validation_tokens
        check(tokens >= 0, "data.validation_tokens", tokens, "all or more than 0")
        if self.sources and self.mixture:
            raise ConfigError(
                f"data.sources = {', '.join(self.sources)} and {len(self.mixture)} "
                "[[data.mixture]] both name training data: use one of them. Use data.mixture to "
                "mix sources by weight."
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """All training sources, from `sources` or `mixture`."""
        return self.sources or tuple(source.path for source in self.mixture)
