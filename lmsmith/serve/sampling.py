"""The fields that completions and chat share: how to sample, how much, and how to answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Self

from lmsmith.errors import ConfigError
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.serve.errors import bad
from lmsmith.serve.fields import Fields

MOST_STOPS = 16
MOST_CHOICES = 128
MOST_BIASES = 1024
MOST_REPORTED = 1 << 19
"""Log-probabilities in one answer, about 100 MB while it is collected."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    max_tokens: int = 4096  # new tokens per choice
    max_prompt_tokens: int = 1 << 17
    max_body: int = 4 << 20  # bytes
    seconds: float = 600.0
    body_seconds: float = 30.0  # to send the body


@dataclass(frozen=True)
class Common:
    """What both endpoints read."""

    sampling: Sampling
    max_tokens: int
    n: int
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    return_ids: bool
    user: str

    def limited_to(self, max_tokens: int) -> Self:
        """The same, with at most this number of new tokens."""
        return replace(self, max_tokens=min(self.max_tokens, max_tokens))


def read_common(
    fields: Fields,
    writer: TextModel,
    limits: Limits,
    *,
    default_tokens: int,
    n_alternatives: int,
    max_tokens_names: tuple[str, ...] = ("max_tokens",),
) -> Common:
    """Reads the shared fields. Without a seed, a random one is drawn. Raises ApiError.

    temperature, top_p, frequency_penalty, presence_penalty and logit_bias are OpenAI's; top_k,
    min_p, repetition_penalty and return_token_ids are named as in vLLM.
    """
    tokens = [fields.integer(name, 0, 1, limits.max_tokens) for name in max_tokens_names]
    sampling = Sampling(
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_k=fields.integer("top_k", 0, 0, 1 << 31),
        top_p=fields.number("top_p", 1.0, 1e-9, 1),
        min_p=fields.number("min_p", 0.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        logit_bias=_logit_bias(fields),
        n_alternatives=n_alternatives,
    )
    try:
        sampling.check_vocabulary(writer.model.vocab_size)
    except ConfigError as error:
        raise bad(str(error), "logit_bias") from None
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None and not stream:
        raise bad("stream_options is only allowed with stream = true.", "stream_options")
    include_usage = options is not None and options.flag("include_usage")
    if options is not None:
        options.ignore("include_obfuscation")
        options.done()
    user = fields.text("user")
    fields.ignore("metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key")
    return Common(
        sampling,
        next((n for n in tokens if n), default_tokens),
        fields.integer("n", 1, 1, MOST_CHOICES),
        fields.integer("seed", secrets.randbelow(1 << 31), 0, (1 << 63) - 1),
        tuple(fields.texts("stop", MOST_STOPS)),
        stream,
        include_usage,
        fields.flag("return_token_ids"),
        user[:64],
    )


def check_reported(n: int) -> None:
    """Raises ApiError for an answer with too many log-probabilities to hold in memory."""
    if n > MOST_REPORTED:
        raise bad(
            f"the answer may have {n:,} log-probabilities: expected at most {MOST_REPORTED:,}. Ask "
            "for fewer choices, tokens or alternatives.",
            "logprobs",
        )


def _logit_bias(fields: Fields) -> dict[int, float]:
    biases = fields.object("logit_bias")
    if biases is None:
        return {}
    names = list(biases.names)
    if len(names) > MOST_BIASES:
        raise bad(f"logit_bias has {len(names):,} ids: expected at most {MOST_BIASES:,}.")
    for name in names:
        if not (name.isascii() and name.isdecimal() and len(name) < 12):
            raise bad(f"logit_bias has the key {name[:40]!a}: expected a token id.", "logit_bias")
    return {int(name): biases.number(name, 0.0, -100, 100) for name in names}
