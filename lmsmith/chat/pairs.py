"""Reads preferences from files, and writes them as ids into the folder of a run.

| form | a record |
|---|---|
| pair | `{"prompt": "...", "chosen": "...", "rejected": "..."}`, texts or lists of messages |
| pair, implicit prompt | `{"chosen": [...], "rejected": [...]}`: both begin with the prompt |
| label (KTO) | `{"prompt": "...", "completion": "...", "label": true}` |

These are TRL's forms. Each side with its prompt is checked as a conversation. Only the answers
after the prompt are learned. Conversations longer than `align.max_length` are cut at their end.
Pairs whose sides are equal, or become equal by the cut, are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.chat.conversations import Conversation, Message, _side, conversation_of
from lmsmith.chat.masks import Masked, masked, prompt_ids
from lmsmith.chat.prepare import MOST, SHARE, Speaker
from lmsmith.config import RunConfig
from lmsmith.data.conversations import FILE_NAME, FORMAT, Conversations
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.errors import DataError
from lmsmith.strict_json import write_json
from lmsmith.text.files import plural
from lmsmith.text.leaks import refuse_shared_files
from lmsmith.text.records import find_record_files, read_records
from lmsmith.text.skipping import Skipped
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ids_dtype

FORMS = "`prompt`, `chosen` and `rejected`, or (kto) `prompt`, `completion` and `label`"


@dataclass(frozen=True)
class Preference:
    """Answers to a prompt, each the full conversation, and whether each is good.

    A pair has two answers, chosen and rejected; a labelled record has one.
    """

    prompt: tuple[Message, ...]
    answers: tuple[tuple[Conversation, bool], ...]
    source: str


def preference_of(record: Mapping[str, Any], source: str = "") -> Preference:
    """The preference in a record of any of the forms. Raises DataError, which names `source`."""
    where = source or "the record"
    if record.get("chosen") is not None and record.get("rejected") is not None:
        chosen, rejected = (_side(record[name], "assistant") for name in ("chosen", "rejected"))
        prompt = record.get("prompt")
        if prompt is None:
            n = _shared(chosen, rejected)
            before, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
            if not (before and chosen and rejected):
                raise DataError(
                    f"{where} has no prompt, and its sides do not begin with one. Expected {FORMS}."
                )
        else:
            before = _side(prompt, "user")
        sides = (("chosen", chosen, True), ("rejected", rejected, False))
    elif record.get("completion") is not None and isinstance(record.get("label"), bool | int):
        before = _side(record.get("prompt"), "user")
        completion = _side(record["completion"], "assistant")
        sides = (("completion", completion, bool(record["label"])),)  # type: ignore[assignment]
    else:
        found = ", ".join(map(repr, record)) or "no fields"
        raise DataError(f"{where} is not a preference: it has {found}; expected {FORMS}.")
    answers = []
    for name, turns, good in sides:
        about = {key: record[key] for key in ("system", "tools") if key in record}
        whole = conversation_of({"messages": [*before, *turns], **about}, f"{where}, {name}")
        n = len(whole.messages) - len(turns) + whole.n_dropped
        roles = [message["role"] for message in whole.messages]
        if not 1 <= n < len(roles) or roles[n - 1] == "assistant" or roles[n] != "assistant":
            raise DataError(
                f"{where}, {name}: expected the prompt to end with the user's turn and the answer "
                "to begin with the assistant's."
            )
        answers.append((whole, good))
    return Preference(answers[0][0].messages[:n], tuple(answers), source)


def _shared(one: list[Any], other: list[Any]) -> int:
    """The number of messages that both begin with."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(one), len(other)))


class Preferences:
    """The preferences of files. Raises DataError, which names file and line."""

    def __init__(self, sources: tuple[str, ...], *, skip_bad: bool, method: str) -> None:
        self.sources, self.files = sources, find_record_files(sources)
        self._skip = Skipped() if skip_bad else None
        self._method = method

    def __iter__(self) -> Iterator[Preference]:
        n = 0
        for path in self.files:
            for record, source in read_records(path, self._skip):
                try:
                    found = preference_of(record, source)
                except DataError as error:
                    if self._skip is None:
                        raise DataError(
                            f"{error} `--skip-bad` skips such records and counts them."
                        ) from error
                    self._skip(error)
                    continue
                if len(found.answers) == 1 and self._method != "kto":
                    raise DataError(
                        f"{source} has one answer with a label, and {self._method} needs pairs. "
                        "Use --method kto."
                    )
                n += 1
                yield found
        if not n:
            raise DataError(
                f"there are no preferences in {', '.join(self.sources)}. Expected {FORMS}."
            )

    def notes(self) -> list[str]:
        return self._skip.notes() if self._skip else []


# ---- ids -----------------------------------------------------------------------------------------


Answer = tuple[list[int], Masked, bool]  # ids of the prompt, the conversation, good or not


def encoded(preference: Preference, speaker: Speaker) -> list[Answer]:
    """The ids of each answer with its prompt; only the answer is learned. Raises DataError."""
    found = []
    for conversation, good in preference.answers:
        each = masked(conversation, speaker.template, speaker.tokenizer)
        before = prompt_ids(
            preference.prompt, speaker.template, speaker.tokenizer, conversation.tools
        )
        if each.ids[: len(before)].tolist() != before:
            raise DataError(
                f"{conversation.source}: the chat template renders the prompt differently when an "
                "answer follows, so it does not say where the answer begins. Choose another with "
                "--template."
            )
        learned = each.learned.copy()
        learned[: len(before)] = False
        found.append((before, Masked(each.ids, learned), good))
    return found


