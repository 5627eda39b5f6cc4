"""What the user named -> the files to read: files, folders, glob patterns, named corpora, files on
the Hub.

A file that is named is read whatever its suffix, and so is one that a pattern matches. In a folder
only what looks like text by its suffix is taken, at any depth; hidden files and folders are not
seen, all else is counted as left out. Patterns are expanded here, `**` too, so that they mean the
same in recipes, in quotes and in every shell.

Runs and prepared folders that lie among the text are not seen either: a run keeps the validation
text that it held out, which the next one would train on.

A name that no file has may be a corpus's (`corpora.py`); hf://datasets/... names files to be read
from afar (`hub.py`).
"""

import difflib
import functools
import glob
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lmsmith.errors import DataError
from lmsmith.text import corpora, hub, patterns, store
from lmsmith.text.files import (
    TOKEN_FILES,
    TOKENS_OF_OTHERS,
    dangling,
    inner_suffix,
    listed,
    read_errors,
)

# Not .json: in a folder that is most often somebody's settings, not lines of text.
IN_FOLDERS = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".jsonl", ".ndjson", ".parquet")


class Found(NamedTuple):
    path: Path
    named: bool  # by itself, so that leaving it out is no answer


def find_files(sources: list[str]) -> tuple[list[Found], Counter[str]]:
    """The files that the sources mean, each once, and by suffix how many others lie in their
    folders.

    Raises DataError for a source that is not there, or that holds or matches no text.
    """
    if not all(sources) or not sources:  # "" would be the current folder
        raise DataError(
            "no text was named. Name files, folders or patterns, as in `lmsmith train book.txt`."
        )
    found: dict[str, Found] = {}  # by real path: two names of one file are one
    passed_by: dict[str, Path] = {}
    for source in sources:
        path = Path(os.path.expanduser(source))
        taken: list[Path] = []
        others: list[Path] = []
        if os.path.isdir(path):
            _refuse_model(path)
            taken, others = _in_folder(path)
            if not taken:
                there = (
                    f"it holds {listed(_suffixes(others))}"
                    if others
                    else "it is empty, but for hidden files and runs"
                )
                tokens = any(other.suffix.lower() in TOKEN_FILES for other in others)
                raise DataError(
                    f"the folder {path} holds no text: {there}; wanted {' '.join(IN_FOLDERS)} (or "
                    f"these with .gz or "
                    f".zst). Other files are read when named, or by a pattern such as "
                    f"'{path / '**' / '*.html'}'."
                    + (
                        f" {TOKENS_OF_OTHERS.replace('If it holds', 'Where a file holds')}"
                        if tokens
                        else ""
                    )
                )
        elif os.path.exists(path):
            found[os.path.realpath(path)] = Found(path, named=True)
        elif hub.is_remote(source):
            found.update(
                (str(remote), Found(remote, named=True)) for remote in hub.find_remote(source)
            )
        elif glob.has_magic(source):
            taken, others = _matching(path)
        elif corpora.find(source):
            found.update(
                (os.path.realpath(file), Found(file, named=True))
                for file in _of_corpus(corpora.get(source))
            )
        else:
            raise _missing(path)
        for file in taken:
            found.setdefault(os.path.realpath(file), Found(file, named=False))
        passed_by.update((os.path.realpath(file), file) for file in others)
    left_out = _suffixes([file for real, file in passed_by.items() if real not in found])
    return list(found.values()), left_out


