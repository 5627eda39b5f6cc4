"""Prepares a run on conversations: ids and masks, and the model to start from.

`gather` is what `lmsmith.train.start` calls to fill the folder of a new run:

    RUN/tokens/    ids with marks of what is learned (`data/conversations.py`), the tokenizer
    RUN/model/     the weights to start from, with rows for the template's special tokens
    RUN/model/huggingface.json    the chat template

The embedding and the output row of a new token are the mean of all tokens' rows, so that the model
at first gives it the probability of an average token (Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models").

A conversation of more tokens than the context and its last target is cut after them. If nothing
learned is left, it is dropped. Both are counted in the notes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from lmsmith.chat.conversations import Conversation
from lmsmith.chat.conversations import Conversations as Files
from lmsmith.chat.masks import Masked, end_ids, masked
from lmsmith.chat.templates import ChatTemplate, known, special_tokens
from lmsmith.checkpoint import load_model, save_model
from lmsmith.config import DataConfig, NeuralConfig, RunConfig, flatten
from lmsmith.data.conversations import FILE_NAME, FORMAT, Conversations
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.errors import DataError, UsageError
from lmsmith.interop.defaults import TOKENS, Defaults
from lmsmith.interop.defaults import load as load_defaults
from lmsmith.run_folder import model_folder, tokenizer_of
from lmsmith.strict_json import write_json
from lmsmith.text.files import plural
from lmsmith.text.leaks import refuse_shared_files
from lmsmith.tokens.extended import with_special_tokens
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer, ids_dtype

SHARE, MOST = 0.1, 500  # of the conversations are held out, if nothing else is set
DEFAULT = "lmsmith"


def gather(
    config: RunConfig,
    folder: Path,
    console: Console,
    prepare_tokens: Callable[[RunConfig, Speaker, Path], Corpus] | None = None,
) -> tuple[RunConfig, Corpus]:
    """Writes tokens and model of a new run into `folder`. Raises DataError, ConfigError,
    TokenizerError, CheckpointError, StorageError.

    `prepare_tokens`: writes the tokens; default: those of conversations.
    """
    source = model_folder(Path(config.train.init_from))
    tensors, content = load_model(source)
    before = config.neural
    speaker = speaker_of(source, config.data.chat_template, before.vocab_size)
    tokenizer, template = speaker.tokenizer, speaker.template
    size = max(before.vocab_size, tokenizer.vocab_size)
    config = dataclasses.replace(config, model=dataclasses.replace(before, vocab_size=size))
    if config.lora.rank and config.lora.embeddings == "auto":
        learned = "yes" if speaker.added else "no"  # frozen, all new tokens would stay the same
        config = config.changed({"lora.embeddings": learned}, where="what was chosen")
    corpus = (prepare_tokens or _conversations)(config, speaker, folder / "tokens")
    added = [special_tokens(tokenizer)[name] for name in speaker.added]
    used = np.setdiff1d(np.arange(before.vocab_size), [*speaker.unused, *added])
    tensors = with_rows(tensors, before, config.neural, added, used)
    ends = [*speaker.ends, *(end for end in content.get("ends", ()) if end not in speaker.ends)]
    about = {
        "model": flatten(vars(config.model)),
        "data": {"documents": config.data.documents},
        "step": 0,
    }
    special = ({"begin": content["begin"]} if "begin" in content else {}) | (
        {"ends": ends} if ends else {}
    )
    save_model(folder / "model", tensors, about | special)
    save_tokenizer(tokenizer, folder / "model")
    names = {name: text for name, text in template.names.items() if text}
    if speaker.ends:
        texts = {number: text for text, number in special_tokens(tokenizer).items()}
        names["eos_token"] = texts[speaker.ends[0]]
    old = load_defaults(source) or Defaults()
    dataclasses.replace(
        old, tokenizer=old.tokenizer | names, chat_templates={"default": template.source}
    ).save(folder / "model")
    return config, corpus


# ---- tokenizer and template ----------------------------------------------------------------------


@dataclass(frozen=True)
class Speaker:
    """A tokenizer with a chat template. `added`: special tokens that are new; `unused`: ids that
    had no token before; `ends`: ids that end an answer.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    added: tuple[str, ...] = ()
    unused: tuple[int, ...] = ()
    ends: tuple[int, ...] = field(default=())


