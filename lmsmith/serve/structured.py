"""`response_format`: constrained decoding. An answer follows a JSON schema at every token.

llguidance keeps the state of the grammar and says which tokens may come next; all others get no
probability. JSON is written with ", " and ": " and no other space between its parts, so that a
model cannot fill an answer with spaces. An answer that `max_tokens` ends is cut off and not valid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.generate.decode import unused_tokens
from lmsmith.generate.text_model import TextModel
from lmsmith.serve.errors import ApiError, bad
from lmsmith.serve.fields import Fields, kind_of
from lmsmith.serve.pieces import bytes_of
from lmsmith.strict_json import to_json

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LONGEST_SCHEMA = 100_000
"""Characters of a schema."""


def read_schema(fields: Fields) -> dict[str, Any] | None:
    """The JSON schema that `response_format` asks for; None for plain text. Raises ApiError."""
    form = fields.object("response_format")
    if form is None:
        return None
    kind = form.text("type")
    schema: Any = None
    if kind == "json_object":
        schema = {"type": "object"}
    elif kind == "json_schema":
        inner = form.object("json_schema")
        schema = inner.any("schema") if inner else None
        if inner is None or not isinstance(schema, dict):
            raise bad(
                f"response_format.json_schema.schema is {kind_of(schema)}: expected an object.",
                "response_format",
            )
        inner.text("name")
        inner.text("description")
        inner.flag("strict")
        inner.done()
    elif kind != "text":
        raise bad(
            f"response_format.type = {kind[:40]!a}: expected text, json_object or json_schema.",
            "response_format",
        )
    form.done()
    if schema is not None and len(to_json(schema)) > LONGEST_SCHEMA:
        raise bad(f"the schema has more than {LONGEST_SCHEMA:,} characters.", "response_format")
    return schema


class Grammars:
    """Makes constraints for one model."""

    def __init__(self, writer: TextModel) -> None:
        """Raises ApiError if llguidance is not installed."""
        try:
            import llguidance
        except ImportError:
            raise ApiError(
                501,
                "response_format needs one more library on the server: "
                "`pip install 'lmsmith[serve]'`.",
                param="response_format",
            ) from None
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(writer)))
        self._has_end = bool(writer.ends)

    def constraints(self, schema: dict[str, Any], n: int) -> list[GrammarConstraint]:
        """A constraint for each of n sequences. Raises ApiError for a schema that is not supported.

        Compiling a schema takes time, so it must not run in the event loop's thread.
        """
        matcher_type = self._library.LLMatcher
        try:
            grammar = matcher_type.grammar_from_json_schema(to_json(schema), overrides=_LAYOUT)  # type: ignore[arg-type]
        except ValueError as error:
            raise bad(f"the schema cannot be used: {str(error)[:500]}", "response_format") from None
        matcher = matcher_type(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0][:500]
            raise bad(f"the schema cannot be used: {reason}", "response_format")
        return [GrammarConstraint(matcher.deep_copy(), self._has_end) for _ in range(n)]


class GrammarConstraint:
    """The state of a grammar in one sequence."""

    def __init__(self, matcher: Any, has_end: bool) -> None:
        self._matcher, self._has_end = matcher, has_end
        self.failed = False

    def restrict(self, logits: npt.NDArray[np.float64]) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if not np.isfinite(logits[: len(allowed)][allowed]).any():
            self.failed = True  # the caller drops the token: other sequences of the batch continue
            return
        logits[: len(allowed)][~allowed] = -np.inf
        logits[len(allowed) :] = -np.inf

    def add(self, id: int) -> None:
        self._matcher.consume_token(id)

    @property
    def done(self) -> bool:
        matcher = self._matcher
        return bool(matcher.is_stopped() or (not self._has_end and matcher.is_accepting()))


class _Vocabulary:
    """A model's tokens, as llguidance reads them."""

    def __init__(self, writer: TextModel) -> None:
        tokenizer, V = writer.tokenizer, writer.model.vocab_size
        unused = unused_tokens(writer.model, tokenizer)
        special = {*writer.ends, *getattr(tokenizer, "special_tokens", {}).values()}
        nothing = special | set(() if unused is None else unused.tolist())
        self.tokens = [b"" if id in nothing else bytes_of(tokenizer, id) for id in range(V)]
        for id in special:
            self.tokens[id] = b"\xff<special>"
        if writer.ends:
            self.eos_token_id = min(writer.ends)
        else:  # the grammar needs one; no model draws it
            self.tokens.append(b"\xff<end>")
            self.eos_token_id = V
            special = special | {V}
        self.bos_token_id = None
        self.special_token_ids = sorted(special)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return [int(id) for id in self._encode(text)]
