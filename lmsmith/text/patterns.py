"""Patterns with `**`: files and folders at any depth, as Python's glob finds them, but each folder
is entered once.

Links to folders are followed. glob.glob follows them in circles: two of them make more names than
can be listed.
"""

import glob
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

RECURSIVE = "**"


def matches(pattern: Path) -> list[Path]:
    """What a pattern matches, in any order; dangling links are among it. Hidden names only where
    the pattern says so.

    A folder that is there under several names is entered below `**` under the first one, real names
    before links.
    """
    if RECURSIVE not in pattern.parts:
        return [Path(found) for found in glob.glob(str(pattern))]
    at = pattern.parts.index(RECURSIVE)
    before, behind = pattern.parts[:at], pattern.parts[at + 1 :]
    bases = glob.glob(str(Path(*before))) if before else [""]
    found: dict[Path, None] = {}
    for base in bases:
        if not os.path.isdir(base or "."):
            continue
        for folder in _folders(base):
            if behind:
                found.update(dict.fromkeys(matches(Path(glob.escape(folder), *behind))))
            else:
                found.update((Path(path), None) for path in _entries(folder))
    return list(found)


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
        while links and not waiting:  # links wait until all that has a name of its own was entered
            link = links.popleft()
            if (real := os.path.realpath(link)) not in visited:
                visited.add(real)
                waiting.append(link)


def _entries(folder: str) -> list[str]:
    """What is in a folder, hidden names and folders that may not be read left out, as glob does."""
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return []
    return sorted(os.path.join(folder, name) for name in names if not name.startswith("."))
