"""Verbs of data: data list, download."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from rich.console import Console

from lmsmith.cli.console import Progress
from lmsmith.cli.grammar import Verbs, at_least_one

KINDS = {"text": "text to learn from", "shards": "token shards", "tasks": "tasks to evaluate on"}


def add(verbs: Verbs) -> None:
    verbs.group("data", "corpora by name: see which there are, fetch them")

    listing = verbs.verb("data list", _list, "the corpora that have names", "lmsmith data list")
    listing.add_argument("--json", action="store_true", help="print one JSON array")

    download = verbs.verb(
        "data download", _download, "fetch a corpus by its name", "lmsmith data download tinyshakespeare"
    )
    download.add_argument("name", metavar="NAME", help="as `lmsmith data list` shows it")
    download.add_argument("--out", type=Path, metavar="DIR", help="(NAME in $LMSMITH_DATA or ~/.cache/lmsmith/corpora)")
    download.add_argument("--files", type=at_least_one, default=0, metavar="N", help="only the first N files (all)")


def _list(options: argparse.Namespace, console: Console, started: float) -> int:
    from rich.table import Table

    from lmsmith.text import store
    from lmsmith.text.corpora import CORPORA

    there = {corpus.name: store.here(corpus) for corpus in CORPORA.values()}
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
        print(json.dumps(content, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "size", "here", "licence", "what"):
        table.add_column(head, justify="right" if head == "size" else "left", no_wrap=head in ("name", "size", "here"))
    for kind, heading in KINDS.items():
        table.add_row(f"\n{heading}", style="italic")
        for corpus in (corpus for corpus in CORPORA.values() if corpus.kind == kind):
            found, n_there = there[corpus.name]
            state = "no" if not found else "yes" if len(found) == n_there else f"{len(found)} of {n_there}"
            table.add_row(corpus.name, corpus.size.replace("about ", "~"), state, corpus.licence, corpus.what)
    console.print(table, soft_wrap=False)
    console.print(f"\n`lmsmith data download NAME` fetches one to {store.data_folder()}; ~ is about.")
    return 0


def _download(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.text import corpora, store
    from lmsmith.text.files import plural

    corpus = corpora.get(options.name)
    plan = store.make_plan(corpus, options.out, options.files)
    if plan.missing:
        size = ("" if all(plan.entries[name].exact for name in plan.missing) else "about ") + corpora.size_in_words(
            plan.n_bytes
        )
        console.print(f"{corpus.name}: {plural(len(plan.missing), 'file')}, {size}, from {corpus.where}")
        with Progress(console) as tell:
            store.fetch(plan, lambda done, total: tell(corpus.name, done, total))
    here = "all" if len(plan.wanted) == len(plan.entries) else f"{len(plan.wanted)} of"
    console.print(f"{plan.folder} has {here} {plural(len(plan.entries), 'file')} of {corpus.name}, whole and checked")
    console.print(f"licence  {corpus.licence}; {corpus.homepage}")
    if corpus.note:
        console.print(f"note     {corpus.note}")
    if corpus.kind == "text":
        source = corpus.name if options.out is None else str(options.out)
        console.print(f"try      lmsmith train {shlex.quote(source)} --minutes 10")
    return 0
