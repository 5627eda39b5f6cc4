"""Progress of a run: metrics.jsonl, samples.md, and a live bar or plain lines."""

import json
import math
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lmsmith import atomic
from lmsmith.errors import StorageError
from lmsmith.strict_json import to_json

SMOOTHING = 0.95  # weight of the past in the displayed loss
LIVE_SECONDS, LINE_SECONDS = 0.2, 5.0  # time between refreshes of the bar; between plain lines
RATE_SECONDS = 10.0  # the displayed rate is that of the last 10 to 20 seconds
NARROWEST_BAR, WIDEST_BAR = 8, 40
_UNBROKEN = "\0"  # stands for a space where the line must not break


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object per line, flushed after each line."""

    def __init__(self, path: Path | None, *, step: int = 0, evaluated_step: int = 0) -> None:
        """Opens the file for appending; without a path, discards all lines.

        A resumed run repeats the steps after its checkpoint. So lines of training after `step`,
        evaluations after `evaluated_step`, and a last line cut short by a kill are dropped. Raises
        StorageError.
        """
        self.path = path
        self.also: list[Callable[[dict[str, Any]], None]] = []  # trackers that get each line too
        self._open(step, evaluated_step)

    def _open(self, step: int, evaluated_step: int) -> None:
        path = self.path or Path(os.devnull)
        with self._explained():
            if self.path:
                lines = (
                    path.read_text(encoding="utf-8", errors="replace").splitlines()
                    if path.exists()
                    else []
                )
                atomic.write(
                    path,
                    "".join(line + "\n" for line in lines if _is_kept(line, step, evaluated_step)),
                )
            self._file = path.open("a", encoding="utf-8")

    def back_to(self, step: int, evaluated_step: int) -> None:
        """Drops the lines after that step, for a rewind. Raises StorageError."""
        self._file.close()
        self._open(step, evaluated_step)

    def write(self, **values: Any) -> None:
        """Appends a line; numbers that are not finite become null. Raises StorageError."""
        with self._explained():
            self._file.write(to_json(values) + "\n")
            self._file.flush()
        for track in self.also:
            track(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._explained():
            self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(atomic.explain(error, self.path or Path(os.devnull))) from error


def _is_kept(line: str, step: int, evaluated_step: int) -> bool:
    try:
        found = json.loads(line)
        return bool(found["step"] <= (evaluated_step if found["kind"] == "eval" else step))
    except (ValueError, KeyError, TypeError):
        return False


def add_samples(path: Path, step: int, texts: Sequence[str]) -> None:
    """Appends a section to samples.md; replaces one of the same step, from before a resume.

    Raises StorageError.
    """
    try:
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise StorageError(atomic.explain(error, path)) from error
    longest = max((len(run) for text in texts for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    blocks = "".join(f"{fence}\n{text.strip()}\n{fence}\n\n" for text in texts)
    before = before.partition(f"## step {step}\n\n```")[0]
    atomic.write(path, f"{before}## step {step}\n\n{blocks}")


def say(console: Console, message: str, *, indent: int = 0, style: str | None = None) -> None:
    """Prints a message: wrapped at words on a terminal, elsewhere as one line.

    A command in backquotes is not wrapped, so that it can be copied.
    """
    if console.is_terminal:
        kept = re.sub("`[^`]*`", lambda command: command.group().replace(" ", _UNBROKEN), message)
        message = textwrap.fill(
            kept,
            console.width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).replace(_UNBROKEN, " ")
    console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True, style=style)


class Progress:
    """Shows a live bar on a terminal; elsewhere prints a plain line every few seconds."""

    def __init__(
        self,
        console: Console,
        n_steps: int,
        tokens_per_step: int,
        *,
        step: int = 0,
        deadline: float = math.inf,
        share_per_token: float = 0.0,
    ) -> None:
        """`step`: steps made before; a resumed run starts after them. `deadline`: time.monotonic()
        at which it ends at the latest. `share_per_token`: the FLOPs of a token divided by the
        machine's FLOP/s in matrix products; tokens/s times this is the MFU (model FLOPs
        utilization).
        """
        self.console, self.n_steps, self.tokens_per_step, self.deadline = (
            console,
            n_steps,
            tokens_per_step,
            deadline,
        )
        self.share_per_token = share_per_token
        self.loss = self.val_loss = math.nan
        self.step = step
        self._rate, self._from, self._shown_at = 0.0, (step, time.monotonic()), -math.inf
        live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, transient=True, auto_refresh=False) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Removes the bar. Later messages are printed as usual."""
        if self._live:
            self._live.stop()

    def update(self, step: int, loss: float) -> None:
        """Shows step number `step` (counted from 1)."""
        self.step = step
        self.loss = (
            loss if math.isnan(self.loss) else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        )
        now = time.monotonic()
        if (
            now - self._shown_at < (LIVE_SECONDS if self._live else LINE_SECONDS)
            and step < self.n_steps
        ):
            return
        first, since = self._from
        if now > since:
            self._rate = (step - first) * self.tokens_per_step / (now - since)
        if now - since > RATE_SECONDS:
            self._from = (step, now)
        self._shown_at = now
        self._show()

    def evaluated(
        self,
        step: int,
        val_loss: float,
        bits_per_byte: float,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Prints an evaluation. `bits_per_byte` is infinite if the loss is not a likelihood."""
        self.val_loss = val_loss
        numbers = [f"val loss {val_loss:.4f}"]
        if math.isfinite(bits_per_byte):
            numbers.append(f"{bits_per_byte:.3f} bits per byte")
        numbers += [f"{name} {value:.3f}" for name, value in (metrics or {}).items()]
        self.say(f"step {step:>6,}  {'  '.join(numbers)}")

    def say(self, message: str) -> None:
        say(self.console, message)

    def _show(self) -> None:
        left = (
            (self.n_steps - self.step) * self.tokens_per_step / self._rate
            if self._rate
            else math.inf
        )
        left = min(left, max(0.0, self.deadline - time.monotonic()))
        val = "" if math.isnan(self.val_loss) else f"  val {self.val_loss:.3f}"
        mfu = f"  {self._rate * self.share_per_token:.0%} MFU" if self.share_per_token else ""
        numbers = f"loss {self.loss:.3f}{val}  {self._rate:,.0f} tokens/s{mfu}  {clock(left)} left"
        if self._live is None:
            self.say(f"step {self.step:>6,}/{self.n_steps:,}  {numbers}")
        else:
            self._live.update(self._bar(numbers), refresh=True)

    def _bar(self, numbers: str) -> Text:
        """Step, bar and numbers. A narrow terminal drops the bar first, then cuts on the right."""
        step = f"{self.step:>{len(f'{self.n_steps:,}')},}/{self.n_steps:,} "
        width = min(WIDEST_BAR, self.console.width - len(step) - len(numbers) - 2)
        full = int(self.step / max(1, self.n_steps) * width)
        bar = Text.assemble(("━" * full, "green"), ("━" * (width - full), "bright_black"), " ")
        bar = bar if width >= NARROWEST_BAR else Text()
        return Text.assemble(step, bar, numbers, no_wrap=True, overflow="ellipsis")


def clock(seconds: float) -> str:
    """Formats seconds: 61 -> '1:01'."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
