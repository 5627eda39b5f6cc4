"""Text of any size -> a folder of token shards: `lmsmith data prepare`.

    manifest = build_shards(["web/*.parquet"], Path("web-tokens"), tokenizer="gpt2", workers=16)

    sources -> plan.py -> units -> encode.py, in parallel -> assemble.py, in order ->
    DIR/train_000000.bin ...

DIR appears when it is complete, with `manifest.json`, `tokenizer.json` and the shards:
`shard_tokens` tokens each, except the last of a split, with an end-of-text token before each
document. Until then the work is in `DIR.partial`, and the same command resumes it. The same text
and settings give the same folder, byte for byte, however many processes did it, in whatever order,
and however often they were killed.

`run_text.py` does the same for the text of one run, in memory.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith import atomic
from lmsmith.data.manifest import (
    Manifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
    write_manifest,
)
from lmsmith.data.prepare.assemble import Assembler, Summary
from lmsmith.data.prepare.dedup import find_near, which_to_keep
from lmsmith.data.prepare.encode import encode_unit, is_finished, remember_tokenizer
from lmsmith.data.prepare.engines import Work, run_local, run_ray
from lmsmith.data.prepare.leaks import leak_notes
from lmsmith.data.prepare.notes import check_large, check_sides, notes_on
from lmsmith.data.prepare.plan import Plan, check_unchanged, make_plan
from lmsmith.data.prepare.request import Dedup, Engine, Request
from lmsmith.data.prepare.tokenizer import Tell, cut_for, tokenizer_in
from lmsmith.data.prepare.unfinished import begun, digest_of, finish, unnamed
from lmsmith.data.prepare.units import Job
from lmsmith.errors import ConfigError, StorageError
from lmsmith.machine.limits import n_cores
from lmsmith.text import leaks
from lmsmith.text.sources import find_files
from lmsmith.tokens.control import SpecialTokens, check_control
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.tokens.tokenizer import Tokenizer


def build_shards(
    sources: Sequence[str],
    out: Path,
    *,
    tokenizer: str | Tokenizer = "gpt2",
    shard_tokens: int = 100_000_000,
    dedup: Dedup = "none",
    validation_fraction: float = 0.0,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    skip_bad: bool = False,
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
    validation: Sequence[str] = (),
    workers: int = 0,
    engine: Engine = "local",
    tell: Tell = lambda task, done, total: None,
) -> Manifest:
    """Writes the folder `out`, which must not exist, and returns its manifest.

    `tokenizer`: a tokenizer or the name of one: gpt2, byte, char, word, bpe:SIZE (learned from the
    training text), or a folder. `validation_fraction` 0: chosen by `text/held_out.py`.
    `validation`: the files for validation; all of `sources` is then for training.
    `document_separator`: splits plain files into documents, see `text/separators.py`.
    `special_tokens`: whether the names of special tokens in the text are text or control tokens,
    see `tokens/control.py`. `workers` 0: one per core; a Ray cluster has its own. `tell`: progress
    callback.

    Raises DataError for text that cannot be read, ConfigError for invalid settings and for settings
    that differ from those of an unfinished `out.partial`, TokenizerError, and StorageError if the
    disk is full. Finished work is kept.
    """
    request = Request(
        sources=sources,
        out=out,
        tokenizer=tokenizer,
        shard_tokens=shard_tokens,
        dedup=dedup,
        validation_fraction=validation_fraction,
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        skip_bad=skip_bad,
        document_separator=document_separator,
        special_tokens=special_tokens,
        validation=validation,
        workers=workers,
        engine=engine,
        tell=tell,
    )
    return _prepare(request)


def _prepare(request: Request) -> Manifest:
    request.check()
    _check_free(request.out)
    build = _plan(request)
    if unnamed(request.partial):
        manifest = _read_unnamed(build)
    else:
        _check_free(request.out)  # another process may have finished it in the meantime
        with begun(request.partial, {**build.settings, "plan": build.plan.digest()}):
            manifest = build.run()
    finish(request.partial, request.out)
    return manifest


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise StorageError(
            f"{out} already exists and is not overwritten. Remove it or choose another folder."
        )


def _plan(request: Request) -> "_Build":
    """Finds the files and plans the work."""
    reading = request.reading()
    files, left_out = find_files(list(request.sources))
    validation_files, also_left_out = (
        find_files(list(request.validation)) if request.validation else ([], Counter[str]())
    )
    leaks.refuse_shared_files(
        (file.path for file in files), (file.path for file in validation_files)
    )
    given = request.given()
    # With control tokens, long texts are not cut: a cut could fall inside one.
    cut = cut_for(request.wanted, given) if request.special_tokens == "text" else None
    plan = make_plan(
        files,
        reading,
        cut=cut,
        drop_duplicates=request.dedup != "none",
        validation=validation_files,
    )
    check_large(plan)
    settings = request.settings(given)
    return _Build(request, plan, given, settings, left_out + also_left_out)


def _read_unnamed(build: "_Build") -> Manifest:
    """Reads a complete folder that was not renamed yet. Raises ConfigError if its settings or
    sources were different.
    """
    manifest = read_manifest(build.request.partial)
    if manifest.settings.get("made_of") != build.made_of():
        raise ConfigError(
            f"{build.request.partial} is complete but was made with other settings or sources. "
            "Use the same settings and sources to finish it, or remove it to start over."
        )
    return manifest


@dataclass(frozen=True)
class _Build:
    """A planned preparation."""

    request: Request
    plan: Plan
    given: Tokenizer | None
    settings: dict[str, Any]
    left_out: Counter[str]

    @property
    def work(self) -> Path:
        return self.request.partial / "work"

    @property
    def drops(self) -> bool:
        """Whether exact duplicates are dropped."""
        return self.request.dedup == "exact" or self.plan.drops_duplicates

    @property
    def compares(self) -> bool:
        """Whether documents that are in training and in validation are reported."""
        return bool(self.request.validation) and self.request.dedup == "none"

    def made_of(self) -> str:
        files = [(file.path, file.n_bytes) for file in self.plan.files]
        return digest_of({**self.settings, "files": files})

    def run(self) -> Manifest:
        """Fills the partial folder, starting from what an earlier process left there."""
        request, work, plan = self.request, self.work, self.plan
        tokenizer = tokenizer_in(work, self.given, request.wanted, plan, self.drops, request.tell)
        check_control(tokenizer, request.special_tokens)
        tokenizer.encode("a word")  # compiles kernels here, not in every process
        remember_tokenizer(str(work), tokenizer)
        near = None
        if request.dedup == "near":
            near = find_near(work, len(plan.units), self._run_units)
        keep = which_to_keep(near, drops=self.drops, compares=self.compares)
        assembler = Assembler(request.partial, tokenizer, request.shard_tokens, keep)
        try:
            self._encode(assembler)
            splits, summary = assembler.finish()
        finally:
            assembler.close()
        check_unchanged(plan)
        check_sides(splits, plan, summary)
        summary.counts.left_out += self.left_out
        leaked = tuple(leak_notes(work, plan, splits["val"].n_documents)) if self.compares else ()
        notes = (*leaked, *notes_on(plan, splits, summary, assembler.n_dropped, near))
        manifest = self._manifest(tokenizer, splits, summary, notes)
        atomic.write(request.partial / TOKENIZER_FILE, (work / TOKENIZER_FILE).read_bytes())
        write_manifest(request.partial, manifest)
        return manifest

    def _encode(self, assembler: Assembler) -> None:
        """Encodes the remaining units and adds them to the shards in order."""
        numbers = range(assembler.next_unit, len(self.plan.units))
        finished = {number for number in numbers if is_finished(self.work, number)}
        _take_up(assembler, finished)
        left = [number for number in numbers if number not in finished]
        for number in self._run_units("encoding", encode_unit, left):
            finished.add(number)
            _take_up(assembler, finished)
        assembler.sync()

    def _run_units(self, task: str, do: Work, left: Sequence[int]) -> Iterator[int]:
        """Runs `do` on the units `left`; yields the number of each finished one."""
        request, plan = self.request, self.plan
        job = Job(str(self.work), plan.reading, hashes=self.drops or self.compares)
        units = [(number, plan.units[number]) for number in left]
        done, total = 0, sum(piece.n_bytes for _, unit in units for piece in unit)
        request.tell(task, done, total)
        if request.engine == "ray":
            numbers = run_ray(do, job, units)
        else:
            numbers = run_local(do, job, units, workers=request.workers or n_cores(), n_bytes=total)
        for number in numbers:
            yield number
            done += sum(piece.n_bytes for piece in plan.units[number])
            request.tell(task, done, total)

    def _manifest(
        self,
        tokenizer: Tokenizer,
        splits: dict[str, SplitRecord],
        summary: Summary,
        notes: tuple[str, ...],
    ) -> Manifest:
        plan, request = self.plan, self.request
        by_document = "documents" if plan.reading.by_document else "tails"
        prints = summary.fingerprints
        return Manifest(
            tokenizer=TokenizerRecord.of(tokenizer),
            splits=splits,
            sources=tuple(
                SourceRecord(file.path, file.n_bytes, prints[file.path])
                for file in plan.files
                if prints.get(file.path)
            ),
            settings={
                **self.settings,
                "tokenizer": request.wanted,
                "validation_fraction": plan.reading.fraction,
                "split": "files" if request.validation else by_document,
                "skip_bad": request.skip_bad,
                "made_of": self.made_of(),
            },
            notes=notes,
        )


def _take_up(assembler: Assembler, finished: set[int]) -> None:
    """Adds the next units to the shards, up to the first unfinished one."""
    while assembler.next_unit in finished:
        assembler.add()
