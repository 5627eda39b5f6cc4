"""`Run`: a run folder from Python."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import foreign_json
from lmsmith.config import RunConfig, read_toml
from lmsmith.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import pandas

Folder = str | os.PathLike[str]
"""A path or a `Run`."""


class Metrics(list[dict[str, Any]]):
    """The lines of metrics.jsonl, one dict per line.

    Each has `kind`: "train", "eval" or "event"; the first two also have `step`. Losses are in nats
    per token. Numbers that are not finite are None.
    """

    def frame(self) -> pandas.DataFrame:
        """Returns the metrics as a pandas DataFrame, one row per line. Raises UsageError if pandas
        is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "frame() needs pandas, which is not installed: `pip install pandas`. Without it, "
                "use the metrics as a list of dicts."
            ) from error
        return pandas.DataFrame(list(self))


class Run:
    """A run folder: its config, metrics, summary and report.

    A `Run` is accepted in place of a folder (`lmsmith.load(run)`, `Path(run)`). Each property reads
    the folder again, so a run that is still training shows its latest numbers.
    """

    def __init__(self, path: Folder) -> None:
        """Opens the run in the folder `path`. Raises UsageError if there is none."""
        self.path = Path(path)
        if not (self.path / "config.toml").is_file():
            what = "has no config.toml" if self.path.is_dir() else "is not a folder"
            raise UsageError(
                f"{self.path} is not a run: it {what}. Expected a folder that lmsmith.train, "
                "lmsmith.import_model, `lmsmith train` or `lmsmith import` wrote."
            )

    @property
    def config(self) -> RunConfig:
        """All settings. Raises ConfigError if config.toml cannot be read."""
        path = self.path / "config.toml"
        return RunConfig().changed(read_toml(path), where=str(path))

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty before the run has ended.

        Losses are in nats per token, times in seconds. `finished` says why it ended: "steps",
        "tokens", "time", "target", "requested", "signal", "counted" or "imported".
        """
        from lmsmith.run_folder import summary_of

        return summary_of(self.path)

    @property
    def metrics(self) -> Metrics:
        """The lines of metrics.jsonl; empty for a run without steps.

        An incomplete last line is skipped. Raises CheckpointError for a damaged line.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return Metrics()
        except OSError as error:
            raise CheckpointError(
                f"cannot read {path}: {error.strerror}. Check the path and its permissions."
            ) from error
        rows = Metrics()
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(foreign_json.parse(line))
            except ValueError as error:
                if number < len(lines):
                    raise CheckpointError(
                        f"{path} is damaged: line {number} is not JSON ({error}). Restore the "
                        "file from a copy, or remove that line."
                    ) from error
        return rows

    def report(self, out: Folder | None = None) -> Path:
        """Writes the run's report, one HTML file, and returns its path (default: RUN/report.html).

        Raises CheckpointError if the run cannot be read, StorageError if `out` cannot be written.
        """
        from lmsmith.api.training import report

        return report(self, out=out)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in self._facts())
        return f"Run({str(self.path)!r}{', ' if facts else ''}{facts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in [("run", str(self.path)), *self._facts()]
        )
        return f"<table>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        """Labels and values for the representation of the run."""
        summary = self.summary
        if not summary:
            return [("finished", "no")]
        facts = [("finished", str(summary.get("finished")))]
        for name, key, form in (
            ("steps", "steps", ",d"),
            ("parameters", "n_params", ",d"),
            ("best validation loss", "best_val_loss", ".4f"),
            ("bits per byte", "best_val_bits_per_byte", ".3f"),
        ):
            value = summary.get(key, summary.get(key.removeprefix("best_")))
            if isinstance(value, int | float) and math.isfinite(value):
                facts.append((name, format(value, form)))
        return facts


def paths(some: Folder | Sequence[Folder]) -> list[str]:
    """Returns a list of paths as strings, from one path or several."""
    return [os.fspath(one) for one in ([some] if isinstance(some, str | os.PathLike) else some)]
