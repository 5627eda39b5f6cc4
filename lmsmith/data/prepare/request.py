"""The arguments of `lmsmith data prepare`, checked, and the subset that determines the folder's
content.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith import __version__
from lmsmith.data.prepare.dedup import require_rensa
from lmsmith.data.prepare.tokenizer import Tell
from lmsmith.data.prepare.units import Reading
from lmsmith.data.shards import MAX_TOKENS
from lmsmith.errors import ConfigError
from lmsmith.text import separators
from lmsmith.text.files import known_encoding
from lmsmith.tokens.choose import check_end_of_text, named_tokenizer
from lmsmith.tokens.control import SpecialTokens, check_control
from lmsmith.tokens.tokenizer import Tokenizer

Dedup = Literal["none", "exact", "near"]
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Request:
    """The arguments of `build_shards`, which documents them."""

    sources: Sequence[str]
    out: Path
    tokenizer: str | Tokenizer
    shard_tokens: int
    dedup: Dedup
    validation_fraction: float
    text_field: str
    encoding: str
    errors: Literal["strict", "replace"]
    skip_bad: bool
    document_separator: str
    special_tokens: SpecialTokens
    validation: Sequence[str]
    workers: int
    engine: Engine
    tell: Tell

    def check(self) -> None:
        """Raises ConfigError for invalid settings."""
        if not 1 <= self.shard_tokens <= MAX_TOKENS:
            raise ConfigError(
                f"shard_tokens = {self.shard_tokens:,}: expected 1 to {MAX_TOKENS:,}, the limit "
                "of the format."
            )
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"validation_fraction = {self.validation_fraction}: expected at least 0 (0: "
                "chosen automatically) and below 1."
            )
        if self.dedup == "near":
            require_rensa()
        if self.validation and self.validation_fraction:
            raise ConfigError(
                "--validation names the validation text, and --validation-fraction would hold "
                "out some of SOURCE. Use only one of them."
            )

    @property
    def partial(self) -> Path:
        """The path of the folder while it is incomplete."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def wanted(self) -> str:
        """The name of the tokenizer."""
        return self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer.kind

    def given(self) -> Tokenizer | None:
        """Returns the tokenizer; None if it must be learned. Raises ConfigError if it cannot be
        used.
        """
        if not isinstance(self.tokenizer, str):
            tokenizer: Tokenizer | None = self.tokenizer
        else:
            tokenizer = named_tokenizer(self.tokenizer)
        if tokenizer is not None:
            check_end_of_text(tokenizer, self.wanted)
            check_control(tokenizer, self.special_tokens)
        return tokenizer

    def reading(self) -> Reading:
        """Returns the settings for reading the files. The plan sets the fraction."""
        return Reading(
            self.text_field,
            known_encoding(self.encoding),
            self.errors,
            self.skip_bad,
            self.validation_fraction,
            by_document=True,
            separator=separators.resolve(self.document_separator),
            special_tokens=self.special_tokens,
        )

    def settings(self, given: Tokenizer | None) -> dict[str, Any]:
        """Returns the settings that the shards depend on, besides the plan. An unfinished folder is
        resumed only if they are unchanged.
        """
        settings: dict[str, Any] = {
            "tokenizer": self.wanted if given is None else given.fingerprint,
            "shard_tokens": self.shard_tokens,
            "dedup": self.dedup,
            "validation_fraction": self.validation_fraction,
            "text_field": self.text_field,
            "encoding": self.encoding,
            "errors": self.errors,
            "lmsmith": __version__,
        }
        # Newer settings are omitted at their defaults, so that folders of older versions match.
        if self.document_separator != "auto":
            settings["document_separator"] = self.document_separator
        if self.special_tokens != "text":
            settings["special_tokens"] = self.special_tokens
        if self.validation:
            settings["validation"] = list(self.validation)
        return settings
