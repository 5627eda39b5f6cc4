"""The end of a run: its summary, and the words for an end before its time."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.errors import TrainingError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.strict_json import write_json
from lmsmith.train.legs import legs_of
from lmsmith.train.log import say
from lmsmith.train.loop import Training
from lmsmith.train.step import is_out_of_memory

CLOSING_SECONDS = 3.0
"""Kept free at the end of `--minutes` for the samples, the report and leaving Python."""

LEAST_SECONDS = 2.0
"""With less than this for steps, `--minutes` is refused."""

COMPRESS_SECONDS_A_BYTE = 1.2e-6  # gzip -9 and xz -9e on English text


def finish(training: Training) -> dict[str, Any]:
    """Trains a run to its end and writes its summary, with the compressors' scores on its text."""
    summary, context = training.go(), training.context
    summary["legs"] = legs_of(context.about, summary["steps"])
    if not context.ranks.first:
        return summary
    place, config = context.run, context.config
    # Of ready shards the validation text may be too large to have been written out.
    text = place / "tokens" / "validation.txt"
    if summary["finished"] != "signal" and text.exists():
        summary["baselines"] = compressed_bits_per_byte(text.read_bytes())
    if summary["finished"] == "time":  # what repeats this run without a clock
        steps = {"train.steps": summary["steps"]}
        atomic.write(place / "config.toml", config.changed(steps, where="the clock").to_toml())
    write_json(place / "summary.json", summary)  # written last: it says that the run has ended
    return summary


def compress_seconds(tokens: Path) -> float:
    """About how long the compressors take on a run's validation text, if it has that as text."""
    text = tokens / "validation.txt"
    return text.stat().st_size * COMPRESS_SECONDS_A_BYTE if text.exists() else 0.0


@contextmanager
def saying_how_to_resume(place: Path, console: Console) -> Iterator[None]:
    """Says how to continue where a run is stopped before its time, or memory does not suffice."""
    try:
        with memory_in_words():
            yield
    except KeyboardInterrupt:
        message = f"`lmsmith resume {shlex.quote(str(place))}` goes on from what is saved"
        say(console, message)
        raise


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Raises TrainingError, which says what to set, where memory does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "this machine's memory does not suffice. Set a smaller --train.micro_batch_size (the "
            "batch stays as it is; `lmsmith resume` takes it too), "
            "--train.activation_checkpointing yes, or a "
            "smaller --model.context_length or model."
        ) from error
