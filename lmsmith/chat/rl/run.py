"""`lmsmith rl`: a run of `lmsmith.train` with the objective `rl`, from a tuned model's weights.

    folder, summary = rl(Path("runs/chat-1"), "arithmetic", {}, out=None, console=console)

The run has the right answers to some problems as its tokens (`gather`), so that the model's loss on
them can be read like that of any tuned model. Training does not use them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith.chat.conversations import Conversation
from lmsmith.chat.masks import Masked, masked
from lmsmith.chat.prepare import Speaker, own_speaker
from lmsmith.chat.rl.objective import REFERENCE
from lmsmith.chat.rl.options import Options, opened_task, options_of
from lmsmith.chat.rl.rollouts import prompt_of
from lmsmith.chat.rl.task import Problem
from lmsmith.checkpoint import load_model
from lmsmith.config import LENGTH, RL_TASKS, RunConfig
from lmsmith.data.conversations import FILE_NAME, FORMAT, Conversations
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.errors import ConfigError, DataError
from lmsmith.optim.rates import TOGETHER
from lmsmith.run_folder import model_folder
from lmsmith.strict_json import write_json
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ids_dtype
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.request import COMMAND_LINE
from lmsmith.train.start import train

STEPS = 500
N_TRAIN = 500  # training problems whose right answers are in RUN/tokens
DEFAULTS: dict[str, Any] = {
    "optim.name": "adamw",
    "optim.learning_rate": 2e-5,
    "optim.embedding_learning_rate": 0.0,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 1.0,
    "schedule.warmup_steps": 20,
    "schedule.cooldown_fraction": 0.0,
    "train.dtype": "float32",
}
"""A constant rate: rewards may still rise at any step. Large models need a lower one. float32: the
log-probabilities of the loss are those of the sampler."""


def rl(
    run: Path,
    task: str,
    changes: Mapping[str, Any],
    *,
    out: Path | None,
    console: Console,
    started: float | None = None,
    hooks: Sequence[Hook] = (),
    where: str = COMMAND_LINE,
) -> tuple[Path, dict[str, Any]]:
    """Trains the tuned model of `run` on a task's rewards; returns the new run's folder and
    summary. `task`: a name, or a recipe. Other arguments are those of `lmsmith.train.start.train`.

    Raises LmsmithError of every kind; ConfigError for an unknown task or reward.
    """
    if not task.endswith(".toml"):
        RL_TASKS.get(task)
    own_speaker(run)
    return train(
        [task],
        with_defaults(run, task, changes, where),
        out=out,
        console=console,
        started=started,
        hooks=hooks,
        where=where,
        gather=gather,
    )


def with_defaults(run: Path, task: str, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of such a run. Raises ConfigError for one that contradicts it."""
    fixed = {
        "train.init_from": str(run),
        "train.objective": "rl",
        "data.documents": "conversations",
    }
    for name, value in fixed.items():
        if changes.get(name, value) != value:
            raise ConfigError(
                f"{name} = {changes[name]!r} in {where}: `rl` sets it to {value!r}. Leave it out."
            )
    if task.endswith(".toml"):
        return {**changes, **fixed}
    changes = dict(changes)
    one_rate = changes.get("optim.name", "adamw") == "adamw"  # AdamW has one rate here
    if one_rate and TOGETHER in changes and "optim.learning_rate" not in changes:
        changes["optim.learning_rate"] = changes.pop(TOGETHER)
    length = {} if set(changes) & set(LENGTH) else {"train.steps": STEPS}
    return {**length, **DEFAULTS, **changes, **fixed}


def gather(config: RunConfig, folder: Path, console: Console) -> tuple[RunConfig, Corpus]:
    """Writes the tokens of a new run, and its reference, into `folder`. Raises DataError,
    ConfigError, CheckpointError, StorageError.
    """
    source = model_folder(Path(config.train.init_from))
    speaker, options, task = own_speaker(source), options_of(config), opened_task(config)
    T = config.model.context_length
    if T is not None and options.max_tokens >= T:
        raise ConfigError(
            f"rl.max_tokens = {options.max_tokens}, but the model's context has {T:,} tokens: "
            "leave room for the prompt."
        )
    if config.lora.rank and config.lora.embeddings == "auto":
        config = config.changed({"lora.embeddings": "no"}, where="what was chosen")
    seed, n_held_out = config.train.seed, config.rl.eval_problems
    sides = (
        [task.problem(seed, n) for n in range(N_TRAIN)],
        [task.problem(0, n, held_out=True) for n in range(n_held_out)],
    )
    for problem in (*sides[0], *sides[1]):
        prompt_of(problem, speaker, options.max_tokens, T)  # a prompt that is too long stops here
    corpus = write_answers(sides, speaker, options, T, folder / "tokens")
    if config.rl.kl_weight:
        load_model(source)  # raises a clear error for damaged weights
        (folder / REFERENCE).mkdir()
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(source / name, folder / REFERENCE / name)
    return config, corpus


def write_answers(
    sides: tuple[Sequence[Problem], Sequence[Problem]],
    speaker: Speaker,
    options: Options,
    T: int | None,
    folder: Path,
) -> Corpus:
    """Writes the right answers to training and held-out problems as the tokens of a run."""
    tokenizer = speaker.tokenizer
    found = [[_solved(problem, speaker, T) for problem in side] for side in sides]
    kept = [[each for each in side if each is not None] for side in found]
    if not all(kept):
        raise DataError(
            f"no problem of {options.task.name} fits with its answer into the model's context of "
            f"{T:,} tokens. Use a model with a longer context."
        )
    joined = [
        Conversations.join([(e.ids, e.learned) for e in side], ids_dtype(tokenizer.vocab_size))
        for side in kept
    ]
    n_cut = sum(len(side) for side in found) - sum(len(side) for side in kept)
    notes = [f"rewards {', '.join(name for name, _, _ in options.judge.parts)}"]
    n_unknown = sum(
        tokenizer.count_unknown(f"{problem.question}{problem.truth}")
        for side in sides
        for problem in side
    )
    if n_unknown:
        notes.append(
            f"the tokenizer does not know {n_unknown:,} parts of the first problems and "
            "answers, so some rewards may be out of reach"
        )
    if n_cut:
        notes.append(f"{n_cut:,} of the first problems do not fit into the context")
    texts = [str(problem.truth) for problem in sides[1]]
    counts = Counts(
        n_train_tokens=len(joined[0]),
        n_val_tokens=joined[1].n_learned,
        n_val_bytes=max(1, sum(len(text.encode()) for text in texts)),
        n_val_unknown=sum(tokenizer.count_unknown(text) for text in texts),
        n_val_unknown_bytes=sum(tokenizer.unknown_bytes(text) for text in texts),
        notes=tuple(notes),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in zip(joined, ("train", "val"), strict=True):
        side.save(folder, name, tokenizer.vocab_size)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "corpus.json", asdict(counts))
    write_json(folder / FILE_NAME, {"format": FORMAT})
    return Corpus(joined[0], joined[1], tokenizer, counts)


def _solved(problem: Problem, speaker: Speaker, T: int | None) -> Masked | None:
    """A problem with its right answer; None if it does not fit into T tokens."""
    answer = {"role": "assistant", "content": str(problem.truth) or "?"}
    conversation = Conversation((*problem.messages, answer), problem.where)
    found = masked(conversation, speaker.template, speaker.tokenizer)
    return found if T is None or len(found.ids) <= T + 1 else None
