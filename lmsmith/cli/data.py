"""Commands about data: data list, download, prepare, inspect."""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lmsmith import api
from lmsmith.cli.console import Progress, table
from lmsmith.cli.grammar import Verbs, add_files, add_setting, at_least_one, settings_given
from lmsmith.config import RunConfig, settings
from lmsmith.errors import DataError, UsageError
from lmsmith.strict_json import to_json

READING = ("data.text_field", "data.encoding", "data.errors", "data.document_separator")
KINDS = {"text": "training text", "shards": "token shards", "tasks": "evaluation tasks"}


def add(verbs: Verbs) -> None:
    verbs.group("data", "download corpora by name; tokenize text into shards; inspect shards")
    _add_list(verbs)
    _add_download(verbs)
    _add_prepare(verbs)
    _add_inspect(verbs)


def _add_list(verbs: Verbs) -> None:
    listing = verbs.verb("data list", _list, "list the corpora known by name", "lmsmith data list")
    listing.add_argument("--json", action="store_true", help="print one JSON array")


def _add_download(verbs: Verbs) -> None:
    download = verbs.verb(
        "data download",
        _download,
        "download a corpus by its name",
        "lmsmith data download tinyshakespeare",
    )
    download.add_argument("name", metavar="NAME", help="a name that `lmsmith data list` shows")
    download.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the files (NAME in $LMSMITH_DATA or ~/.cache/lmsmith/corpora)",
    )
    download.add_argument(
        "--files",
        type=at_least_one,
        default=0,
        metavar="N",
        help="download only the first N files (all)",
    )


def _add_prepare(verbs: Verbs) -> None:
    prepare = verbs.verb(
        "data prepare",
        _prepare,
        "tokenize text of any size into a folder of token shards",
        "lmsmith data prepare demo/stories.jsonl --tokenizer bpe:2000 --out demo/shards",
    )
    prepare.add_argument(
        "source", nargs="+", metavar="SOURCE", help="text files, folders, globs, names of corpora"
    )
    prepare.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the new folder; called DIR.partial until complete. After an interruption, run the "
        "same command again to continue there",
    )
    prepare.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="WHICH",
        help="gpt2, bpe:SIZE (learned from the text), byte, char, word, or a tokenizer's folder "
        "(gpt2)",
    )
    prepare.add_argument(
        "--shard-tokens",
        type=at_least_one,
        default=100_000_000,
        metavar="N",
        help="tokens per shard (100,000,000)",
    )
    _add_validation(prepare)
    prepare.add_argument(
        "--dedup",
        choices=["none", "exact", "near"],
        default="none",
        help="deduplication: drop documents that repeat an earlier one exactly, or nearly "
        "(MinHash) (none)",
    )
    prepare.add_argument(
        "--skip-bad",
        action="store_true",
        help="skip lines, rows and files that cannot be read; name and count them",
    )
    _add_workers(prepare)
    known = dict(settings())
    for name in (*READING, "data.special_tokens"):
        add_setting(prepare, known[name])
    prepare.add_argument("--json", action="store_true", help="print the manifest as a JSON object")


def _add_workers(prepare: argparse.ArgumentParser) -> None:
    """Adds the options that say what prepares the shards."""
    prepare.add_argument(
        "--workers",
        type=at_least_one,
        default=0,
        metavar="N",
        help="number of worker processes (one per core)",
    )
    prepare.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="where the workers run: on this machine, or on a Ray cluster (local)",
    )


def _add_validation(prepare: argparse.ArgumentParser) -> None:
    """Adds the options that choose the validation text."""
    prepare.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the text held out for validation; 0: one document in twenty or, below 50 "
        "documents, the end of each (at most a tenth) (0)",
    )
    add_files(prepare, dict(settings())["data.validation"], "--validation")


