"""Atomic writes: files and folders that appear complete or not at all.

Data for PATH is written under a temporary name in the same folder, flushed to disk (fsync) and
renamed to PATH; then the parent folder is flushed too. A rename within one folder is atomic on all
common file systems, so PATH always shows the old version, the new version or nothing, never a part:
during the write, after a kill at any moment, and after a power failure. (A kill alone would not
need the fsyncs; a power failure does.)

A temporary name is `.NAME.HOST.PID.partial`, where HOST is a short hash of the machine's name. A
killed process leaves its temporary files behind; `sweep` removes them later.

A full disk or a missing permission raises StorageError with a message that says what to do. Nothing
here locks: if two processes write one file at the same time, the later rename wins.
"""

import contextlib
import errno
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lmsmith.errors import StorageError

_PARTIAL = re.compile(r"\..+?(?:\.([0-9a-f]{8}))?\.(\d+)\.partial", re.DOTALL)
_A_DAY = 24 * 3600.0
_REPLACED = ".replaced"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, data: bytes | str) -> None:
    """Writes these bytes (or this text, as UTF-8) to `path` atomically, replacing the old file."""
    with file(path) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


def check_replaceable(path: Path, beginning: str | bytes) -> None:
    """Raises StorageError if `path` is a file that does not begin with `beginning`: a mistyped
    output path must not destroy another file. Results of the same kind and empty files pass.
    """
    if not path.is_file():
        return
    expected = beginning.encode("utf-8") if isinstance(beginning, str) else beginning
    with _explained(path), path.open("rb") as stream:
        found = stream.read(len(expected))
    if found and found != expected:
        raise StorageError(
            f"{path} exists and is not a result of this command, so it is not overwritten: choose "
            "another path, or remove the file."
        )


@contextlib.contextmanager
def file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write bytes to; it appears at `path`, replacing the old one, when the block
    ends without an exception.

    If the block raises, `path` is unchanged and the temporary file is removed. The parent folder
    must exist.
    """
    partial = _partial(path)
    try:
        with _explained(path):
            stream = partial.open("wb")
        with (
            _explained(path, block=partial),
            stream,
        ):  # closing flushes the buffer and can fail
            yield stream
        settle(partial, path)
    except BaseException:  # also on an interrupt
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def settle(partial: Path, path: Path) -> None:
    """Renames a finished file to `path` in the same folder, replacing the old one, and flushes both
    to disk.
    """
    with _explained(path):
        _sync_file(partial)
        partial.replace(path)
        _sync_folder(path.parent)


def settle_folder(partial: Path, path: Path) -> None:
    """As `settle`, for a folder whose files are already flushed to disk. `path` must not exist."""
    with _explained(path):
        _sync_folder(partial)
        partial.rename(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder to write files to; it appears at `path`, with everything in it,
    when the block ends without an exception.

    If the block raises, `path` is unchanged and the temporary folder is removed. The parent folder
    must exist. An existing `path` is refused unless `replace`. No portable system call swaps two
    folders, so `replace` renames the old folder to `NAME.replaced`, the new one to NAME, and then
    removes the old one. A kill between the two renames leaves the complete old folder at
    `NAME.replaced`: code that replaces folders must look there too, see `replaced`.
    """
    if not replace and os.path.lexists(path):
        raise StorageError(
            f"{path} already exists and is not overwritten: remove it or choose another path."
        )
    partial, old = _partial(path), replaced(path)
    try:
        with _explained(path):
            _clear(partial)
            partial.mkdir()
        with _explained(path, block=partial):
            yield partial
        with _explained(path):
            for directory, _, names in os.walk(partial):
                for name in names:
                    _sync_file(Path(directory, name))
                _sync_folder(Path(directory))
            if replace and path.exists():
                remove(old)
                path.rename(old)
            partial.rename(path)
            _sync_folder(path.parent)
            if replace:
                remove(old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replaced(path: Path) -> Path:
    """Path at which `folder(path, replace=True)` keeps the old folder between its two renames."""
    return path.with_name(path.name + _REPLACED)


def remove(path: Path) -> None:
    """Removes a folder; a kill half-way leaves no partial folder under its name. Does nothing if
    the folder does not exist.
    """
    with _explained(path):
        if path.exists():
            partial = _partial(path)
            _clear(partial)
            path.rename(partial)
            shutil.rmtree(partial)


def sweep(directory: Path) -> None:
    """Removes temporary files and folders that killed processes left in `directory`.

    Keeps those that a live process may still be writing, and those of other machines (which may
    share the folder) that were modified within the last day. A leftover with our own process id
    comes from a dead process that had the same id (ids repeat in containers), so it is removed too:
    do not call this while this process writes to the folder.
    """
    with _explained(directory):
        leftovers = (
            [entry for entry in directory.iterdir() if _PARTIAL.fullmatch(entry.name)]
            if directory.is_dir()
            else []
        )
    for leftover in leftovers:
        match = _PARTIAL.fullmatch(leftover.name)
        assert match is not None
        if _is_abandoned(leftover, match[1] or _host(), int(match[2])):
            if leftover.is_dir():
                shutil.rmtree(
                    leftover, ignore_errors=True
                )  # a leftover only costs disk space: no reason to stop
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)


