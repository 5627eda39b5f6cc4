"""The two-minute tour: trains a model on stories of known entropy and shows how close it gets.

The stories are sampled from a probabilistic grammar (`lmsmith.text.stories`), so the probability of
each held-out story is known exactly. It gives the bits per byte that no model can beat on average.
The run's summary and report show the model between this lower bound and gzip and xz.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.errors import StorageError
from lmsmith.strict_json import write_json
from lmsmith.text.documents import Documents
from lmsmith.text.held_out import split_documents
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
    "model.ngram_tables": (),
    "model.context_length": 256,
    "train.batch_size": 8,
}
"""The model that becomes a chat model. It answers questions by copying words of a passage, which
attention does and n-gram tables do not. A small model makes more steps in the same time.
"""


def demo(
    out: Path,
    minutes: float,
    *,
    console: Console,
    started: float,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Path, dict[str, Any]]:
    """Writes OUT/stories.jsonl, trains OUT/run-N on it (N: the next free number), and returns the
    run's folder and summary. `started`: the time.monotonic() from which `minutes` count;
    `settings`: of the run. Raises StorageError if OUT cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error
    stories = out / "stories.jsonl"
    n_stories = write_stories(stories, N_BYTES, SEED)
    say(console, f"wrote {n_stories:,} stories, generated from a grammar, to {stories}")
    number = next(n for n in itertools.count(1) if not (out / f"run-{n}").exists())
    run, summary = train(
        [str(stories)],
        {"train.minutes": minutes, "tokenizer": TOKENIZER, **settings},
        out=out / f"run-{number}",
        console=console,
        started=started,
        reserve_seconds=SCORE_SECONDS,
    )
    if summary["finished"] != "signal":
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
