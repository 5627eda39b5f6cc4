"""A model with its tokenizer and the special tokens that begin and end its texts.

Only this module decides which token precedes a prompt and which ids end a text:

- **begin**: the id before each text. An imported model's config.json may name it (Llama 3's
  `<|begin_of_text|>`); otherwise it is the tokenizer's end-of-text token. None: no token precedes a
  text, and an empty prompt becomes the beginning of a line.
- **ends**: the ids that end a text: the end-of-text token, and those in an imported model's
  config.json (Llama 3's `<|eot_id|>`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lmsmith.errors import UsageError
from lmsmith.generate.beam import Beam, beam_search
from lmsmith.generate.decode import (
    continue_texts,
    encode_prompt,
    stream_text,
    unused_tokens,
)
from lmsmith.generate.decoders import decoder_for
from lmsmith.generate.engine import Engine, Request, Token
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.weights import Weights, load_packed
from lmsmith.models.interface import LanguageModel
from lmsmith.run_folder import empty_prompt, load_for_use, model_folder, tokenizer_of
from lmsmith.tokens.control import SpecialTokens
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextModel:
    """A language model that reads and writes text."""

    model: LanguageModel
    tokenizer: Tokenizer
    begin: int | None
    ends: frozenset[int]
    draft: LanguageModel | None = None  # proposes tokens (`engine.py`)

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
    def load(
        cls, folder: Path, weights: Weights = "fp32", draft: Path | None = None
    ) -> tuple[Self, dict[str, Any]]:
        """Loads a model from RUN or RUN/model; also returns the content of its config.json.

        `weights`: how its matrices are kept in memory (`weights.py`). `draft`: a run whose model
        proposes tokens. Raises UsageError, CheckpointError, TokenizerError, ConfigError.
        """
        model, content = load_packed(model_folder(folder), weights)
        tokenizer = tokenizer_of(folder)
        writer = cls.of(model, tokenizer, content)
        if draft is not None:
            proposer, its_tokenizer, _ = load_for_use(draft)
            if its_tokenizer != tokenizer:
                raise UsageError(
                    f"{draft} has another tokenizer than {folder}: a draft model must have the "
                    "same one. Train it with `--tokenizer` set to the model's tokens folder."
                )
            writer = replace(writer, draft=proposer)
        return writer, content

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
            draft=self.draft,
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
            draft=self.draft,
        )

    def tokens(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        index: int = 0,
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> Iterator[tuple[Token, str]]:
        """Continuation number `index` of a prompt, token by token with log-probabilities, each with
        the characters that it completes. An end token comes last, with no text.
        """
        engine = Engine(
            self.model,
            1,
            forbidden=unused_tokens(self.model, self.tokenizer),
            draft=self.draft,
        )
        ids = self.encode(prompt, special_tokens, bos=bos)
        engine.submit(
            Request(ids, max_tokens, sampling or Sampling(), seed, index, self.ends, True)
        )
        return self._tokens(engine)

    def _tokens(self, engine: Engine) -> Iterator[tuple[Token, str]]:
        decoder = StreamDecoder(self.tokenizer)
        while engine.busy:
            for token in engine.step():
                text = "" if token.finished == "end" else decoder.push(token.id)
                yield token, text + (decoder.flush() if token.finished else "")

    def beams(
        self,
        prompt: str,
        *,
        n_beams: int,
        n_best: int,
        max_tokens: int,
        length_penalty: float,
        banned: Collection[int] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> list[tuple[str, Beam]]:
        """The best continuations that beam search finds, with their texts."""
        unused = unused_tokens(self.model, self.tokenizer)
        forbidden = {*banned, *([] if unused is None else unused.tolist())}
        beams = beam_search(
            decoder_for(self.model, max(1, n_beams)),
            self.encode(prompt, special_tokens, bos=bos),
            n_beams=n_beams,
            n_best=n_best,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            ends=self.ends,
            forbidden=forbidden,
            context_length=self.model.context_length,
        )
        return [
            (self.tokenizer.decode([id for id in beam.ids if id not in self.ends]), beam)
            for beam in beams
        ]
