"""The two-minute tour: stories with a known entropy, a model of them, and how near it comes.

The stories are samples of a grammar (`lmsmith.text.stories`), so the probability of each held-out
story is known exactly and with it the bits per byte that no model can beat. The run's summary and
report show the model between that floor and what gzip and xz make of the same text.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.errors import StorageError
from lmsmith.strict_json import write_json
from lmsmith.text.documents import Documents
from lmsmith.text.held_out import split_documents
from lmsmith.text.stories import score_story, write_stories
from lmsmith.train.start import train

N_BYTES = 4_000_000
# a story then fits the context, and with it the names and things that come back in it
TOKENIZER = "bpe:2048"
SEED = 1


def demo(
    out: Path, minutes: float, *, console: Console, started: float
) -> tuple[Path, dict[str, Any]]:
    """Writes OUT/stories.jsonl, trains OUT/run-1 (the next free number) on it, and returns the
    run and its summary.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error
    stories = out / "stories.jsonl"
    n_stories = write_stories(stories, N_BYTES, SEED)
    console.print(
        f"wrote {n_stories:,} stories to {stories}: samples of a grammar, made here",
        highlight=False,
    )
    number = next(n for n in itertools.count(1) if not (out / f"run-{n}").exists())
    run, summary = train(
        [str(stories)],
        {"train.minutes": minutes, "tokenizer": TOKENIZER},
        out=out / f"run-{number}",
        console=console,
        started=started,
        reserve_seconds=SCORE_SECONDS,
    )
    if summary["finished"] != "signal":
        summary["baselines"]["source"] = source_bits_per_byte(stories)
        write_json(run / "summary.json", summary)
        console.print(
            f"under the grammar that made them these stories cost "
            f"{summary['baselines']['source']:.3f} bits per byte: "
            "on average no model does better",
            highlight=False,
        )
    return run, summary


def source_bits_per_byte(stories: Path) -> float:
    """What the held-out stories cost under the grammar that made them."""
    held_out = split_documents(Documents([stories])).validation
    nats = -sum(score_story(text) for text in held_out)
    return nats / math.log(2) / sum(len(text.encode()) for text in held_out)


SCORE_SECONDS = 3.0
"""Kept free for scoring the held-out stories under the grammar."""
