"""The two-minute tour: trains a model on stories of known entropy and shows how close it gets.

The stories are sampled from a probabilistic grammar (`lmsmith.text.stories`), so the probability of
each held-out story is known exactly. It gives the bits per byte that no model can beat on average.
The run's summary and report show the model between this lower bound and gzip and xz.

With `chat`, the model will become a chat model (`demo_chat.py`), so its text also has some little
stories with questions: the tokenizer then has their words, and the model their form. The bound does
not hold for this text, so it is not shown.
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
from lmsmith.text.little_questions import write_little_texts
from lmsmith.text.stories import score_story, write_stories
from lmsmith.train.log import say
from lmsmith.train.start import train

N_BYTES = 4_000_000
# With this vocabulary a whole story fits in the context, so names can be copied from its beginning.
TOKENIZER = "bpe:2048"
SEED = 1
CHAT_MODEL: dict[str, Any] = {
    "model.n_layer": 3,
    "model.n_head": 4,
    "model.d_model": 128,
    "model.ngram_table_size": 4096,
    "model.context_length": 256,
    "train.batch_size": 8,
}
"""The model that becomes a chat model. A small model makes more steps in the same time. Its n-gram
tables give a position the words before it, so that "hat" in "Ben put the hat" has the name; a
model without them learns much later who did what (`docs/log.md`).
"""
N_LITTLE = 5000
"""Little stories with questions in the text of that model, a third of it."""
CHAT_SHARE = 1 / 3
"""Of the minutes: the time that model trains on its text. Longer training makes better stories, but
then the model learns to look up answers more slowly (`docs/log.md`).
"""


def demo(
    out: Path,
    minutes: float,
    *,
    console: Console,
    started: float,
    chat: bool = False,
    seed: int = SEED,
) -> tuple[Path, dict[str, Any]]:
    """Writes OUT/stories.jsonl, trains OUT/run-N on it (N: the next free number), and returns the
    run's folder and summary. `started`: the time.monotonic() from which `minutes` count; `chat`:
    the model will become a chat model, so it trains for `CHAT_SHARE` of the time and also on
    OUT/little.jsonl; `seed`: of text and training. Raises StorageError if OUT cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error
    stories = out / "stories.jsonl"
    n_stories = write_stories(stories, N_BYTES, seed)
    say(console, f"wrote {n_stories:,} stories, generated from a grammar, to {stories}")
    sources = [stories]
    if chat:
        sources.append(out / "little.jsonl")
        write_little_texts(sources[1], N_LITTLE, seed)
        say(console, f"wrote {N_LITTLE:,} little stories with questions to {sources[1]}")
    number = next(n for n in itertools.count(1) if not (out / f"run-{n}").exists())
    run, summary = train(
        [str(source) for source in sources],
        {
            "train.minutes": minutes * (CHAT_SHARE if chat else 1),
            "train.seed": seed,
            "tokenizer": TOKENIZER,
            **(CHAT_MODEL if chat else {}),
        },
        out=out / f"run-{number}",
        console=console,
        started=started,
        reserve_seconds=SCORE_SECONDS,
    )
    if summary["finished"] != "signal" and not chat:
        summary["baselines"]["source"] = source_bits_per_byte(stories)
        write_json(run / "summary.json", summary)
        bound = summary["baselines"]["source"]
        say(
            console,
            f"lower bound for any model: {bound:.3f} bits per byte, the entropy of the stories "
            "under their grammar",
        )
    return run, summary


def source_bits_per_byte(stories: Path) -> float:
    """Bits per byte of the held-out stories under the grammar that generated them."""
    held_out = split_documents(Documents([stories])).validation
    nats = -sum(score_story(text) for text in held_out)
    return nats / math.log(2) / sum(len(text.encode()) for text in held_out)


SCORE_SECONDS = 3.0
"""Time reserved for scoring the held-out stories under the grammar."""
