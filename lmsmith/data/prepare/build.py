"""Text of any size -> a folder of token shards: what `lmsmith data prepare` does.

    manifest = build_shards(["web/*.parquet"], Path("web-tokens"), tokenizer="gpt2", workers=16)

    sources -> plan.py -> units -> encode.py, many at a time -> assemble.py, in order -> DIR/train_000000.bin ...

DIR appears when all is done: `manifest.json`, `tokenizer.json`, shards of `shard_tokens` tokens each but for the last
of a split, an end-of-text token before each document. Until then all of it lies in `DIR.partial`, and the same command
goes on from what is there. Equal text and settings give an equal folder, byte for byte, whoever did it, in whatever
order and however often it was killed.

`prepare.py` is the small sister: the text of one run, read at once.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmsmith import __version__, atomic
from lmsmith.data.manifest import (
    SPLITS,
    Manifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
    write_manifest,
)
from lmsmith.data.prepare.assemble import Assembler, Keep, Summary
from lmsmith.data.prepare.dedup import (
    SIGNATURE,
    Seen,
    content_hash,
    near_duplicates,
    require_rensa,
    sign_unit,
)
from lmsmith.data.prepare.encode import encode_unit, is_finished, remember_tokenizer
from lmsmith.data.prepare.engines import Work, run_local, run_ray
from lmsmith.data.prepare.leaks import leak_notes
from lmsmith.data.prepare.plan import Plan, check_unchanged, make_plan
from lmsmith.data.prepare.unfinished import begun, digest_of, finish, unnamed
from lmsmith.data.prepare.units import TRAIN, Job, Reading, Text, read_unit, unit_file, utf8
from lmsmith.data.shards import MAX_TOKENS
from lmsmith.errors import ConfigError, DataError, StorageError
from lmsmith.limits import n_cores
from lmsmith.text import leaks, separators
from lmsmith.text.files import Counts, known_encoding, plural
from lmsmith.text.parts import Cut
from lmsmith.text.skipping import ignore, skipped_note, tolerating
from lmsmith.text.sources import find_files
from lmsmith.tokens.control import SpecialTokens, check_control
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)

Tell = Callable[[str, int, int], None]
"""Called with what is done, how many bytes of the sources, and of how many."""

Dedup = Literal["none", "exact", "near"]
Engine = Literal["local", "ray"]


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

    `tokenizer`: one, or what to take: gpt2, byte, char, word, bpe:SIZE (learnt from the training text), a folder.
    `validation_fraction` 0: chosen, see `plan.py`. `validation`: files whose documents are for validation; all of
    `sources` is then for training. `document_separator`: where plain files are cut, see `text/separators.py`.
    `special_tokens`: what they are where they stand in a text, see `tokens/control.py`. `workers` 0: one a processor;
    with Ray the cluster has its own.

    Raises DataError for text that cannot be read, ConfigError for settings that cannot be or differ from those that
    `out.partial` was begun with, TokenizerError, and StorageError where there is no room. What is done then stays.
    """
    _check(shard_tokens, validation_fraction, dedup)
    if validation and validation_fraction:
        raise ConfigError(
            "--validation names the validation text, and --validation-fraction holds some out: use one."
        )
    _check_free(out)
    partial = out.with_name(out.name + ".partial")
    work = partial / "work"
    reading = Reading(
        text_field,
        known_encoding(encoding),
        errors,
        skip_bad,
        validation_fraction,
        by_document=True,
        separator=separators.resolve(document_separator),
        special_tokens=special_tokens,
    )
    found, left_out = find_files(list(sources))
    held_out, also_left_out = find_files(list(validation)) if validation else ([], Counter[str]())
    leaks.refuse_shared_files((file.path for file in found), (file.path for file in held_out))
    wanted = tokenizer if isinstance(tokenizer, str) else tokenizer.kind
    given = _given(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if given is not None and given.end_of_text is None:
        raise ConfigError(
            f"the tokenizer {wanted} has no end-of-text token, which has to stand before each document. Learn one that "
            "has: `lmsmith tokenizer train`, or --tokenizer bpe:SIZE."
        )
    if given is not None:
        check_control(given, special_tokens)
    # In a control token a text may not be cut, and the place to cut does not know of them.
    cut = _cut_for(wanted, given) if special_tokens == "text" else None
    plan = make_plan(found, reading, cut=cut, drop_duplicates=dedup != "none", validation=held_out)
    _check_large(plan)
    settings: dict[str, Any] = {
        "tokenizer": wanted if given is None else given.fingerprint,
        "shard_tokens": shard_tokens,
        "dedup": dedup,
        "validation_fraction": validation_fraction,
        "text_field": text_field,
        "encoding": encoding,
        "errors": errors,
        "lmsmith": __version__,
    }
    if document_separator != "auto":  # what is not said here is as it always was
        settings["document_separator"] = document_separator
    if special_tokens != "text":
        settings["special_tokens"] = special_tokens
    if validation:
        settings["validation"] = list(validation)
    drops = dedup == "exact" or plan.drops_duplicates
    compares = bool(validation) and dedup == "none"
    job = Job(str(work), plan.reading, hashes=drops or compares)

    def run(task: str, do: Work, left: Sequence[int]) -> Iterator[int]:
        units = [(number, plan.units[number]) for number in left]
        done, total = 0, sum(piece.n_bytes for _, unit in units for piece in unit)
        tell(task, done, total)
        if engine == "ray":
            numbers = run_ray(do, job, units)
        else:
            numbers = run_local(do, job, units, workers=workers or n_cores(), n_bytes=total)
        for number in numbers:
            yield number
            done += sum(piece.n_bytes for piece in plan.units[number])
            tell(task, done, total)

    made_of = digest_of({**settings, "files": [(file.path, file.n_bytes) for file in plan.files]})
    if unnamed(partial):
        manifest = read_manifest(partial)
        if manifest.settings.get("made_of") != made_of:
            raise ConfigError(
                f"{partial} was finished but for its name, with other settings or sources. Give the same ones, "
                "or remove it to begin anew."
            )
        finish(partial, out)
        return manifest
    _check_free(out)  # another process may have been at it, and have finished since
    with begun(partial, {**settings, "plan": plan.digest()}):
        used = _tokenizer(work, given, wanted, plan, drops, tell)
        check_control(used, special_tokens)
        used.encode("a word")  # what has to be compiled is compiled here, and not in every process
        remember_tokenizer(str(work), used)
        near = _near_duplicates(work, plan, run) if dedup == "near" else None
        assembler = Assembler(
            partial, used, shard_tokens, _keep(near, drops=drops, compares=compares)
        )
        try:
            numbers = range(assembler.next_unit, len(plan.units))
            finished = {number for number in numbers if is_finished(work, number)}
            _take_up(assembler, finished)
            for number in run(
                "encoding", encode_unit, [number for number in numbers if number not in finished]
            ):
                finished.add(number)
                _take_up(assembler, finished)
            assembler.sync()
            splits, summary = assembler.finish()
        finally:
            assembler.close()
        check_unchanged(plan)
        _check_sides(splits, plan, summary)
        summary.counts.left_out += left_out + also_left_out
        leaked = tuple(leak_notes(work, plan, splits["val"].n_documents)) if compares else ()
        sources_read = [
            (file.path, file.n_bytes, summary.fingerprints.get(file.path, ""))
            for file in plan.files
        ]
        manifest = Manifest(
            tokenizer=TokenizerRecord.of(used),
            splits=splits,
            sources=tuple(SourceRecord(*source) for source in sources_read if source[2]),
            settings={
                **settings,
                "tokenizer": wanted,
                "validation_fraction": plan.reading.fraction,
                "split": "files"
                if validation
                else "documents"
                if plan.reading.by_document
                else "tails",
                "skip_bad": skip_bad,
                "made_of": made_of,
            },
            notes=(*leaked, *_notes(plan, splits, summary, assembler.n_dropped, near)),
        )
        atomic.write(partial / TOKENIZER_FILE, (work / TOKENIZER_FILE).read_bytes())
        write_manifest(partial, manifest)
    finish(partial, out)
    return manifest


def _check(shard_tokens: int, fraction: float, dedup: str) -> None:
    if not 1 <= shard_tokens <= MAX_TOKENS:
        raise ConfigError(
            f"shard_tokens = {shard_tokens:,}: wanted 1 to {MAX_TOKENS:,}, what the format counts to."
        )
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation_fraction = {fraction}: wanted 0 (chosen) to below 1.")
    if dedup == "near":
        require_rensa()


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise StorageError(
            f"{out} is there already and is not overwritten: remove it or choose another place."
        )


def _take_up(assembler: Assembler, finished: set[int]) -> None:
    while assembler.next_unit in finished:
        assembler.add()


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def _given(wanted: str) -> Tokenizer | None:
    """The tokenizer that is asked for; None if it has to be learnt."""
    if wanted == "byte":
        return ByteTokenizer(end_of_text=True)
    kind, _, size = wanted.partition(":")
    if wanted in ("char", "word") or (kind == "bpe" and size.isdecimal()):
        return None
    if kind == "bpe" or (wanted != "gpt2" and not Path(wanted).exists()):
        raise ConfigError(
            f"tokenizer = {wanted!r}: there is no such kind, and no such folder. Kinds are byte, char, word, bpe:SIZE "
            "(as in bpe:16384) and gpt2."
        )
    return load_tokenizer(wanted)


def _cut_for(wanted: str, given: Tokenizer | None) -> Cut | None:
    """Where a text may be cut so that its parts have the ids of the whole; None if that is not known."""
    kind = given.kind if given else wanted.partition(":")[0]
    if kind == "bpe" and given is not None:
        from lmsmith.tokens.bpe import BpeTokenizer
        from lmsmith.tokens.split import REGEX

        assert isinstance(given, BpeTokenizer)
        if given.pattern.family == REGEX or given.matched_first.names:
            return None
    elif kind not in ("byte", "char", "bpe"):
        return None
    from lmsmith.tokens.split import place_to_cut  # brings in the compiler

    return place_to_cut


def _tokenizer(
    work: Path, given: Tokenizer | None, wanted: str, plan: Plan, hashes: bool, tell: Tell
) -> Tokenizer:
    """The tokenizer, in `work` for all who encode; learnt if it has to be, once."""
    if (work / TOKENIZER_FILE).exists():
        return load_tokenizer(work)
    if given is None:
        texts = _training_texts(plan, hashes, tell)
        if wanted == "char":
            given = CharTokenizer.learn(
                (part.decode() for text in texts for part in text), end_of_text=True
            )
        elif wanted == "word":
            given = WordTokenizer.learn(
                (b"".join(text).decode() for text in texts), end_of_text=True
            )
        else:
            from lmsmith.tokens.bpe_train import learn_bpe

            given = learn_bpe(texts, int(wanted.partition(":")[2]), special_tokens=[END_OF_TEXT])
    save_tokenizer(given, work)
    return given


def _training_texts(plan: Plan, hashes: bool, tell: Tell) -> Iterator[Iterator[bytes]]:
    """`hashes`: exact duplicates are left out."""
    skip = ignore if plan.reading.skip_bad else None

    def as_bytes(text: Text) -> Iterator[bytes]:
        with tolerating(skip):  # what is bad in a stream shows when that is read
            yield from utf8(text)

    seen: set[bytes] = set()
    done = 0
    for unit in plan.units:
        tell("reading to learn the tokenizer", done, plan.n_bytes)
        for document in read_unit(unit, plan.reading, Counts(), skip):
            if hashes and document.whole is not None:
                content = content_hash(utf8(document.whole))
                if content in seen:
                    continue
                seen.add(content)
            yield from (as_bytes(text) for split, text in document.spans if split == TRAIN)
        done += sum(piece.n_bytes for piece in unit)


# ---- duplicates ------------------------------------------------------------------------------------------------------

Near = tuple[npt.NDArray[np.bool_], int]
"""Which documents are near duplicates of others; how many of them are dropped from training for one in validation."""


def _near_duplicates(
    work: Path, plan: Plan, run: Callable[[str, Work, Sequence[int]], Iterator[int]]
) -> Near:
    path = work / "near.npz"
    if not path.exists():
        numbers = range(len(plan.units))
        left = [number for number in numbers if not unit_file(work, number, ".signatures").exists()]
        for _ in run("comparing", sign_unit, left):
            pass
        together = work / "signatures.bin"
        with together.open("wb") as file:
            for number in numbers:
                with unit_file(work, number, ".signatures").open("rb") as part:
                    shutil.copyfileobj(part, file)
        found = (
            np.memmap(together, SIGNATURE, "r")
            if together.stat().st_size
            else np.empty(0, SIGNATURE)
        )
        dropped, n_for_validation = near_duplicates(found)
        del found
        with atomic.file(path) as file:
            np.savez(file, dropped=dropped, n_for_validation=n_for_validation)
        for number in numbers:
            unit_file(work, number, ".signatures").unlink()
        together.unlink()
    with np.load(path) as found:
        return found["dropped"], int(found["n_for_validation"])


def _keep(near: Near | None, *, drops: bool, compares: bool) -> Keep | None:
    """`compares`: all documents stay, and their hashes are wanted afterwards."""
    if near is not None:
        dropped = near[0]
        return lambda found, first: ~dropped[first : first + len(found)]
    if compares:
        return lambda found, first: np.ones(len(found), dtype=np.bool_)
    if not drops:
        return None
    seen = Seen()
    return lambda found, first: (
        seen.are_new(found) | ~found.any(axis=1)
    )  # zeros: not to be compared


# ---- what there is to say --------------------------------------------------------------------------------------------


def _check_large(plan: Plan) -> None:
    """Of large files it is known before any is encoded which side they are on; of others only then."""
    sides = {piece.split for unit in plan.units for piece in unit}
    for side, name in enumerate(SPLITS):
        if sides == {side}:
            raise _one_sided(
                plural(len(plan.files), "file"), "train" if name == "val" else "val", plan
            )


def _check_sides(splits: dict[str, SplitRecord], plan: Plan, summary: Summary) -> None:
    n_documents = splits["train"].n_documents + splits["val"].n_documents
    if not n_documents:
        said = [
            f"there is no text in the {plural(len(plan.files), 'file')}.",
            *summary.counts.notes(),
            *_skipped(summary),
        ]
        raise DataError(" ".join([*said, "Name files that hold some."]))
    for name in SPLITS:
        if not splits[name].n_tokens:
            raise _one_sided(
                plural(n_documents, "document"), name, plan, "remove what has been begun, and "
            )


def _one_sided(text: str, empty: str, plan: Plan, first: str = "") -> DataError:
    kind, change = ("training", "smaller") if empty == "train" else ("validation", "larger")
    if plan.n_validation_units:
        files = "SOURCE" if empty == "train" else "--validation"
        return DataError(
            f"of {text} none is for {kind}: {first}name files behind {files} that hold text."
        )
    return DataError(
        f"of {text} none is for {kind} at --validation-fraction {plan.reading.fraction:g}: {first}choose a {change} "
        "one, or add text."
    )


def _notes(
    plan: Plan, splits: dict[str, SplitRecord], summary: Summary, n_dropped: int, near: Near | None
) -> Iterator[str]:
    """Plain sentences on what a user might not expect."""
    fraction, n_held_out = plan.reading.fraction, splits["val"].n_documents
    if plan.n_validation_units:
        yield (
            f"the {plural(n_held_out, 'document')} of --validation are for validation, the "
            f"{plural(splits['train'].n_documents, 'document')} of SOURCE for training."
        )
    elif plan.reading.by_document:
        yield (
            f"{n_held_out:,} of {n_held_out + splits['train'].n_documents:,} documents are for validation, chosen by a "
            f"hash of their content below {fraction:g}. The same --validation-fraction keeps each on its side when "
            "files are added."
        )
    else:
        whose = "the text" if n_held_out == 1 else f"each of {n_held_out} documents"
        yield (
            f"the last {100 * fraction:.4g}% of {whose} is for validation. It follows on the training text without a "
            "gap, so it is easier to predict than a text of its own."
        )
    if near is not None:
        yield (
            f"{plural(n_dropped, 'near duplicate')} dropped, {near[1]:,} of them from training because of one in "
            "validation."
        )
    elif n_dropped:
        yield f"{plural(n_dropped, 'exact duplicate')} dropped."
    yield from plan.notes
    if plan.reading.separator not in ("", separators.END_OF_TEXT) and not summary.counts.separators:
        yield f"no plain text file has the separator {plan.reading.separator!r}; each is one document."
    yield from summary.counts.notes()
    n_unknown = {name: split.n_unknown for name, split in splits.items()}
    if any(n_unknown.values()):
        yield (
            f"{sum(n_unknown.values()):,} characters or words are not in the vocabulary: {n_unknown['train']:,} of the "
            f"training text, {n_unknown['val']:,} of the validation text."
        )
    yield from _skipped(summary)


def _skipped(summary: Summary) -> Iterator[str]:
    if summary.n_skipped:
        yield skipped_note(summary.n_skipped, summary.skipped)