def speaker_of(folder: Path, name: str = "", n_ids: int | None = None) -> Speaker:
    """The tokenizer of a model folder with the template `name`: one of our own, or a file; "": the
    model's, else the default. Adds the special tokens that the template needs.

    `n_ids`: rows of the model's embedding table. Raises ConfigError, TokenizerError.
    """
    old, defaults = tokenizer_of(folder), load_defaults(folder)
    own = defaults.chat_templates.get("default") if defaults else None
    given = defaults.tokenizer if defaults else {}
    names = {part: given[part] for part in TOKENS if isinstance(given.get(part), str)}
    if not name and own is not None:
        template = ChatTemplate(own, frozenset(special_tokens(old)), names)
        return Speaker(old, template, ends=tuple(end_ids(template, old)))
    name = name or DEFAULT
    tokenizer = with_special_tokens(old, known(name).tokens, n_ids)
    added = tuple(token for token in special_tokens(tokenizer) if token not in special_tokens(old))
    names = {part: text for part, text in names.items() if part != "eos_token"}
    template = ChatTemplate.named(name, tokenizer, names)
    unused = (*old.ids_without_token.tolist(), *range(old.vocab_size, n_ids or 0))
    return Speaker(tokenizer, template, added, unused, tuple(end_ids(template, tokenizer)))


def own_speaker(folder: Path) -> Speaker:
    """The tokenizer and the template that a model was tuned or imported with. Raises UsageError if
    it has none.
    """
    defaults = load_defaults(model_folder(folder))
    if not defaults or "default" not in defaults.chat_templates:
        raise UsageError(
            f"{folder} has no chat template: it was not tuned on conversations. `lmsmith tune "
            f"{folder} CHATS.jsonl` does that; `lmsmith generate` continues a text."
        )
    return speaker_of(model_folder(folder))


def with_rows(
    tensors: Mapping[str, Tensor],
    before: NeuralConfig,
    after: NeuralConfig,
    added: Sequence[int],
    used: Any,
) -> dict[str, Tensor]:
    """The weights of a model with `after.vocab_size` ids; the rows of `added` ids are the mean of
    the rows of `used` ones, in every table of the vocabulary.
    """
    tables = _tables(before)
    if before.vocab_size == after.vocab_size and not added:
        return dict(tensors)
    shapes = _shapes(after)
    result = dict(tensors)
    for name in tables:
        old = tensors[name]
        new = old.new_zeros(shapes[name])
        new[: before.vocab_size] = old[: before.vocab_size]
        if len(added):
            new[list(added)] = old[torch.as_tensor(used)].double().mean(0).to(old.dtype)
        result[name] = new
    return result


def _tables(config: NeuralConfig) -> list[str]:
    """Names of the tensors that have a row per id: those that grow with the vocabulary."""
    more = dataclasses.replace(config, vocab_size=config.vocab_size + 4096)
    larger = _shapes(more)
    return [name for name, shape in _shapes(config).items() if larger[name] != shape]


def _shapes(config: NeuralConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in config.build().named_parameters()}


# ---- conversations -------------------------------------------------------------------------------


def _conversations(config: RunConfig, speaker: Speaker, folder: Path) -> Corpus:
    return prepare(config.data, config.model.context_length or 0, speaker, folder)