def _in_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files under the folder that look like text by their suffix, and the others; both sorted."""
    taken: list[Path] = []
    others: list[Path] = []
    visited = {os.path.realpath(folder)}  # links to folders are followed, but not in circles
    with read_errors(folder):
        for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            kept = []
            for name in sorted(folders):
                real = os.path.realpath(os.path.join(place, name))
                if not name.startswith(".") and real not in visited and not _is_ours(Path(real)):
                    visited.add(real)
                    kept.append(name)
            folders[:] = kept
            for name in names:
                if not name.startswith("."):
                    path = Path(place, name)
                    (
                        taken
                        if inner_suffix(path) in IN_FOLDERS and not _is_special(path)
                        else others
                    ).append(path)
    return sorted(taken, key=Path.as_posix), sorted(others, key=Path.as_posix)


def _matching(pattern: Path) -> tuple[list[Path], list[Path]]:
    """Files that the pattern matches, and what `_in_folder` says of the folders that it matches."""
    matches = sorted(patterns.matches(pattern), key=Path.as_posix)
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    if "**" in pattern.parts:  # it goes where a folder's name would, and no further
        ours = functools.cache(_is_ours)
        matches = [path for path in matches if not any(map(ours, _below(base, path)))]
    taken = [path for path in matches if not path.is_dir() and not _is_special(path)]
    others = [path for path in matches if _is_special(path)]
    for folder in (path for path in matches if path.is_dir() and not _is_ours(path)):
        text, not_text = _in_folder(folder)
        taken += text
        others += not_text
    if not taken:
        if not base.is_dir():
            raise _missing(pattern)
        with read_errors(base):
            names = sorted(name for name in os.listdir(base) if not name.startswith("."))
        there = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise DataError(
            f"the pattern {pattern} matches no text file; the folder {base.absolute()} holds "
            f"{there}. "
            "(* stands for part of a name, ** for any depth of folders.)"
        )
    return taken, others


def _below(base: Path, path: Path) -> Iterator[Path]:
    """The path and the folders it lies in, up to `base` and without it."""
    return itertools.takewhile(base.__ne__, [path, *path.parents])


def _is_ours(folder: Path) -> bool:
    """Whether lmsmith wrote this folder: a run, a prepared folder, or one that is being
    prepared.
    """

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    return (
        _is_run(folder)
        or has("manifest.json", "tokenizer.json")
        or (folder.name.endswith(".partial") and has("work/settings.json"))
    )


def _is_run(folder: Path) -> bool:
    there = [
        (folder / name).is_file()
        for name in ("metrics.jsonl", "tokens/corpus.json", "model/model.safetensors")
    ]
    return (folder / "config.toml").is_file() and any(there)


def _refuse_model(folder: Path) -> None:
    """Raises DataError for a run, or another program's model, named as text: its logs and
    read-me are not meant.
    """
    name = shlex.quote(str(folder))
    if _is_run(folder):
        recipe = shlex.quote(str(folder / "config.toml"))
        raise DataError(
            f"{folder} is a run, not text. `lmsmith resume {name}` continues it; `lmsmith train "
            f"TEXT --from {name}` "
            f"trains its model on other text; `lmsmith train {recipe}` repeats it."
        )
    weights = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    if (folder / "config.json").is_file() and any((folder / each).is_file() for each in weights):
        run = folder.parent if (folder.parent / "config.toml").is_file() else None
        how = f"`lmsmith import {name}` makes a run of it, and `lmsmith train TEXT --from RUN`"
        if run:
            how = f"`lmsmith train TEXT --from {shlex.quote(str(run))}`"
        raise DataError(f"{folder} is a model, not text. {how} trains it on other text.")


def _of_corpus(corpus: corpora.Corpus) -> list[Path]:
    if corpus.kind == "tasks":
        raise DataError(
            f"{corpus.name} is a set of tasks to evaluate on, not text: {corpus.what}. Name some "
            f"text."
        )
    if corpus.kind == "shards":
        raise DataError(
            f"{corpus.name} is token shards, not text: `lmsmith data download {corpus.name}` puts "
            f"them into the folder "
            f"{store.folder_of(corpus)}, to be named where shards are taken."
        )
    return store.obtain(corpus)


def _missing(path: Path) -> DataError:
    """Says which part of the path is not there, and what there is with a name like it."""
    missing = path
    while not os.path.lexists(missing.parent) and missing.parent != missing:
        missing = missing.parent
    folder = missing.parent
    try:
        names = sorted(os.listdir(folder))
    except NotADirectoryError:
        return DataError(f"there is no {path}: {folder} is a file, not a folder.")
    except OSError as error:
        return DataError(f"cannot look for {path} in {folder}: {error.strerror}.")
    known = [corpus.name for corpus in corpora.CORPORA.values()] if str(path) == path.name else []
    near = difflib.get_close_matches(missing.name, [*names, *known], n=1, cutoff=0.5)
    if link := dangling(missing):
        hint = link.strip()
    elif near:
        hint = f"Did you mean {folder / near[0] if near[0] in names else f'the corpus {near[0]}'}?"
    else:
        hint = f"Nothing in the folder {folder.absolute()} has a name like {missing.name}."
    return DataError(f"there is no file or folder {path}. {hint}")


def _suffixes(paths: list[Path]) -> Counter[str]:
    return Counter(
        "pipe or device" if _is_special(path) else path.suffix.lower() or "without suffix"
        for path in paths
    )


def _is_special(path: Path) -> bool:
    """A pipe, socket or device, which nobody meant who named its folder: opening it could wait
    for ever.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def _raise(error: OSError) -> None:
    raise error
