"""Calls about models: evaluate, compare, import, export."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.lm import LM, SpecialTokens, load
from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Metrics, Run, paths
from lmsmith.errors import UsageError

if TYPE_CHECKING:
    from lmsmith.evaluate.comparison import Entry, Text
    from lmsmith.evaluate.likelihood import Score

MODELS = ("ngram", "rnn", "gru", "lstm", "gpt")


def evaluate(
    model: LM | Folder,
    *,
    text: Folder | Sequence[Folder] | None = None,
    stride: int | None = None,
    bos: bool = True,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
) -> Score:
    """Scores text files under a model: bits_per_byte, nats_per_token, perplexity and counts.

    `model`: a run, its folder, or what `load` returned. `text`: files, folders or globs; without
    it the run's own validation text. `stride`: a window every N tokens; less than the context
    length: windows overlap. `bos`: whether the text begins as in training. The other arguments say
    how the files are read, as the settings `data.*` do.

    Raises DataError for text that cannot be read, UsageError for a run without validation text and
    for reading options without `text`, and what `load` raises.
    """
    from lmsmith.evaluate.texts import score_texts
    from lmsmith.run_folder import score_validation

    if text is None and not bos:
        raise UsageError("bos=False says how `text` begins, and there is no text: name files.")
    lm = model if isinstance(model, LM) else load(model)
    if text is None:
        return score_validation(lm.path, lm.model, stride=stride)
    return score_texts(
        lm.model,
        lm.tokenizer,
        paths(text),
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        document_separator=document_separator,
        special_tokens=special_tokens,
        stride=stride,
        boundaries=lm.boundaries,
        begin=lm.writer.begin,
        bos=bos,
    )


@dataclass(frozen=True)
class Comparison:
    """Models, compressors and a uniform guess on one text, best first. `print` it for the table."""

    text: Text
    entries: tuple[Entry, ...]
    trained: tuple[Run, ...] = ()
    about: str = ""
    """How the models were trained, if the comparison did that."""

    def rows(self) -> Metrics:
        """One dict per entry: name, bits_per_byte and so on. `.frame()` has them as a DataFrame."""
        return Metrics(asdict(entry) for entry in self.entries)

    @property
    def notes(self) -> list[str]:
        """What limits the comparison, in sentences."""
        from lmsmith.report.comparison import comparison_notes

        return comparison_notes(self.entries)

    def page(self) -> str:
        """The comparison as one HTML file."""
        from lmsmith.report.comparison import comparison_page

        return comparison_page(
            self.entries, self.text, [run.path for run in self.trained], self.about
        )

    def __repr__(self) -> str:
        width = max(len(entry.name) for entry in self.entries)
        lines = [
            f"{entry.name:{width}}  "
            + (f"{entry.bits_per_byte:8.3f}" if math.isfinite(entry.bits_per_byte) else "infinite")
            + f"  {entry.what}"
            for entry in self.entries
        ]
        return "\n".join([f"bits per byte of {self.text.name}", *lines])


def compare(
    runs: Folder | Sequence[Folder] = (),
    *,
    text: Folder | None = None,
    train: Folder | Sequence[Folder] | None = None,
    minutes: float = 1.0,
    models: Sequence[str] = MODELS,
    runs_out: Folder | None = None,
    out: Folder | None = None,
    tokenizer: str | None = None,
    seed: int | None = None,
    text_field: str = "text",
    encoding: str = "auto",
    document_separator: str = "auto",
    progress: Shown = None,
) -> Comparison:
    """Compares runs, compressors and a uniform guess on one text, in bits per byte.

        lmsmith.compare(["runs/a-1", "runs/b-1"], text="test.txt")
        lmsmith.compare(train="book.txt", minutes=2)

    `text`: the file; with `train` its held-out text if none is named. `train`: text to train
    `models` on first (presets, or gpt for modern), each for `minutes`, into the new folder
    `runs_out` (default: runs/comparison-1), with `tokenizer` and `seed`. `out`: an HTML page with
    the plot. The other arguments say how text is read.

    Raises UsageError without runs and text, or `train`; and what `train` and `load` raise.
    """
    from lmsmith import atomic
    from lmsmith.evaluate.comparison import read_text
    from lmsmith.report.comparison import check_place, compare_runs

    folders = [Path(path) for path in paths(runs)]
    sources = [] if train is None else paths(train)
    if not sources and (not folders or text is None):
        raise UsageError(
            "name runs and a text; or with train=... text to train models on first, which are "
            "then compared on the part of it that is held out."
        )
    page = None if out is None else Path(out)
    if page and not (runs_out and page.parent == Path(runs_out)):  # which training makes
        check_place(page)
    reading = {
        "text_field": text_field,
        "encoding": encoding,
        "document_separator": document_separator,
    }
    on = None if text is None else read_text(Path(text), **reading)
    changes = _training_settings(tokenizer, seed, reading)
    trained, about = _train_models(sources, changes, models, minutes, runs_out, progress)
    everyone = [*folders, *trained]
    if on is None:
        on = _held_out_text(everyone[-1], sources)
    found = Comparison(on, tuple(compare_runs(everyone, on)), tuple(map(Run, trained)), about)
    if page:
        atomic.write(page, found.page())
    return found


def _training_settings(
    tokenizer: str | None, seed: int | None, reading: Mapping[str, str]
) -> dict[str, Any]:
    """Settings by dotted name that `compare` passes to training: those that differ from the
    defaults.

    `reading`: how text is read, by the names of the settings `data.*`.
    """
    changes = {
        f"data.{name}": value for name, value in reading.items() if value not in ("text", "auto")
    }
    given = {"tokenizer": tokenizer, "train.seed": seed} | changes
    return {name: value for name, value in given.items() if value is not None}


def _train_models(
    sources: Sequence[str],
    changes: Mapping[str, Any],
    models: Sequence[str],
    minutes: float,
    runs_out: Folder | None,
    progress: Shown,
) -> tuple[list[Path], str]:
    """Trains `models` on `sources`. Returns their run folders and a sentence on how they were
    trained; nothing is trained without sources.
    """
    from lmsmith.report.comparison import equal_time, train_all

    if not sources:
        return [], ""
    with showing(progress) as console:
        trained = train_all(
            sources,
            changes,
            models,
            minutes=minutes,
            out=None if runs_out is None else Path(runs_out),
            console=console,
        )
    return trained, equal_time(trained, sources, minutes)


def _held_out_text(run: Path, sources: Sequence[str]) -> Text:
    """The validation text of a run that was trained on `sources`."""
    from lmsmith.evaluate.comparison import read_text

    names = ", ".join(Path(source).name for source in sources)
    held_out = run / "tokens" / "validation.txt"
    return replace(read_text(held_out, document_separator="none"), name=f"held-out text of {names}")


def import_model(
    source: Folder,
    *,
    out: Folder | None = None,
    tokenizer: Folder | None = None,
    eos_token: str | None = None,
) -> Run:
    """Makes a run of a Hugging Face, GGUF or llm.c model.

    `source`: a folder, a GGUF or llm.c file, or a name on the Hugging Face Hub. `out`: the run's
    folder (default: runs/NAME-1). `tokenizer`: instead of the one beside the weights or in the
    file; "none": the weights alone. `eos_token`: which token stands between documents, by name.

    Raises UsageError, ConfigError, CheckpointError, TokenizerError or StorageError; nothing is
    written then.
    """
    from lmsmith.interop.importing import import_model as read

    place, _ = read(
        os.fspath(source),
        out=None if out is None else Path(out),
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        eos_token=eos_token,
    )
    return Run(place)


@dataclass(frozen=True)
class Exported:
    """A folder for other programs, and what was checked when it was written."""

    path: Path
    receipt: dict[str, Any]
    """What receipt.json says: architecture, n_params, dtype, checked, sha256."""

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def export(
    run: Folder,
    *,
    to: Literal["hf", "gguf", "llmc"],
    out: Folder | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto",
) -> Exported:
    """Writes a run's model for other programs, reads it again, and compares the logits.

    `to`: "hf" for transformers and vLLM, "gguf" for llama.cpp, "llmc" for llm.c. `out`: a new
    folder (default: RUN-hf, RUN-gguf or RUN-llmc, beside the run). `dtype`: precision of the
    weights; auto: what they have. `type`: the same for GGUF, with float16 and 8-bit quantization.

    Raises ConfigError for a model that has no counterpart there, CheckpointError if what was
    written does not give the same logits, UsageError, StorageError.
    """
    from lmsmith.interop.exporting import export_model

    if to not in ("hf", "gguf", "llmc"):
        raise UsageError(f"to = {to!r}: expected 'hf', 'gguf' or 'llmc'.")
    if to == "gguf" and dtype != "auto":
        raise UsageError(f"dtype = {dtype!r} is for to = 'hf' and 'llmc': with 'gguf', give type.")
    if to != "gguf" and type != "auto":
        raise UsageError(f"type = {type!r} is for to = 'gguf': with {to!r}, give dtype.")
    folder = Path(os.path.abspath(run))
    place = folder.with_name(f"{folder.name}-{to}") if out is None else Path(out)
    if to == "gguf":
        from lmsmith.interop.gguf_exporting import export_gguf

        return Exported(place, export_gguf(Path(run), place, type=type))
    return Exported(place, export_model(Path(run), place, to=to, dtype=dtype))
