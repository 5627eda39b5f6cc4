"""`DIR.partial`: a folder in preparation, used by one process at a time, with one set of settings.

    with begun(partial, settings):
        ...                         # partial/work/units exists, with the work of earlier, killed
                                    # processes

It is kept when the block ends, also after an error; `finish` renames it.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from lmsmith import atomic
from lmsmith.data.manifest import FILE_NAME
from lmsmith.errors import ConfigError, DataError, StorageError
from lmsmith.strict_json import to_json
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE

log = logging.getLogger(__name__)


@contextlib.contextmanager
def begun(partial: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Raises ConfigError or DataError if `partial` was started with other settings, StorageError if
    it is locked.

    `settings["plan"]` is a digest of the sources.
    """
    work = partial / "work"
    settings_file = work / "settings.json"
    try:
        if partial.exists() and not settings_file.exists():
            _check_ours(partial)
        (work / "units").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, partial)) from error
    try:
        # The system releases the lock if its holder is killed.
        held = filelock.FileLock(work / "lock").acquire(blocking=False)
    except filelock.Timeout as error:
        raise StorageError(
            f"another process is working in {partial}: wait for it, or choose another --out."
        ) from error
    with held:
        # Without a tokenizer, no work has been done yet.
        if settings_file.exists() and (work / TOKENIZER_FILE).exists():
            _check_same(partial, json.loads(settings_file.read_text(encoding="utf-8")), settings)
        atomic.write(settings_file, to_json(settings))
        for leftover in (work / "units").glob(".*"):  # files of killed processes
            leftover.unlink(missing_ok=True)
        try:
            yield
        except StorageError as error:
            raise StorageError(
                f"{error} Finished work is kept: the same command continues from there."
            ) from error
        except KeyboardInterrupt:
            log.warning(
                "finished work is kept in %s: the same command continues from there", partial
            )
            raise


def finish(partial: Path, out: Path) -> None:
    """Removes the work from the complete folder and renames it. If a process is killed here, the
    next one finds the folder `unnamed` and calls this again.
    """
    atomic.remove(partial / "work")
    atomic.sweep(partial)
    atomic.settle_folder(partial, out)


def unnamed(partial: Path) -> bool:
    """Returns whether a process was killed in `finish`: the folder is complete but not renamed."""
    return (partial / FILE_NAME).exists() and not (partial / "work").exists()


def digest_of(settings: dict[str, Any]) -> str:
    """Returns the hash of settings and sources that a finished folder records."""
    return hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()


def _check_ours(partial: Path) -> None:
    """Raises StorageError if the folder is not an unfinished preparation. A process that was killed
    before it wrote its settings left only an empty `work`.
    """
    names = (
        [path.relative_to(partial).as_posix() for path in partial.rglob("*")]
        if partial.is_dir()
        else [partial.name]
    )
    if not set(names) <= {"work", "work/units", "work/lock"}:
        raise StorageError(
            f"{partial} already exists and is not an unfinished preparation: it contains "
            f"{names[0]}. Nothing was changed. Move it away, or choose another --out."
        )


def _check_same(partial: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in now if earlier.get(name) != now[name] and name != "plan"]
    if changed:
        changes = "; ".join(
            f"{name} was {earlier.get(name)!r} and is {now[name]!r}" for name in changed
        )
        raise ConfigError(
            f"{partial} was started with other settings: {changes}. Use the same ones to resume "
            "it, or remove it to start over."
        )
    if earlier["plan"] != now["plan"]:
        raise DataError(
            f"the sources have changed since {partial} was started: files were added, removed or "
            "modified. Remove it to start over."
        )