def explain(error: OSError, path: Path) -> str:
    """Returns a message that says why `path` cannot be written and what to do."""
    if error.errno == errno.ENOSPC:
        return f"No space left on the disk for {path}: free some space or choose another path."
    if error.errno == errno.EDQUOT:
        return (
            f"Your disk quota is used up, no space for {path}: remove files or choose another path."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{path} exceeds the largest file size allowed here: raise the limit (`ulimit -f`) "
            f"or choose another disk."
        )
    if error.errno == errno.EROFS:
        return f"{path} is on a read-only disk: choose another path."
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"No permission to write {path}: change the permissions of {path.parent} or choose "
            f"another path."
        )
    if error.errno == errno.ENOENT:
        return (
            f"{path} cannot be written because there is no folder {path.parent}: create it or "
            f"choose another path."
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return (
            f"{path} cannot be written, another file or folder is in the way "
            f"({error.strerror}): choose another path."
        )
    return (
        f"{path} cannot be written: {error.strerror or error}. Check the disk or choose "
        f"another path."
    )


@contextlib.contextmanager
def _explained(path: Path, *, block: Path | None = None) -> Iterator[None]:
    """Turns an OSError into a StorageError about `path`.

    `block`: the temporary file or folder that a caller's block writes to. The block may do other
    things as well, so only a full disk, or an error that names a path within `block`, is turned.
    """
    try:
        yield
    except OSError as error:
        is_ours = (
            block is None or error.errno in _FULL or Path(str(error.filename)).is_relative_to(block)
        )
        if not is_ours:
            raise
        raise StorageError(explain(error, path)) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")


def _host() -> str:
    """Eight hexadecimal digits: a hash of this machine's name."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _clear(partial: Path) -> None:
    """Removes an old temporary folder of this name: a dead process with our process id left it."""
    if partial.exists():
        shutil.rmtree(partial)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as stream:  # Windows flushes only files open for writing
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk. Does nothing on Windows, which does it by itself and
    cannot open a folder.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems do not support it
            raise
    finally:
        os.close(descriptor)


def _is_abandoned(leftover: Path, host: str, process: int) -> bool:
    if host == _host():
        return process == os.getpid() or not _is_alive(process)
    try:
        latest = max(path.stat().st_mtime for path in [leftover, *leftover.rglob("*")])
    except OSError:  # it is being written, or has been removed
        return False
    return time.time() - latest > _A_DAY


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return (
            True  # os.kill(process, 0) would interrupt it there; a leftover only costs disk space
        )
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process; not a valid process id
        return True
    return True