def prepare(data: DataConfig, context_length: int, speaker: Speaker, folder: Path) -> Corpus:
    """Reads, masks and writes the conversations of a run. Raises DataError, StorageError."""
    train, validation, notes = _split(data)
    sides, n_bytes, n_unknown, n_unknown_bytes = [], 0, 0, 0
    for name, some in (("training", train), ("validation", validation)):
        found, more = _masked(some, context_length, speaker, name, skip_bad=data.skip_bad)
        notes += more
        sides.append(found)
    tokenizer = speaker.tokenizer
    control = np.array(sorted(special_tokens(tokenizer).values()))
    for each, conversation in sides[1]:
        said = each.ids[each.learned]
        n_bytes += len(tokenizer.decode_bytes(said[~np.isin(said, control)]))
        for message in conversation.messages:
            if message["role"] == "assistant":
                n_unknown += tokenizer.count_unknown(message["content"])
                n_unknown_bytes += tokenizer.unknown_bytes(message["content"])
    dtype = ids_dtype(tokenizer.vocab_size)
    joined = [
        Conversations.join([(each.ids, each.learned) for each, _ in found], dtype)
        for found in sides
    ]
    share = joined[0].n_learned / len(joined[0])
    notes.append(
        f"{plural(joined[0].n, 'conversation')} for training, {joined[1].n:,} held out; the loss "
        f"counts {share:.0%} of the tokens: the assistant's"
    )
    if n_unknown:
        notes.append(f"{n_unknown:,} parts of the held-out answers are unknown to the tokenizer")
    counts = Counts(
        n_train_tokens=len(joined[0]),
        n_val_tokens=joined[1].n_learned,
        n_val_bytes=max(1, n_bytes + n_unknown_bytes),
        n_val_unknown=n_unknown,
        n_val_unknown_bytes=n_unknown_bytes,
        notes=tuple(notes),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in zip(joined, ("train", "val"), strict=True):
        side.save(folder, name, tokenizer.vocab_size)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "corpus.json", asdict(counts))
    write_json(folder / FILE_NAME, {"format": FORMAT})
    return Corpus(joined[0], joined[1], tokenizer, counts)


def _split(data: DataConfig) -> tuple[list[Conversation], list[Conversation], list[str]]:
    """Training and held-out conversations, and notes. Equal conversations are on one side."""
    files = Files(data.paths, skip_bad=data.skip_bad)
    every = list(files)
    notes = files.notes()
    if data.validation:
        others = Files(data.validation, skip_bad=data.skip_bad)
        refuse_shared_files(files.files, others.files)
        held_out = list(others)
        notes += [f"of the validation text: {note}" for note in others.notes()]
        shared = {each.digest for each in every} & {each.digest for each in held_out}
        if shared:
            notes.append(f"{plural(len(shared), 'conversation')} of the validation set also in the "
                         "training set")  # fmt: skip
        return every, held_out, notes
    distinct = sorted({each.digest for each in every})
    if len(distinct) < 2:
        raise DataError(
            f"there is only one conversation in {', '.join(data.paths)}, and one is held out for "
            "validation. Name more, or name others with --validation."
        )
    wanted = data.validation_fraction or min(SHARE, MOST / len(distinct))
    n = min(len(distinct) - 1, max(1, round(wanted * len(distinct))))
    chosen = set(distinct[:n])
    train = [each for each in every if each.digest not in chosen]
    return train, [each for each in every if each.digest in chosen], notes


def _masked(
    some: Iterable[Conversation],
    context_length: int,
    speaker: Speaker,
    side: str,
    *,
    skip_bad: bool,
) -> tuple[list[tuple[Masked, Conversation]], list[str]]:
    """The ids of conversations, cut to the context, and notes."""
    found: list[tuple[Masked, Conversation]] = []
    n_cut = n_dropped = n_refused = 0
    first = ""
    for conversation in some:
        try:
            each = masked(conversation, speaker.template, speaker.tokenizer)
        except DataError as error:
            if not skip_bad:
                raise DataError(
                    f"{error} `--skip-bad` skips such conversations and counts them."
                ) from error
            n_refused, first = n_refused + 1, first or str(error)
            continue
        if len(each.ids) > context_length + 1:
            n_cut += 1
            each = Masked(each.ids[: context_length + 1], each.learned[: context_length + 1])
        if not each.learned[1:].any():  # only then can it lack a learned token
            n_dropped += 1
            continue
        found.append((each, conversation))
    notes = [f"{plural(n_refused, 'bad item')} skipped: {first}"] if n_refused else []
    if n_cut:
        notes.append(
            f"{plural(n_cut, f'{side} conversation')} longer than the context: cut after "
            f"{context_length + 1:,} tokens"
            + (f"; {n_dropped:,} of them dropped, with no answer left" if n_dropped else "")
        )
    if not found:
        raise DataError(
            f"no {side} conversation has an answer within the context of {context_length:,} "
            "tokens. Use shorter conversations, or a model with a longer context."
        )
    return found, notes
