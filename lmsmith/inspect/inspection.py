"""Everything that `lmsmith inspect` shows of a model, computed: `Inspection`.

`report/inspection.py` draws it. The work is bounded: a prompt of at most 64 tokens, and as many
tokens of text as take about a second on a laptop, at least two windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.config import ModelConfig
from lmsmith.data.batches.packing import boundary_of
from lmsmith.data.conversations import Conversations
from lmsmith.errors import DataError, UsageError
from lmsmith.evaluate.texts import encode_documents, read_documents
from lmsmith.generate.text_model import TextModel
from lmsmith.inspect.losses import Group, by_frequency, by_position, token_counts, token_losses
from lmsmith.inspect.trace import Trace, trace
from lmsmith.inspect.weights import Neighbours, neighbours, position_similarity, weight_sizes
from lmsmith.run_folder import model_config, open_run
from lmsmith.tokens.tokenizer import Tokenizer, unused_ids

MOST_TOKENS = 64
"""The most tokens of a prompt that are shown."""

DEFAULT_TOKENS = 32
"""Tokens of the validation text that are the prompt if none is given."""

MOST_SCORED = 2**14
_FLOPS = 1e11  # spent on the losses of a text
_N_NEIGHBOURS, _N_TOKENS = 6, 12


@dataclass(frozen=True)
class Inspection:
    """What a model has learned. Parts that do not apply to its kind are empty or None; `notes` says
    why, one sentence each.
    """

    name: str
    what: str  # the kind of model
    tokens: tuple[str, ...]  # the prompt's, as text
    ids: npt.NDArray[np.int64]  # the prompt's (T,)
    trace: Trace
    positions: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None
    weight_sizes: Mapping[str, npt.NDArray[np.float32]]
    neighbours: Sequence[Neighbours]
    loss: float | None  # nats per token of the text
    n_tokens: int  # of the text
    loss_by_position: Sequence[Group]
    loss_by_frequency: Sequence[Group]
    notes: tuple[str, ...]
    texts: Mapping[int, str]  # the text of each id that is mentioned

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"Inspection({self.name!r}, {self.what}, {len(self.tokens)} tokens{loss})"


def inspect_model(
    place: Path,
    writer: TextModel,
    content: Mapping[str, Any],
    *,
    prompt: str = "",
    text: Sequence[str] = (),
) -> Inspection:
    """Inspects the model `writer` of the run `place`. `content`: its config.json.

    `prompt`: default: the beginning of the text. `text`: files; default: the run's validation text.
    Raises UsageError if there is neither a prompt nor a text, DataError for text that cannot be
    read.
    """
    model, tokenizer = writer.model, writer.tokenizer
    config = model_config(content["model"])
    notes: list[str] = []
    ids, counts = _text_ids(place, writer, config, text, notes)
    shown = _prompt_ids(writer, prompt, ids, notes)
    unused = unused_ids(tokenizer, model.vocab_size)
    traced = trace(model, shown, unused)
    if traced.attention is None:
        notes.append(f"a model of kind {config.kind} has no attention and no logit lens by layer")
    positions = position_similarity(model)
    if positions is None and traced.attention is not None:
        notes.append("position embeddings are rotary or absent, so there are none to compare")
    distinct = list(dict.fromkeys(shown.tolist()))
    near = neighbours(model, distinct[:_N_TOKENS], _N_NEIGHBOURS, unused)
    loss, by_place, often = None, [], []
    if ids is not None:
        documents = str(content.get("data", {}).get("documents", "stream"))
        length = getattr(config, "context_length", None)
        losses = token_losses(model, ids, boundary_of(documents, tokenizer), length)
        loss, by_place, often = losses.mean, by_position(losses), by_frequency(losses, counts)
    mentioned = {*distinct, *traced.lens.ids.flatten().tolist()}
    mentioned |= {one for row in near for one, _ in row.nearest}
    return Inspection(
        Path(place).resolve().name,
        config.in_brief(),
        tuple(_shown(tokenizer, one) for one in shown.tolist()),
        shown,
        traced,
        positions,
        weight_sizes(model),
        near,
        loss,
        0 if ids is None else len(ids),
        by_place,
        often,
        tuple(notes),
        {one: _shown(tokenizer, one) for one in mentioned},
    )


def _text_ids(
    place: Path, writer: TextModel, config: ModelConfig, text: Sequence[str], notes: list[str]
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.int64]]:
    """The ids of the text, and how often each id occurs in training. None without a text."""
    model, tokenizer = writer.model, writer.tokenizer
    has_run = (place / "tokens").is_dir()
    corpus = open_run(place)[1] if has_run else None
    n_tokens = _affordable(config)
    if text:
        reading: dict[str, Any] = {"text_field": "text", "encoding": "auto", "errors": "strict"}
        documents = list(read_documents(text, **reading))
        ids = encode_documents(tokenizer, documents, writer.begin).ids[:n_tokens]
        if len(ids) < 2:
            raise DataError(f"{', '.join(text)}: there is too little text to inspect a model on.")
    elif corpus is not None:
        ids = np.asarray(corpus.validation[:n_tokens])
    else:
        notes.append(
            "this run has no validation text, so losses by position and frequency are not shown; "
            "name a text with --text FILE"
        )
        return None, np.zeros(0, np.int64)
    if corpus is not None:
        train = corpus.train.ids if isinstance(corpus.train, Conversations) else corpus.train
        return ids, token_counts(train, model.vocab_size)
    notes.append("the training text is not known: frequencies are those in the text itself")
    return ids, token_counts(ids, model.vocab_size)


def _affordable(config: ModelConfig) -> int:
    """How many tokens can be scored in about a second; at least two windows."""
    flops = getattr(config, "train_flops_per_token", None)
    length = int(getattr(config, "context_length", 0) or 0)
    n_tokens = MOST_SCORED if flops is None else int(_FLOPS / max(1.0, flops() / 3))
    return max(2 * length + 1, min(MOST_SCORED, n_tokens))


def _prompt_ids(
    writer: TextModel, prompt: str, ids: npt.NDArray[Any] | None, notes: list[str]
) -> npt.NDArray[np.int64]:
    """The tokens of the prompt, or the first of the text."""
    most = min(MOST_TOKENS, writer.model.context_length or MOST_TOKENS)
    if prompt:
        found = np.array(writer.encode(prompt), dtype=np.int64)
        if len(found) > most:
            notes.append(f"of the prompt's {len(found):,} tokens, the first {most} are shown")
        return found[:most]
    if ids is None:
        raise UsageError(
            "nothing to inspect the model on: this run has no validation text. Give a prompt with "
            "--prompt TEXT, or a text with --text FILE."
        )
    return ids[: min(most, DEFAULT_TOKENS)].astype(np.int64)


def _shown(tokenizer: Tokenizer, one: int) -> str:
    """A token as text, with visible white space; bytes that are no character in hexadecimal."""
    data = tokenizer.decode_bytes([one])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "".join(f"<{byte:02X}>" for byte in data)
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "→") or "∅"