def prepare_pairs(config: RunConfig, speaker: Speaker, folder: Path) -> Corpus:
    """Reads and writes the preferences of a run. Raises DataError, StorageError."""
    train, validation, notes = _split(config)
    dtype = ids_dtype(speaker.tokenizer.vocab_size)
    joined = []
    for name, some in (("training", train), ("held-out", validation)):
        rows, labels, more = _rows(some, config, speaker, name)
        notes += more
        side = Conversations.join([(each.ids, each.learned) for each in rows], dtype)
        side.labels = labels
        joined.append(side)
    what = "answer" if config.align.method == "kto" else "pair"
    notes.append(
        f"{plural(joined[0].n // 2, what)} for training, {joined[1].n // 2:,} held out (by prompt)"
    )
    counts = Counts(len(joined[0]), joined[1].n_learned, 1, 0, 0, tuple(notes))
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in zip(joined, ("train", "val"), strict=True):
        side.save(folder, name, speaker.tokenizer.vocab_size)
    save_tokenizer(speaker.tokenizer, folder)
    write_json(folder / "corpus.json", asdict(counts))
    write_json(folder / FILE_NAME, {"format": FORMAT})
    return Corpus(joined[0], joined[1], speaker.tokenizer, counts)


def _split(config: RunConfig) -> tuple[list[Preference], list[Preference], list[str]]:
    """Training and held-out preferences, and notes. Equal prompts are on one side."""
    data, method = config.data, config.align.method
    files = Preferences(data.paths, skip_bad=data.skip_bad, method=method)
    every = list(files)
    notes = files.notes()
    if data.validation:
        others = Preferences(data.validation, skip_bad=data.skip_bad, method=method)
        refuse_shared_files(files.files, others.files)
        held_out = list(others)
        return every, held_out, notes + [f"of the validation set: {n}" for n in others.notes()]
    of = [Conversation(each.prompt).digest for each in every]
    distinct = sorted(set(of))
    if len(distinct) < 2:
        raise DataError(
            f"all preferences in {', '.join(data.paths)} have one prompt, and a prompt is held out "
            "for validation. Name more, or name others with --validation."
        )
    wanted = data.validation_fraction or min(SHARE, MOST / len(distinct))
    n = min(len(distinct) - 1, max(1, round(wanted * len(distinct))))
    chosen = set(distinct[:n])
    train = [each for each, digest in zip(every, of, strict=True) if digest not in chosen]
    held_out = [each for each, digest in zip(every, of, strict=True) if digest in chosen]
    return train, held_out, notes


def _rows(
    some: list[Preference], config: RunConfig, speaker: Speaker, side: str
) -> tuple[list[Masked], Any, list[str]]:
    """Conversations two by two, labels (KTO), and notes."""
    context, method = config.neural.context_length or 0, config.align.method
    most = min(config.align.max_length or context, context) + 1
    n: Counter[str] = Counter()
    kept: list[list[Answer]] = []
    for preference in some:
        answers = encoded(preference, speaker)
        cut = [(p, Masked(e.ids[:most], e.learned[:most]), g) for p, e, g in answers]
        n["cut"] += sum(len(e.ids) > most for _, e, _ in answers)
        if len(cut) == 2 and cut[0][1].ids.tolist() == cut[1][1].ids.tolist():
            same = answers[0][1].ids.tolist() == answers[1][1].ids.tolist()
            n["equal" if same else "equal after the cut"] += 1
        elif not all(each.learned[1:].any() for _, each, _ in cut):
            n["without an answer after the cut"] += 1
        else:
            kept.append(cut)
    notes = [
        f"{plural(n[why], f'{side} pair')} dropped: the two sides are {why}"
        for why in ("equal", "equal after the cut")
        if n[why]
    ]
    if n["cut"]:
        lost = n["without an answer after the cut"]
        notes.append(
            f"{plural(n['cut'], f'{side} conversation')} longer than {most:,} tokens: cut at the "
            "end" + (f"; {lost:,} dropped, with no answer left" if lost else "")
        )
    if not kept:
        raise DataError(
            f"no {side} preference is left: {', '.join(f'{k} {why}' for why, k in n.items() if k)}."
            " Use other or shorter ones, or a model with a longer context."
        )
    if method != "kto":
        return [each for pair in kept for _, each, _ in pair], None, notes
    return *_with_others([answer for answers in kept for answer in answers], most), notes


def _with_others(answers: list[Answer], most: int) -> tuple[list[Masked], Any]:
    """For KTO: each answer, then its prompt with the answer to another prompt.

    The other answer is the nearest later one in the file that differs.
    """
    rows: list[Masked] = []
    for number, (before, each, _) in enumerate(answers):
        later = (answers[(number + k) % len(answers)] for k in range(1, len(answers)))
        prompt, other, _ = next(
            (one for one in later if one[0] != before), answers[(number + 1) % len(answers)]
        )
        end = other.ids[len(prompt) :]
        ids = np.concatenate([np.asarray(before, other.ids.dtype), end])[:most]
        learned = np.concatenate([np.zeros(len(before), bool), other.learned[len(prompt) :]])
        rows += [each, Masked(ids, learned[:most])]
    return rows, np.array([good for _, _, good in answers])
