"""`DIR.partial`: a folder that is being prepared, by one process at a time, with one set of
settings.

    with begun(partial, settings):
        ...                         # partial/work/units is there; what an earlier, killed process
                                    # did as well

It stays when the block ends, well or not; whoever finishes it gives it its name.
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
    """Raises ConfigError or DataError where `partial` was begun with other settings, StorageError
    where it is locked.

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
        held = filelock.FileLock(work / "lock").acquire(
            blocking=False
        )  # the system frees it when its holder is killed
    except filelock.Timeout as error:
        raise StorageError(
            f"another process is at work in {partial}: wait, or choose another place."
        ) from error
    with held:
        if (
            settings_file.exists() and (work / TOKENIZER_FILE).exists()
        ):  # without one nothing has been done yet
            _check_same(partial, json.loads(settings_file.read_text(encoding="utf-8")), settings)
        atomic.write(settings_file, to_json(settings))
        for leftover in (work / "units").glob(".*"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        try:
            yield
        except StorageError as error:
            raise StorageError(
                f"{error} What is done is kept: the same command goes on from there."
            ) from error
        except KeyboardInterrupt:
            log.warning("what is done is kept in %s: the same command goes on from there", partial)
            raise


def finish(partial: Path, out: Path) -> None:
    """Removes the work from the finished folder and gives it its name. Whoever finds it
    `unnamed` does so again.
    """
    atomic.remove(partial / "work")
    atomic.sweep(partial)
    atomic.settle_folder(partial, out)


def unnamed(partial: Path) -> bool:
    """Whether a process was killed in `finish`: all is there but the name."""
    return (partial / FILE_NAME).exists() and not (partial / "work").exists()


def digest_of(settings: dict[str, Any]) -> str:
    """What a finished folder remembers of settings and sources."""
    return hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()


def _check_ours(partial: Path) -> None:
    """A process that was killed before it had written its settings has left nothing but an empty
    place for its work.
    """
    names = (
        [path.relative_to(partial).as_posix() for path in partial.rglob("*")]
        if partial.is_dir()
        else [partial.name]
    )
    if not set(names) <= {"work", "work/units", "work/lock"}:
        raise StorageError(
            f"{partial} is there, and not of a folder that was being prepared: it holds "
            f"{names[0]}. Nothing was "
            "changed. Move it away, or choose another --out."
        )


def _check_same(partial: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in now if before.get(name) != now[name] and name != "plan"]
    if changed:
        told = "; ".join(
            f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed
        )
        raise ConfigError(
            f"{partial} was begun with other settings: {told}. Give the same ones to go on, or "
            f"remove it to begin anew."
        )
    if before["plan"] != now["plan"]:
        raise DataError(
            f"the sources are not those that {partial} was begun with: files came, went or "
            f"changed. Remove it to begin "
            "anew."
        )