def _add_inspect(verbs: Verbs) -> None:
    inspect = verbs.verb(
        "data inspect",
        _inspect,
        "show what token shards contain, or how often a run has seen its training tokens",
        "lmsmith data inspect demo/run-1/tokens",
        usage="lmsmith data inspect DIR|SHARD [--verify]\n       lmsmith data inspect --exposure "
        "RUN",
    )
    inspect.add_argument(
        "place",
        nargs="?",
        type=Path,
        metavar="DIR|SHARD",
        help="a folder of shards, or one of them",
    )
    inspect.add_argument(
        "--verify",
        action="store_true",
        help="also read all shards and check their hashes, ids and document counts",
    )
    inspect.add_argument(
        "--tokenizer",
        metavar="WHICH",
        help="the tokenizer of shards that do not name it: gpt2, a folder or a file",
    )
    inspect.add_argument(
        "--exposure",
        type=Path,
        metavar="RUN",
        help="show how often this run has seen each share of its training tokens",
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object")


def _list(options: argparse.Namespace, console: Console, started: float) -> int:
    from rich.table import Table

    from lmsmith.text import store
    from lmsmith.text.corpora import CORPORA

    there = {corpus.name: store.here(corpus) for corpus in CORPORA.values()}  # (files, n_files)
    if options.json:
        content = [
            {
                "name": corpus.name,
                "kind": corpus.kind,
                "what": corpus.what,
                "n_bytes": corpus.n_bytes,
                "n_bytes_exact": corpus.exact,
                "licence": corpus.licence,
                "homepage": corpus.homepage,
                "from": corpus.where,
                "note": corpus.note,
                "folder": str(store.folder_of(corpus)),
                "files_here": [str(path) for path in there[corpus.name][0]],
                "n_files": there[corpus.name][1] or None,
            }
            for corpus in CORPORA.values()
        ]
        print(to_json(content))
        return 0
    listing = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "size", "here", "licence", "what"):
        listing.add_column(
            head,
            justify="right" if head == "size" else "left",
            no_wrap=head in ("name", "size", "here"),
        )
    for kind, heading in KINDS.items():
        listing.add_row(f"\n{heading}", style="italic")
        for corpus in (corpus for corpus in CORPORA.values() if corpus.kind == kind):
            found, n_there = there[corpus.name]
            state = (
                "no"
                if not found
                else "yes"
                if len(found) == n_there
                else f"{len(found)} of {n_there}"
            )
            listing.add_row(
                corpus.name, corpus.size.replace("about ", "~"), state, corpus.licence, corpus.what
            )
    console.print(listing, soft_wrap=False)
    console.print(
        f"\n`lmsmith data download NAME` downloads one to {store.data_folder()}. Sizes with ~ are "
        f"estimates."
    )
    return 0


