"""`LM`: a model with its tokenizer, to generate and score text."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.generation import Generation, SpecialTokens, _read, known
from lmsmith.api.run import Folder, paths
from lmsmith.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn

    from lmsmith.config import ModelConfig
    from lmsmith.evaluate.likelihood import Score
    from lmsmith.generate.text_model import TextModel
    from lmsmith.inspect.inspection import Inspection
    from lmsmith.models.interface import LanguageModel
    from lmsmith.tokens.tokenizer import Tokenizer

Weights = Literal["fp32", "bf16", "int8"]


def load(run: Folder, *, weights: Weights = "fp32", draft: Folder | None = None) -> LM:
    """Loads the model of a trained or imported run.

        lm = lmsmith.load("runs/book-1")
        lm.generate("It was")

    `run`: a `Run`, its folder, the folder RUN/model, or a GGUF file. `weights`: how a Transformer's
    matrices are kept in memory: "fp32" as trained, "bf16" in half of the memory, "int8" in a
    quarter (each row scaled and rounded); less memory is faster and costs a little accuracy.
    `draft`: an n-gram run with the same tokenizer; it proposes tokens, which makes generation
    faster and never changes the text. The model is on the CPU, in evaluation mode. Raises
    UsageError if there is no model, CheckpointError or TokenizerError if its files are damaged,
    ConfigError for a GGUF file of an architecture that lmsmith does not have.
    """
    from lmsmith.generate.text_model import TextModel
    from lmsmith.generate.weights import pack
    from lmsmith.interop.gguf_file import is_gguf

    folder = Path(run)
    if folder.is_file() and is_gguf(folder):
        from lmsmith.interop.gguf_importing import load as load_gguf

        if draft is not None:
            raise UsageError(
                "draft needs a run: import the GGUF file first with lmsmith.import_model."
            )
        model, tokenizer, content = load_gguf(folder)
        pack(model, weights)
        return LM(folder, TextModel.of(model, tokenizer, content), content)
    writer, content = TextModel.load(folder, weights, None if draft is None else Path(draft))
    return LM(folder, writer, content)


class LM(Generation):
    """A language model with its tokenizer. `lmsmith.load` returns one.

    Arguments of several methods:

    special_tokens  how special tokens written out in a text, such as `<|im_start|>`, are read:
                    "text": as plain text; "control": as control tokens, as chat models expect
    bos             add a beginning-of-text token, as in training: the end-of-text token, or the
                    token with which an imported model begins texts
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
        """The tokenizer: text to ids and back."""
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

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
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
        index: int = 0,
    ) -> str:
        """Returns the assistant's answer to a conversation, with the model's chat template.

            lm.chat([{"role": "user", "content": "Hello"}])

        `messages`: objects with `role` (system, user, assistant, tool) and `content`; the last is
        the user's or a tool's. Special tokens written in them are text. Other arguments are those
        of `generate`. The answer ends at the template's end token, after `max_tokens`, or at the
        end of the context.

        Raises UsageError if the model has no chat template, or if the messages are not a
        conversation or do not fit into the context.
        """
        from lmsmith.chat.prepare import own_speaker
        from lmsmith.chat.session import complete

        options = _read(
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
        )
        pieces = complete(
            self.writer,
            own_speaker(self.path),
            [dict(message) for message in messages],
            max_tokens=options["max_tokens"],
            sampling=options["sampling"],
            seed=options["seed"],
            index=index,
            stop=[stop] if isinstance(stop, str) else stop,
        )
        return "".join(pieces)

    def score(
        self,
        text: str | Sequence[str],
        *,
        stride: int | None = None,
        special_tokens: SpecialTokens = "text",
        bos: bool = True,
    ) -> Score:
        """Scores a text, or several documents together, under the model.

        The result has bits_per_byte, nats_per_token, perplexity, n_tokens, n_bytes and more.
        `stride`: start a window every N tokens (default: the context length). With a smaller stride
        windows overlap, so each token has more context and the loss is lower. For files see
        `lmsmith.evaluate`. Raises DataError for an empty text, ConfigError for a stride out of
        range.
        """
        from lmsmith.evaluate.texts import score_documents

        return score_documents(
            self.model,
            self.tokenizer,
            [text] if isinstance(text, str) else text,
            special_tokens=known(special_tokens),
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
        """Returns the `top` most likely next tokens after a prompt: (text, probability), most
        likely first.

        If the prompt is longer than the context length, the model reads only its last tokens.
        Raises the same errors as `generate`.
        """
        import torch

        from lmsmith.evaluate.likelihood import inference
        from lmsmith.generate.engine import window_start
        from lmsmith.generate.sampling import Sampling, probabilities
        from lmsmith.tokens.tokenizer import unused_ids

        if top < 1:
            raise ConfigError(f"top = {top}: expected 1 or more.")
        ids = self.writer.encode(prompt, known(special_tokens), bos=bos)
        ids = ids[window_start(len(ids), self.model.context_length) :]
        with inference(self.model):
            logits = self.model.next_logits(
                torch.tensor([ids], device=self.model.device), self.model.new_state(1)
            )
        unused = torch.from_numpy(unused_ids(self.tokenizer, self.model.vocab_size))
        best = probabilities(logits, Sampling(), unused)[0].topk(
            min(top, self.model.vocab_size - len(unused))
        )
        return [
            (self.tokenizer.decode([int(id)]), float(p))
            for p, id in zip(best.values, best.indices, strict=True)
        ]

    def logits(
        self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any] | Tensor
    ) -> Tensor:
        """Returns the next-token logits at each position: (T, V) for ids (T,), (B, T, V) for ids
        (B, T).

        They are on the model's device, in float32 or float64, without gradients. For gradients call
        `lm.module(ids)`. Raises UsageError for empty ids, ids outside the vocabulary, and more ids
        than the context length.
        """
        import numpy as np
        import torch

        from lmsmith.evaluate.likelihood import inference
        from lmsmith.models.interface import NeuralModel

        given = ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.asarray(ids))
        checked = self._checked(given)
        rows = checked.reshape(-1, checked.shape[-1]).to(self.model.device)
        with inference(self.model):
            if isinstance(self.model, NeuralModel):
                logits: Tensor = self.model(rows)
            else:
                state = self.model.new_state(len(rows))
                steps = [
                    self.model.next_logits(rows[:, i : i + 1], state) for i in range(rows.shape[1])
                ]
                logits = torch.stack(steps, dim=1)
        return logits if given.dim() == 2 else logits[0]

    def inspect(
        self,
        prompt: str = "",
        *,
        text: Folder | Sequence[Folder] | None = None,
        out: Folder | None = None,
    ) -> Inspection:
        """Looks inside the model: attention, logit lens, activations and weights by layer, loss by
        position and by token frequency, nearest tokens.

        prompt  the text to run the model on (default: the beginning of the validation text)
        text    files to compute losses on (default: the run's validation text)
        out     also write an HTML page with pictures

        The result has the numbers as arrays. Raises UsageError for a run without validation text if
        neither prompt nor text is given, DataError for text that cannot be read, StorageError if
        `out` cannot be written.
        """
        from lmsmith.inspect.inspection import inspect_model

        files = [] if text is None else paths(text)
        if out is not None:
            from lmsmith.report.comparison import check_output_path

            check_output_path(Path(out))
        found = inspect_model(self.path, self.writer, self.content, prompt=prompt, text=files)
        if out is not None:
            from lmsmith.report.inspection import write_inspection

            write_inspection(found, Path(out))
        return found

    @property
    def boundaries(self) -> str:
        """The setting `data.documents` of the training run: how it treated document boundaries."""
        return str(self.content.get("data", {}).get("documents", "stream"))

    def __repr__(self) -> str:
        return (
            f"LM({os.fspath(self.path)!r}, {self.config.in_brief()}, "
            f"{self.model.n_parameters():,} parameters, {self.tokenizer.kind} tokenizer)"
        )

    def _checked(self, ids: Tensor) -> Tensor:
        """Returns the ids as int64. Raises UsageError for ids that the model cannot read."""
        V, T = self.model.vocab_size, self.model.context_length
        if ids.dim() not in (1, 2) or not ids.numel() or ids.is_floating_point():
            raise UsageError(
                f"ids of shape {tuple(ids.shape)} and type {ids.dtype}: expected at least one "
                "whole number, in shape (T,) or (B, T)."
            )
        ids = ids.long()  # tokenizers return uint16, for which torch lacks most operations
        if int(ids.min()) < 0 or int(ids.max()) >= V:
            raise UsageError(
                f"ids from {int(ids.min())} to {int(ids.max())}: expected 0 to {V - 1}, the "
                "model's vocabulary. Was the text encoded with another tokenizer?"
            )
        if T is not None and ids.shape[-1] > T:
            raise UsageError(
                f"{ids.shape[-1]} ids are more than the model's context length of {T}: pass the "
                "last ones only, or use lm.score, which slides windows over a text."
            )
        return ids
