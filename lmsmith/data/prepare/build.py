"""Text of any size -> a folder of token shards: what `lmsmith data prepare` does.

    manifest = build_shards(["web/*.parquet"], Path("web-tokens"), tokenizer="gpt2", workers=16)

    sources -> plan.py -> units -> encode.py, many at a time -> assemble.py, in order ->
    DIR/train_000000.bin ...

DIR appears when all is done: `manifest.json`, `tokenizer.json`, shards of `shard_tokens` tokens
each but for the last of a split, an end-of-text token before each document. Until then all of it
lies in `DIR.partial`, and the same command goes on from what is there. Equal text and settings give
an equal folder, byte for byte, whoever did it, in whatever order and however often it was killed.

`run_text.py` does the same for the text of one run, which is read at once.
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
    """Writes the folder `out`, which must not be there, and gives what it holds.

    `tokenizer`: one, or what to take: gpt2, byte, char, word, bpe:SIZE (learnt from the training
    text), a folder. `validation_fraction` 0: chosen, see `text/held_out.py`. `validation`: files
    whose documents are for validation; all of `sources` is then for training. `document_separator`:
    where plain files are cut, see `text/separators.py`. `special_tokens`: what they are where they
    stand in a text, see `tokens/control.py`. `workers` 0: one a processor; with Ray the cluster has
    its own.

    Raises DataError for text that cannot be read, ConfigError for settings that cannot be or differ
    from those that `out.partial` was begun with, TokenizerError, and StorageError where there is no
    room. What is done then stays.
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
        _check_free(request.out)  # another process may have been at it, and have finished since
        with begun(request.partial, {**build.settings, "plan": build.plan.digest()}):
            manifest = build.run()
    finish(request.partial, request.out)
    return manifest


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise StorageError(
            f"{out} is there already and is not overwritten: remove it or choose another place."
        )


def _plan(request: Request) -> "_Build":
    """Finds the files and plans the work."""
    reading = request.reading()
    found, left_out = find_files(list(request.sources))
    held_out, also_left_out = (
        find_files(list(request.validation)) if request.validation else ([], Counter[str]())
    )
    leaks.refuse_shared_files((file.path for file in found), (file.path for file in held_out))
    given = request.given()
    # In a control token a text may not be cut, and the place to cut does not know of them.
    cut = cut_for(request.wanted, given) if request.special_tokens == "text" else None
    plan = make_plan(
        found,
        reading,
        cut=cut,
        drop_duplicates=request.dedup != "none",
        validation=held_out,
    )
    check_large(plan)
    settings = request.settings(given)
    return _Build(request, plan, given, settings, left_out + also_left_out)


def _read_unnamed(build: "_Build") -> Manifest:
    """Of a folder that was finished but for its name. Raises ConfigError where it was made of
    something else.
    """
    manifest = read_manifest(build.request.partial)
    if manifest.settings.get("made_of") != build.made_of():
        raise ConfigError(
            f"{build.request.partial} was finished but for its name, with other settings or "
            f"sources. Give the same "
            "ones, or remove it to begin anew."
        )
    return manifest


@dataclass(frozen=True)
class _Build:
    """The work on a folder, planned."""

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
        """Whether exact duplicates go."""
        return self.request.dedup == "exact" or self.plan.drops_duplicates

    @property
    def compares(self) -> bool:
        """Whether documents on both sides are told."""
        return bool(self.request.validation) and self.request.dedup == "none"

    def made_of(self) -> str:
        files = [(file.path, file.n_bytes) for file in self.plan.files]
        return digest_of({**self.settings, "files": files})

    def run(self) -> Manifest:
        """Fills the partial folder, from what an earlier process left there."""
        request, work, plan = self.request, self.work, self.plan
        tokenizer = tokenizer_in(work, self.given, request.wanted, plan, self.drops, request.tell)
        check_control(tokenizer, request.special_tokens)
        tokenizer.encode("a word")  # what has to be compiled is compiled here, not in every process
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
        """Encodes the units that are left, and makes shards of them in order."""
        numbers = range(assembler.next_unit, len(self.plan.units))
        finished = {number for number in numbers if is_finished(self.work, number)}
        _take_up(assembler, finished)
        left = [number for number in numbers if number not in finished]
        for number in self._run_units("encoding", encode_unit, left):
            finished.add(number)
            _take_up(assembler, finished)
        assembler.sync()

    def _run_units(self, task: str, do: Work, left: Sequence[int]) -> Iterator[int]:
        """Does the units `left`, and yields the number of each that is done."""
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
    """Makes shards of the units that are next in order, as far as they are finished."""
    while assembler.next_unit in finished:
        assembler.add()
