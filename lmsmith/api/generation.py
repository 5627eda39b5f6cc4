"""What `LM` writes: texts, pieces, batches, tokens with probabilities, beam search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from lmsmith.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from lmsmith.generate.sampling import Sampling
    from lmsmith.generate.text_model import TextModel

SpecialTokens = Literal["text", "control"]


class Options(TypedDict, total=False):
    """The keyword arguments of `LM.generate`, which explains them."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | None
    banned: Collection[int]
    seed: int
    stop: str | Sequence[str]
    special_tokens: SpecialTokens
    bos: bool


@dataclass(frozen=True)
class GeneratedToken:
    """A token with its probability under the model, before sampling settings."""

    id: int
    text: str  # complete characters; a character split over tokens is the text of its last one
    log_probability: float
    alternatives: tuple[tuple[int, float], ...]  # likeliest ids with their log-probabilities


@dataclass(frozen=True)
class ScoredText:
    """A continuation found by beam search."""

    text: str
    log_probability: float  # of all its tokens together
    score: float  # log_probability / number of tokens ** length_penalty


class Generation:
    """The methods of `LM` that generate text."""

    writer: TextModel

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        banned: Collection[int] = (),
        seed: int = 1,
        stop: str | Sequence[str] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
        index: int = 0,
    ) -> str:
        """Generates a continuation of the prompt and returns it without the prompt.

        max_tokens   maximum number of new tokens
        temperature  0: greedy; below 1: more likely text; above 1: more diverse text
        top_k        only the K most likely tokens; 0: all
        top_p        only the most likely tokens whose probabilities add up to P; 1: all
        min_p        only tokens with at least P times the probability of the most likely; 0: all
        repetition_penalty  above 1, tokens of the prompt and the text become less likely
        frequency_penalty, presence_penalty
                     subtracted from a token's logit: for each time it was generated, or once
        logit_bias   numbers to add to the logits of token ids
        banned       token ids that are never generated
        seed         random seed; the same seed gives the same text
        stop         one or more stop sequences: the text ends before the first of them
        index        number of the sample; each index gives another text for the same seed

        Raises UsageError if the prompt has no tokens, ConfigError for a number out of range.
        """
        return "".join(
            self.stream(
                prompt,
                index=index,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
                logit_bias=logit_bias,
                banned=banned,
                seed=seed,
                stop=stop,
                special_tokens=special_tokens,
                bos=bos,
            )
        )

    def stream(
        self, prompt: str = "", *, index: int = 0, **options: Unpack[Options]
    ) -> Iterator[str]:
        """Yields the text of `generate` in pieces of complete characters, as they are generated.

        `options`: the arguments of `generate`. Errors are raised by the call itself, not by the
        first piece.
        """
        return self.writer.stream(prompt, index=index, stop=_stop(options), **_read(**options))

    def generate_batch(
        self, prompts: Sequence[str], *, n: int = 1, **options: Unpack[Options]
    ) -> list[list[str]]:
        """Generates `n` continuations of each prompt: one list of n texts per prompt.

        `options`: the arguments of `generate`. All texts are computed in one running batch, and
        each prompt is read once. They equal those of `generate` with index 0 ... n - 1. Raises the
        same errors.
        """
        if isinstance(prompts, str):
            raise UsageError("generate_batch takes a list of prompts: write [prompt] for one.")
        return self.writer.continuations(prompts, n=n, stop=_stop(options), **_read(**options))

    def tokens(
        self,
        prompt: str = "",
        *,
        alternatives: int = 0,
        index: int = 0,
        **options: Unpack[Options],
    ) -> Iterator[GeneratedToken]:
        """Yields the tokens of `generate` with their log-probabilities under the model.

        `alternatives`: how many of the likeliest tokens to report at each place. `options`: the
        arguments of `generate`, without `stop`. Raises the same errors, at the call.
        """
        if options.get("stop"):
            raise UsageError("tokens() has no stop sequences: stop iterating instead.")
        arguments = _read(alternatives=alternatives, **options)
        tokens = self.writer.tokens(prompt, index=index, **arguments)
        return (
            GeneratedToken(token.id, text, token.log_probability, token.alternatives)
            for token, text in tokens
        )

    def beam_search(
        self,
        prompt: str = "",
        *,
        n_beams: int = 4,
        n_best: int = 1,
        max_tokens: int = 100,
        length_penalty: float = 1.0,
        banned: Collection[int] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> list[ScoredText]:
        """Searches for the most likely continuations instead of sampling; the best one first.

        n_beams         sequences that are kept at each step; 1 is greedy
        n_best          how many texts to return
        length_penalty  texts are compared by log-probability / tokens ** length_penalty: above 0
                        favours long texts, below 0 short ones

        Raises the same errors as `generate`.
        """
        return [
            ScoredText(text, beam.log_probability, beam.score)
            for text, beam in self.writer.beams(
                prompt,
                n_beams=n_beams,
                n_best=n_best,
                max_tokens=max_tokens,
                length_penalty=length_penalty,
                banned=banned,
                special_tokens=known(special_tokens),
                bos=bos,
            )
        ]


class _Arguments(TypedDict):
    """Options, checked, as the methods of `TextModel` take them."""

    max_tokens: int
    sampling: Sampling
    seed: int
    special_tokens: SpecialTokens
    bos: bool


def _read(
    *,
    max_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    banned: Collection[int] = (),
    alternatives: int = 0,
    seed: int = 1,
    stop: str | Sequence[str] = (),
    special_tokens: SpecialTokens = "text",
    bos: bool = True,
) -> _Arguments:
    """Checks the options and fills in the defaults of `LM.generate`; `stop`: see `_stop`."""
    from lmsmith.generate.sampling import Sampling

    sampling = Sampling(
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        dict(logit_bias or {}),
        frozenset(banned),
        alternatives,
    )
    return {
        "max_tokens": max_tokens,
        "sampling": sampling,
        "seed": seed,
        "special_tokens": known(special_tokens),
        "bos": bos,
    }


def _stop(options: Options) -> Sequence[str]:
    """The stop sequences among the options."""
    stop = options.get("stop", ())
    return [stop] if isinstance(stop, str) else stop


def known(special_tokens: SpecialTokens) -> SpecialTokens:
    """Returns its argument. Raises ConfigError unless it is "text" or "control"."""
    if special_tokens not in ("text", "control"):
        raise ConfigError(f"special_tokens = {special_tokens!r}: expected 'text' or 'control'.")
    return special_tokens