def _download(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.text import corpora, store
    from lmsmith.text.files import plural

    corpus = corpora.get(options.name)
    plan = store.make_plan(corpus, options.out, options.files)
    if plan.missing:
        size = (
            "" if all(plan.entries[name].exact for name in plan.missing) else "about "
        ) + corpora.format_size(plan.n_bytes)
        console.print(
            f"{corpus.name}: {plural(len(plan.missing), 'file')}, {size}, from {corpus.where}"
        )
        with Progress(console) as tell:
            store.fetch(plan, lambda done, total: tell(corpus.name, done, total))
    here = "all" if len(plan.wanted) == len(plan.entries) else f"{len(plan.wanted)} of"
    console.print(
        f"{plan.folder} has {here} {plural(len(plan.entries), 'file')} of {corpus.name}, complete, "
        f"checksums verified"
    )
    console.print(f"licence  {corpus.licence}; {corpus.homepage}")
    if corpus.note:
        console.print(f"note     {corpus.note}")
    if corpus.kind != "tasks":
        source = shlex.quote(corpus.name if options.out is None else str(options.out))
        tokenizer = " --tokenizer gpt2" if corpus.kind == "shards" else ""
        console.print(f"try      lmsmith train {source}{tokenizer} --minutes 10")
    return 0


def _prepare(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.text.files import plural

    data = RunConfig().changed(settings_given(options), where="the command line").data
    manifest = api.prepare(
        options.source,
        options.out,
        tokenizer=options.tokenizer,
        shard_tokens=options.shard_tokens,
        validation_fraction=options.validation_fraction,
        validation=data.validation,
        dedup=options.dedup,
        skip_bad=options.skip_bad,
        workers=options.workers,
        engine=options.engine,
        text_field=data.text_field,
        encoding=data.encoding,
        errors=data.errors,
        document_separator=data.document_separator,
        special_tokens=data.special_tokens,
        progress=console,
    )
    if options.json:
        print(to_json(asdict(manifest)))
        return 0
    for name, split in manifest.splits.items():
        console.print(
            f"{name:5}  {plural(split.n_tokens, 'token')} of "
            f"{plural(split.n_documents, 'document')} "
            f"({split.n_bytes / 1e6:,.1f} MB of text) in {plural(len(split.shards), 'shard')}"
        )
    for note in manifest.notes:
        console.print(f"note   {note}")
    n_bytes, seconds = (
        sum(split.n_bytes for split in manifest.splits.values()),
        time.monotonic() - started,
    )
    console.print(
        f"wrote {options.out} in {seconds:.1f} s, {n_bytes / 1e6 / seconds:,.1f} MB of text per "
        f"second"
    )
    console.print(f"try    lmsmith train {shlex.quote(str(options.out))} --minutes 10")
    return 0


def _inspect(options: argparse.Namespace, console: Console, started: float) -> int:
    if (options.place is None) == (options.exposure is None):
        raise UsageError("name either a folder of shards, or a run after --exposure.")
    if options.exposure is not None:
        return _exposure(options, console)
    from lmsmith.data.audit import inspect
    from lmsmith.text.files import plural
    from lmsmith.tokens.files import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    with Progress(console) as tell:
        found = inspect(options.place, tokenizer, verify=options.verify, tell=tell)
    if options.json:
        print(to_json(asdict(found), default=str))
        return 1 if found.problems else 0
    console.print(f"{found.place}: {found.source}\ntokenizer  {found.tokenizer}")
    rows = []
    for split in found.splits:
        counts = (
            "?" if count is None else f"{count:,}" for count in (split.n_documents, split.n_bytes)
        )
        each = (
            f"{split.n_bytes / split.n_tokens:.2f} bytes"
            if split.n_bytes and split.n_tokens
            else "?"
        )
        sizes = (f"{len(split.shards):,}", f"{split.n_tokens:,}", f"{split.bits}")
        rows.append((split.name, *sizes, *counts, each))
    head = ("split", "shards", "tokens", "bits", "documents", "bytes of text", "per token")
    table(console, head, rows)
    for split in found.splits:
        console.print(f"{split.name} starts with  {split.begins!r}")
    for note in found.notes:
        console.print(f"note  {note}")
    for problem in found.problems:
        console.print(f"wrong  {problem}", style="red")
    if found.problems:
        raise DataError(
            f"{found.place} is damaged ({plural(len(found.problems), 'problem')}, listed above): "
            f"copy or prepare it again."
        )
    if options.verify and found.prepared:
        console.print("verified: every byte matches the manifest")
    elif options.verify:
        console.print(
            "verified: ids and lengths"
            if found.ids_known
            else "verified: lengths; add --tokenizer WHICH to check that the ids are in the "
            "vocabulary"
        )
    return 0


def _exposure(options: argparse.Namespace, console: Console) -> int:
    from lmsmith.run_folder import run_exposure

    steps, sources = run_exposure(options.exposure)
    if options.json:
        print(to_json({"steps": steps, "sources": {name: asdict(seen) for name, seen in sources}}))
        return 0
    console.print(f"{options.exposure}: after {steps:,} steps")
    for name, exposure in sources:
        console.print(f"{name}: {exposure.n_tokens:,} tokens, {exposure.n_epochs:.3g} epochs")
        for times, n_tokens in enumerate(exposure.times):
            if n_tokens:
                label = (
                    "never seen"
                    if not times
                    else "seen once"
                    if times == 1
                    else f"seen {times:,} times"
                )
                console.print(f"  {n_tokens / exposure.n_tokens:9.4%}  {label}")
    return 0
