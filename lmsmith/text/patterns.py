"""Glob patterns with `**`: files and folders at any depth, like Python's glob, but each folder is
visited once.

Links to folders are followed. glob.glob follows cyclic links without end: two of them produce more
names than can be listed.
"""

import glob
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

RECURSIVE = "**"


def matches(pattern: Path) -> list[Path]:
    """Returns the paths that a pattern matches, in any order, including dangling links. Hidden
    names match only if the pattern says so.

    A folder with several names is visited once below `**`, under its real name if that is below the
    pattern, else under the first link.
    """
    if RECURSIVE not in pattern.parts:
        return [Path(path) for path in glob.glob(str(pattern))]
    index = pattern.parts.index(RECURSIVE)
    before, after = pattern.parts[:index], pattern.parts[index + 1 :]
    bases = glob.glob(str(Path(*before))) if before else [""]
    paths: dict[Path, None] = {}
    for base in bases:
        if not os.path.isdir(base or "."):
            continue
        for folder in _folders(base):
            if after:
                paths.update(dict.fromkeys(matches(Path(glob.escape(folder), *after))))
            else:
                paths.update((Path(path), None) for path in _entries(folder))
    return list(paths)


def _folders(base: str) -> Iterator[str]:
    """`base` and the folders below it, each real folder once."""
    visited = {os.path.realpath(base or ".")}
    waiting, links = [base], deque[str]()
    while waiting:
        folder = waiting.pop()
        yield folder
        for path in filter(os.path.isdir, _entries(folder)):
            if os.path.islink(path):
                links.append(path)
            elif (real := os.path.realpath(path)) not in visited:
                visited.add(real)
                waiting.append(path)
        while links and not waiting:  # links come after all real folders
            link = links.popleft()
            if (real := os.path.realpath(link)) not in visited:
                visited.add(real)
                waiting.append(link)


def _entries(folder: str) -> list[str]:
    """Returns the entries of a folder, without hidden names; [] if it cannot be read, as in
    glob.
    """
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return []
    return sorted(os.path.join(folder, name) for name in names if not name.startswith("."))
