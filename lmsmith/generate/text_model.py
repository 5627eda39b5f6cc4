"""A model with its tokenizer and the special tokens that begin and end its texts.

Only this module decides which token precedes a prompt and which ids end a text:

- **begin**: the id before each text. An imported model's config.json may name it (Llama 3's
  `<|begin_of_text|>`); otherwise it is the tokenizer's end-of-text token. None: no token precedes a
  text, and an empty prompt becomes the beginning of a line.
- **ends**: the ids that end a text: the end-of-text token, and those in an imported model's
  config.json (Llama 3's `<|eot_id|>`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lmsmith.generate.decode import continue_texts, encode_prompt, stream_text
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.weights import Weights, pack
from lmsmith.models.interface import LanguageModel
from lmsmith.run_folder import empty_prompt, load_for_use
from lmsmith.tokens.control import SpecialTokens
from lmsmith.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextModel:
    """A language model that reads and writes text."""

    model: LanguageModel
    tokenizer: Tokenizer
    begin: int | None
    ends: frozenset[int]

    @classmethod
    def of(
        cls, model: LanguageModel, tokenizer: Tokenizer, content: Mapping[str, Any] | None = None
    ) -> Self:
        """`content`: the content of the model's config.json, which may have `begin` and `ends`."""
        content = content or {}
        end = tokenizer.end_of_text
        begin = content.get("begin")
        ends = {*content.get("ends", ()), *(() if end is None else (end,))}
        return cls(model, tokenizer, end if begin is None else begin, frozenset(ends))

    @classmethod
    def load(cls, folder: Path, weights: Weights = "fp32") -> tuple[Self, dict[str, Any]]:
        """Loads a model from RUN or RUN/model; also returns the content of its config.json.

        `weights`: how its matrices are kept in memory (`weights.py`). Raises UsageError,
        CheckpointError, TokenizerError, ConfigError.
        """
        model, tokenizer, content = load_for_use(folder)
        pack(model, weights)
        return cls.of(model, tokenizer, content), content

    def encode(
        self, prompt: str, special_tokens: SpecialTokens = "text", *, bos: bool = True
    ) -> list[int]:
        """Encodes a prompt as at least one id.

        `bos=False`: without a token before the prompt. Raises UsageError if there are no ids.
        """
        prompt = prompt or ("" if self.begin is not None else empty_prompt(self.tokenizer))
        return encode_prompt(self.tokenizer, prompt, self.begin, special_tokens, bos=bos)

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        index: int = 0,
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> Iterator[str]:
        """Yields sample `index` of a prompt's continuation, in pieces, as `stream_text` does."""
        return stream_text(
            self.model,
            self.tokenizer,
            self.encode(prompt, special_tokens, bos=bos),
            max_tokens=max_tokens,
            sampling=sampling,
            seed=seed,
            stop=stop,
            index=index,
            ends=self.ends,
        )

    def continuations(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        n: int = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> list[list[str]]:
        """Continuations 0 ... n - 1 of each prompt, computed in one running batch."""
        return continue_texts(
            self.model,
            self.tokenizer,
            [self.encode(prompt, special_tokens, bos=bos) for prompt in prompts],
            max_tokens=max_tokens,
            n=n,
            sampling=sampling,
            seed=seed,
            stop=stop,
            ends=self.ends,
        )
