"""`LM`: a model with its tokenizer, ready to write and to score text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.run import Folder
from lmsmith.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn

    from lmsmith.config import ModelConfig
    from lmsmith.evaluate.likelihood import Score
    from lmsmith.generate.text_model import TextModel
    from lmsmith.models.interface import LanguageModel
    from lmsmith.tokens.tokenizer import Tokenizer

SpecialTokens = Literal["text", "control"]


def load(run: Folder) -> LM:
    """Loads the model of a run, trained or imported: `lmsmith.load("runs/book-1").generate("It
    was")`.

    `run`: a `Run`, its folder, the folder RUN/model, or a GGUF file. The model is on the CPU, in
    evaluation mode. Raises UsageError if there is no model, CheckpointError or TokenizerError for
    a damaged one, ConfigError for a GGUF file of an architecture that lmsmith does not have.
    """
    from lmsmith.generate.text_model import TextModel
    from lmsmith.interop.gguf_file import is_gguf

    place = Path(run)
    if place.is_file() and is_gguf(place):
        from lmsmith.interop.gguf_importing import load as load_gguf

        model, tokenizer, content = load_gguf(place)
        return LM(place, TextModel.of(model, tokenizer, content), content)
    writer, content = TextModel.load(place)
    return LM(place, writer, content)


class LM:
    """A language model with its tokenizer. `lmsmith.load` makes one.

    `special_tokens`, in all methods: special tokens that are written out in a text, such as
    `<|im_start|>`, are text like other text ("text"), or control tokens, as chat models expect
    them ("control"). `bos`: whether the text begins as texts do in training, with the end-of-text
    token or what an imported model begins texts with.
    """

    def __init__(self, path: Path, writer: TextModel, content: dict[str, Any]) -> None:
        """`content`: the model's config.json. Use `lmsmith.load`."""
        self.path = path
        self.content = content
        self.writer = writer

    @property
    def model(self) -> LanguageModel:
        """The model: a torch module, or n-gram counts."""
        return self.writer.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        return self.writer.tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's settings."""
        from lmsmith.run_folder import model_config

        return model_config(self.content["model"])

    @property
    def module(self) -> nn.Module:
        """The torch module. Raises UsageError for an n-gram model, which has none."""
        from torch import nn

        if not isinstance(self.model, nn.Module):
            raise UsageError(
                f"the model in {self.path} has no torch module: it is of kind {self.config.kind}, "
                "a table of counts."
            )
        return self.model

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 1,
        stop: str | Sequence[str] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
        index: int = 0,
    ) -> str:
        """Continues a text and returns what comes after the prompt.

        max_tokens   tokens of the continuation, at most
        temperature  0 is greedy; below 1 likelier, above 1 more diverse
        top_k        only the K likeliest tokens; 0: all
        top_p        only the likeliest tokens that together reach P; 1: all
        min_p        only tokens at least P times as likely as the likeliest; 0: all
        seed         the same seed gives the same text
        stop         a text, or several: the continuation ends before the first of them
        index        number of the sample: the same seed has any number of texts

        Raises UsageError for a prompt without a token, ConfigError for a number out of range.
        """
        return "".join(
            self.stream(
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seed,
                stop=stop,
                special_tokens=special_tokens,
                bos=bos,
                index=index,
            )
        )

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 1,
        stop: str | Sequence[str] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
        index: int = 0,
    ) -> Iterator[str]:
        """Yields the text of `generate` in pieces of whole characters, as they are drawn.

        Errors are raised at once, not at the first piece.
        """
        from lmsmith.generate.sampling import Sampling

        return self.writer.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p),
            seed=seed,
            stop=_texts(stop),
            index=index,
            special_tokens=_known(special_tokens),
            bos=bos,
        )

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        n: int = 1,
        max_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 1,
        stop: str | Sequence[str] = (),
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> list[list[str]]:
        """Continues each prompt in `n` ways: one list of n texts for each prompt.

        The n texts of a prompt are computed as one batch. They are those of `generate` with index
        0 ... n - 1, up to the rounding of the model's arithmetic. Raises as `generate` does.
        """
        from lmsmith.generate.sampling import Sampling

        if isinstance(prompts, str):
            raise UsageError("generate_batch takes a list of prompts: write [prompt] for one.")
        sampling = Sampling(temperature, top_k, top_p, min_p)
        return [
            self.writer.continuations(
                prompt,
                max_tokens=max_tokens,
                n=n,
                sampling=sampling,
                seed=seed,
                stop=_texts(stop),
                special_tokens=_known(special_tokens),
                bos=bos,
            )
            for prompt in prompts
        ]

    def score(
        self,
        text: str | Sequence[str],
        *,
        stride: int | None = None,
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> Score:
        """How well the model predicts a text, or several documents together.

        The result has bits_per_byte, nats_per_token, perplexity, n_tokens, n_bytes and more.
        `stride`: a window every N tokens; less than the context length: windows overlap, and the
        score is lower and truer. For files see `lmsmith.evaluate`. Raises DataError for an empty
        text, ConfigError for a stride out of range.
        """
        from lmsmith.evaluate.texts import score_documents

        return score_documents(
            self.model,
            self.tokenizer,
            [text] if isinstance(text, str) else text,
            special_tokens=_known(special_tokens),
            stride=stride,
            boundaries=self.boundaries,
            begin=self.writer.begin,
            bos=bos,
        )

    def next_token(
        self,
        prompt: str = "",
        *,
        top: int = 10,
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> list[tuple[str, float]]:
        """The `top` likeliest next tokens after a prompt: (text, probability), likeliest first.

        The model reads at most its context length of the prompt's last tokens. Raises as
        `generate` does.
        """
        import torch

        from lmsmith.evaluate.likelihood import inference
        from lmsmith.generate.engine import window_start
        from lmsmith.generate.sampling import Sampling, probabilities
        from lmsmith.tokens.tokenizer import unused_ids

        if top < 1:
            raise ConfigError(f"top = {top}: wanted 1 or more.")
        ids = self.writer.encode(prompt, _known(special_tokens), bos=bos)
        ids = ids[window_start(len(ids), self.model.context_length) :]
        with inference(self.model):
            logits = self.model.next_logits(
                torch.tensor([ids], device=self.model.device), self.model.new_state(1)
            )
        unused = torch.from_numpy(unused_ids(self.tokenizer, self.model.vocab_size))
        found = probabilities(logits, Sampling(), unused)[0].topk(
            min(top, self.model.vocab_size - len(unused))
        )
        return [
            (self.tokenizer.decode([int(id)]), float(p))
            for p, id in zip(found.values, found.indices, strict=True)
        ]

    def logits(
        self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any] | Tensor
    ) -> Tensor:
        """The logits (T, V) of the token after each of `ids` (T,); or (B, T, V) of ids (B, T).

        They are on the model's device, in float32 or better, without gradients. `lm.module(ids)`
        has gradients. Raises UsageError for ids outside the vocabulary, for none, and for more
        than the context length.
        """
        import numpy as np
        import torch

        from lmsmith.evaluate.likelihood import inference
        from lmsmith.models.interface import NeuralModel

        given = ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.asarray(ids))
        whole = self._checked(given)
        rows = whole.reshape(-1, whole.shape[-1]).to(self.model.device)
        with inference(self.model):
            if isinstance(self.model, NeuralModel):
                found: Tensor = self.model(rows)
            else:
                state = self.model.new_state(len(rows))
                steps = [
                    self.model.next_logits(rows[:, i : i + 1], state) for i in range(rows.shape[1])
                ]
                found = torch.stack(steps, dim=1)
        return found if given.dim() == 2 else found[0]

    @property
    def boundaries(self) -> str:
        """How documents were kept apart in training (`data.documents`)."""
        return str(self.content.get("data", {}).get("documents", "stream"))

    def __repr__(self) -> str:
        return (
            f"LM({os.fspath(self.path)!r}, {self.config.in_brief()}, "
            f"{self.model.n_parameters():,} parameters, {self.tokenizer.kind} tokenizer)"
        )

    def _checked(self, ids: Tensor) -> Tensor:
        """The ids as int64. Raises UsageError for ids that the model cannot read."""
        V, T = self.model.vocab_size, self.model.context_length
        if ids.dim() not in (1, 2) or not ids.numel() or ids.is_floating_point():
            raise UsageError(
                f"ids of shape {tuple(ids.shape)} and type {ids.dtype}: wanted whole numbers of "
                "shape (T,) or (B, T), at least one."
            )
        ids = ids.long()  # torch computes little with the uint16 of tokenizers
        if int(ids.min()) < 0 or int(ids.max()) >= V:
            raise UsageError(
                f"ids from {int(ids.min())} to {int(ids.max())}: wanted 0 to {V - 1}, the model's "
                "vocabulary. Was the text encoded with another tokenizer?"
            )
        if T is not None and ids.shape[-1] > T:
            raise UsageError(
                f"{ids.shape[-1]} ids are more than the model's context length of {T}: give the "
                "last of them, or use lm.score, which lays windows over a text."
            )
        return ids


def _texts(stop: str | Sequence[str]) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop


def _known(special_tokens: SpecialTokens) -> SpecialTokens:
    """Raises ConfigError for what is neither "text" nor "control"."""
    if special_tokens not in ("text", "control"):
        raise ConfigError(f"special_tokens = {special_tokens!r}: wanted 'text' or 'control'.")
    return special_tokens
