"""What a run says while it goes: metrics.jsonl for programs, a live bar or plain lines for people."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

SMOOTHING = 0.95  # share of the past in the loss that is shown


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object a line, each line written whole and at once."""

    def __init__(self, path: Path, *, from_step: int = 0) -> None:
        """Opens for appending; lines after `from_step`, of updates that a resumed run makes again, are dropped."""
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= from_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut short
        beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(safe) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Progress:
    """A live bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, console: Console, n_steps: int, tokens_per_step: int) -> None:
        self.console, self.n_steps, self.tokens_per_step = console, n_steps, tokens_per_step
        self.loss = self.val_loss = math.nan
        self.step, self._last_line = 0, 0.0
        self._rate, self._from = 0.0, (0, time.monotonic())
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        if self._live:
            self._live.start()

    def update(self, step: int, loss: float) -> None:
        """After update number `step` (from 1)."""
        self.step = step
        self.loss = loss if math.isnan(self.loss) else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        now = time.monotonic()
        due = 0.2 if self._live else 5.0
        if now - self._last_line < due and step < self.n_steps:
            return
        first, since = self._from
        if now > since:
            self._rate = (step - first) * self.tokens_per_step / (now - since)
        if now - since > 10:  # the rate shown is that of the last ten to twenty seconds
            self._from = (step, now)
        self._last_line = now
        self._show()

    def evaluated(self, step: int, val_loss: float, bits_per_byte: float) -> None:
        self.val_loss = val_loss
        self.say(f"step {step:>6,}  val loss {val_loss:.4f}  {bits_per_byte:.3f} bits per byte")

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def _show(self) -> None:
        left = (self.n_steps - self.step) * self.tokens_per_step / self._rate if self._rate else math.nan
        numbers = f"loss {self.loss:.3f}"
        if not math.isnan(self.val_loss):
            numbers += f"  val {self.val_loss:.3f}"
        numbers += f"  {self._rate:,.0f} tokens/s  {clock(left)} left"
        if self._live is None:
            self.say(f"step {self.step:>6,}/{self.n_steps:,}  {numbers}")
            return
        width = max(10, min(40, self.console.width - len(numbers) - 24))
        done = self.step / max(1, self.n_steps)
        full = int(done * width)
        bar = Text.assemble(("━" * full, "green"), ("━" * (width - full), "bright_black"))
        self._live.update(
            Text.assemble(f"{self.step:>6,}/{self.n_steps:,} ", bar, f" {numbers}", no_wrap=True, overflow="ellipsis"),
            refresh=True,
        )


def clock(seconds: float) -> str:
    """61 -> '1:01'."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
