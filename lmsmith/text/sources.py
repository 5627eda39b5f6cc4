"""Resolves sources to files: files, folders, glob patterns, named corpora, files on the Hub.

A file that is named, or that a pattern matches, is read whatever its suffix. In a folder, only
files with a text suffix are read, at any depth; hidden files and folders are ignored, and all
others are counted as excluded. Patterns are expanded here, `**` included, so that they mean the
same in recipes, in quotes and in every shell.

Runs and prepared folders among the text are ignored too: a run contains its held-out validation
text, and the next run would train on it.

A name without a file may be that of a corpus (`corpora.py`); hf://datasets/... names remote files
(`hub.py`).
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
    FOREIGN_TOKEN_FILES,
    TOKEN_FILES,
    dangling,
    inner_suffix,
    listed,
    read_errors,
)

# Not .json: in a folder it is usually a settings file, not JSON Lines.
IN_FOLDERS = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".jsonl", ".ndjson", ".parquet")


class Found(NamedTuple):
    path: Path
    named: bool  # named explicitly, so it must not be skipped


def find_files(sources: list[str]) -> tuple[list[Found], Counter[str]]:
    """Returns the files of the sources, each once, and how many other files their folders contain,
    by suffix.

    Raises DataError for a source that does not exist, or that contains or matches no text.
    """
    if not all(sources) or not sources:  # "" would be the current folder
        raise DataError(
            "no text was named. Name files, folders or patterns, as in `lmsmith train book.txt`."
        )
    files_by_path: dict[str, Found] = {}  # by real path: two names of one file count once
    excluded: dict[str, Path] = {}
    for source in sources:
        path = Path(os.path.expanduser(source))
        matching: list[Path] = []
        others: list[Path] = []
        if os.path.isdir(path):
            _refuse_model(path)
            matching, others = _in_folder(path)
            if not matching:
                contents = (
                    f"it contains {listed(_suffixes(others))}"
                    if others
                    else "it is empty, apart from hidden files and runs"
                )
                tokens = any(other.suffix.lower() in TOKEN_FILES for other in others)
                raise DataError(
                    f"the folder {path} contains no text: {contents}; expected "
                    f"{' '.join(IN_FOLDERS)} (or these with .gz or .zst). Other files are read if "
                    f"named, or with a pattern such as '{path / '**' / '*.html'}'."
                    + (
                        f" {FOREIGN_TOKEN_FILES.replace('If it contains', 'If a file contains')}"
                        if tokens
                        else ""
                    )
                )
        elif os.path.exists(path):
            files_by_path[os.path.realpath(path)] = Found(path, named=True)
        elif hub.is_remote(source):
            files_by_path.update(
                (str(remote), Found(remote, named=True)) for remote in hub.find_remote(source)
            )
        elif glob.has_magic(source):
            matching, others = _matching(path)
        elif corpora.find(source):
            files_by_path.update(
                (os.path.realpath(file), Found(file, named=True))
                for file in _of_corpus(corpora.get(source))
            )
        else:
            raise _missing(path)
        for file in matching:
            files_by_path.setdefault(os.path.realpath(file), Found(file, named=False))
        excluded.update((os.path.realpath(file), file) for file in others)
    left_out = _suffixes([file for real, file in excluded.items() if real not in files_by_path])
    return list(files_by_path.values()), left_out


def _in_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files under the folder with a text suffix, and the others; both sorted."""
    text: list[Path] = []
    others: list[Path] = []
    visited = {os.path.realpath(folder)}  # links to folders are followed, but cycles are not
    with read_errors(folder):
        for directory, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            to_visit = []
            for name in sorted(folders):
                real = os.path.realpath(os.path.join(directory, name))
                if not name.startswith(".") and real not in visited and not _is_ours(Path(real)):
                    visited.add(real)
                    to_visit.append(name)
            folders[:] = to_visit
            for name in names:
                if not name.startswith("."):
                    path = Path(directory, name)
                    (
                        text
                        if inner_suffix(path) in IN_FOLDERS and not _is_special(path)
                        else others
                    ).append(path)
    return sorted(text, key=Path.as_posix), sorted(others, key=Path.as_posix)


def _matching(pattern: Path) -> tuple[list[Path], list[Path]]:
    """Files that the pattern matches, and those of `_in_folder` in the folders that it matches."""
    matches = sorted(patterns.matches(pattern), key=Path.as_posix)
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    if "**" in pattern.parts:  # `**` enters the same folders as naming their parent would
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
        listing = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise DataError(
            f"the pattern {pattern} matches no text file; the folder {base.absolute()} contains "
            f"{listing}. (* matches part of a name, ** any depth of folders.)"
        )
    return taken, others


def _below(base: Path, path: Path) -> Iterator[Path]:
    """Returns the path and its parent folders, up to but excluding `base`."""
    return itertools.takewhile(base.__ne__, [path, *path.parents])


def _is_ours(folder: Path) -> bool:
    """Returns whether lmsmith wrote this folder: a run, a prepared folder, or an unfinished
    prepared folder.
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
    """Raises DataError for a run, or another program's model, named as text: its logs and README
    are not training text.
    """
    name = shlex.quote(str(folder))
    if _is_run(folder):
        recipe = shlex.quote(str(folder / "config.toml"))
        raise DataError(
            f"{folder} is a run, not text. `lmsmith resume {name}` continues it; `lmsmith train "
            f"TEXT --from {name}` trains its model on other text; `lmsmith train {recipe}` repeats "
            f"it."
        )
    weights = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    if (folder / "config.json").is_file() and any((folder / each).is_file() for each in weights):
        run = folder.parent if (folder.parent / "config.toml").is_file() else None
        how = f"`lmsmith import {name}` turns it into a run, and `lmsmith train TEXT --from RUN`"
        if run:
            how = f"`lmsmith train TEXT --from {shlex.quote(str(run))}`"
        raise DataError(f"{folder} is a model, not text. {how} trains it on other text.")


def _of_corpus(corpus: corpora.Corpus) -> list[Path]:
    if corpus.kind == "tasks":
        raise DataError(
            f"{corpus.name} is a set of evaluation tasks, not text: {corpus.what}. Name some text."
        )
    if corpus.kind == "shards":
        raise DataError(
            f"{corpus.name} is token shards, not text. `lmsmith data download {corpus.name}` puts "
            f"them into the folder {store.folder_of(corpus)}; name that folder where shards are "
            f"accepted."
        )
    return store.obtain(corpus)


def _missing(path: Path) -> DataError:
    """Returns the error for a path that does not exist: names the missing part, and existing names
    similar to it.
    """
    missing = path
    while not os.path.lexists(missing.parent) and missing.parent != missing:
        missing = missing.parent
    folder = missing.parent
    try:
        names = sorted(os.listdir(folder))
    except NotADirectoryError:
        return DataError(f"{path} does not exist: {folder} is a file, not a folder.")
    except OSError as error:
        return DataError(
            f"cannot look for {path} in {folder}: {error.strerror}. Check the permissions."
        )
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
    """Returns whether the path is a pipe, socket or device: not text, and opening it could block
    indefinitely.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def _raise(error: OSError) -> None:
    raise error
