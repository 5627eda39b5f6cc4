"""Ends a run: writes its summary, and says how to resume it if it was stopped early."""

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
from lmsmith.machine.heap import release_freed_memory
from lmsmith.strict_json import write_json
from lmsmith.train.legs import legs_of
from lmsmith.train.log import say
from lmsmith.train.loop import Training
from lmsmith.train.step import is_out_of_memory

CLOSING_SECONDS = 3.0
"""Seconds of `--minutes` reserved for the samples, the report and the exit of Python."""

LEAST_SECONDS = 2.0
"""`--minutes` is refused if less than this many seconds remain for steps."""

COMPRESS_SECONDS_A_BYTE = 1.2e-6  # measured: gzip -9 and xz -9e on English text


def finish(training: Training) -> dict[str, Any]:
    """Trains to the end and writes summary.json, with the compressors' scores on the text."""
    summary, context = training.go(), training.context
    summary["legs"] = legs_of(context.about, summary["steps"])
    if not context.ranks.first:
        return summary
    place, config = context.run, context.config
    # Prepared shards may be too large for a copy of their validation text.
    text = place / "tokens" / "validation.txt"
    if summary["finished"] != "signal" and text.exists():
        release_freed_memory()  # of the last steps
        summary["baselines"] = compressed_bits_per_byte(text.read_bytes())
    if summary["finished"] == "time":  # the number of steps repeats this run without a time limit
        steps = {"train.steps": summary["steps"]}
        atomic.write(place / "config.toml", config.changed(steps, where="the clock").to_toml())
    write_json(place / "summary.json", summary)  # written last: it says that the run has ended
    return summary


def compress_seconds(tokens: Path) -> float:
    """Estimates how long the compressors take on a run's validation text, in seconds."""
    text = tokens / "validation.txt"
    return text.stat().st_size * COMPRESS_SECONDS_A_BYTE if text.exists() else 0.0


@contextmanager
def explain_resume(place: Path, console: Console) -> Iterator[None]:
    """Says how to resume if the run is interrupted; explains what to do if memory runs out."""
    try:
        with explain_out_of_memory():
            yield
    except KeyboardInterrupt:
        message = f"`lmsmith resume {shlex.quote(str(place))}` continues from the last checkpoint"
        say(console, message)
        raise


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turns an out-of-memory error into a TrainingError that says what to set."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "out of memory. Set a smaller --train.micro_batch_size (the batch size stays the same; "
            "`lmsmith resume` accepts it too), --train.activation_checkpointing yes, or a "
            "smaller --model.context_length or model."
        ) from error
