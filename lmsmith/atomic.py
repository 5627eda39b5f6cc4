"""Files and folders that appear whole or not at all.

What is to appear at PATH is written beside it under a temporary name, forced to the disk (fsync),
and renamed onto PATH; then the folder that holds it is forced to the disk as well. A rename within
one folder is atomic on every system we know, so whoever looks at PATH, during the write or after a
kill at any moment, finds the old, the new or nothing, and never a part. (Without the fsyncs that
holds for a killed process, but not for a machine that loses power.)

A temporary name is `.NAME.HOST.PID.partial`, HOST being short for the machine's name. A process
killed half-way leaves it behind; `sweep` clears it away later.

A disk that is full or a folder that may not be written is a StorageError, in words a user can act
on. Nothing here locks: of two processes that write one file at one time the later rename wins,
whole.
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
    """Puts a file with these bytes (or this text, as UTF-8) at `path`, whole, in place of what
    was there.
    """
    with file(path) as whole:
        whole.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def file(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes into; it appears at `path`, in place of what was there, at a clean end
    of the block.

    Where the block raises, `path` is as it was and the temporary file is gone. The folder must be
    there already.
    """
    partial = _partial(path)
    try:
        with _explained(path):
            opened = partial.open("wb")
        with (
            _explained(path, block=partial),
            opened,
        ):  # closing writes what is still in the buffer, and can fail
            yield opened
        settle(partial, path)
    except BaseException:  # an interrupt too
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def settle(partial: Path, path: Path) -> None:
    """Gives a finished file of the same folder the name `path`, in place of what was there; it
    is on the disk then.
    """
    with _explained(path):
        _sync_file(partial)
        partial.replace(path)
        _sync_folder(path.parent)


def settle_folder(partial: Path, path: Path) -> None:
    """The same for a folder whose files are on the disk already. `path` must not be there."""
    with _explained(path):
        _sync_folder(partial)
        partial.rename(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to write files into; it appears at `path`, with all in it, at a clean end
    of the block.

    Where the block raises, `path` is as it was and the temporary folder is gone. The folder that
    holds `path` must be there already. A `path` that exists is refused, unless `replace`: no
    portable call swaps two folders, so the old one is then renamed to `NAME.replaced`, the new one
    to NAME, and the old one removed. A kill between the two renames leaves the old one, whole, at
    `NAME.replaced`: whoever replaces looks there too, see `replaced`.
    """
    if not replace and os.path.lexists(path):
        raise StorageError(
            f"{path} is there already and is not overwritten: remove it or choose another place."
        )
    partial, old = _partial(path), replaced(path)
    try:
        with _explained(path):
            _clear(partial)
            partial.mkdir()
        with _explained(path, block=partial):
            yield partial
        with _explained(path):
            for place, _, names in os.walk(partial):
                for name in names:
                    _sync_file(Path(place, name))
                _sync_folder(Path(place))
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
    """Where `folder(path, replace=True)` keeps the old folder while neither the old nor the new
    one is at `path`.
    """
    return path.with_name(path.name + _REPLACED)


def remove(path: Path) -> None:
    """Removes a folder; a kill half-way leaves no part of it under its name. A folder that is
    not there is fine.
    """
    with _explained(path):
        if path.exists():
            partial = _partial(path)
            _clear(partial)
            path.rename(partial)
            shutil.rmtree(partial)


def sweep(place: Path) -> None:
    """Removes what killed processes left half-written in the folder `place`.

    Left alone is what a process that lives may still be writing; of other machines, which may share
    the folder, what was touched within a day. What bears our own process id was left by a dead
    process that had it before us (in a container ids repeat): so do not sweep while this process
    writes there.
    """
    with _explained(place):
        leftovers = (
            [entry for entry in place.iterdir() if _PARTIAL.fullmatch(entry.name)]
            if place.is_dir()
            else []
        )
    for leftover in leftovers:
        match = _PARTIAL.fullmatch(leftover.name)
        assert match is not None
        if _is_abandoned(leftover, match[1] or _host(), int(match[2])):
            if leftover.is_dir():
                shutil.rmtree(
                    leftover, ignore_errors=True
                )  # it costs room, not truth: no reason to stop
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)


def explain(error: OSError, path: Path) -> str:
    """Why `path` cannot be written and what to do, in plain words."""
    if error.errno == errno.ENOSPC:
        return f"No room left on the disk for {path}: free some or choose another place."
    if error.errno == errno.EDQUOT:
        return (
            f"Your quota on the disk is used up, no room for {path}: remove files or choose "
            f"another place."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{path} is larger than a file may be here: raise the limit (`ulimit -f`) or "
            f"choose another disk."
        )
    if error.errno == errno.EROFS:
        return f"{path} lies on a disk that can only be read: choose another place."
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"No permission to write {path}: change the permissions of {path.parent} or choose "
            f"another place."
        )
    if error.errno == errno.ENOENT:
        return (
            f"{path} cannot be written because there is no folder {path.parent}: make it or "
            f"choose another place."
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return (
            f"{path} cannot be written, something else is in its place ({error.strerror}): "
            f"choose another place."
        )
    return (
        f"{path} cannot be written: {error.strerror or error}. Look after the disk or choose "
        f"another place."
    )


@contextlib.contextmanager
def _explained(path: Path, *, block: Path | None = None) -> Iterator[None]:
    """Turns an OSError into a StorageError about `path`.

    Around a caller's block, which may do other things as well: only a disk that is full, or an
    error that names what the block writes, the temporary file or folder `block`.
    """
    try:
        yield
    except OSError as error:
        ours = (
            block is None or error.errno in _FULL or Path(str(error.filename)).is_relative_to(block)
        )
        if not ours:
            raise
        raise StorageError(explain(error, path)) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.partial")


def _host() -> str:
    """Eight digits for this machine's name."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _clear(partial: Path) -> None:
    """Makes room for a temporary folder: one of this name is left by a dead process that had our
    process id.
    """
    if partial.exists():
        shutil.rmtree(partial)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as written:  # Windows forces out only what is open for writing
        os.fsync(written.fileno())


def _sync_folder(path: Path) -> None:
    """Forces the names in a folder to the disk. Windows does that by itself and cannot open a
    folder.
    """
    if os.name == "nt":
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network disks know no such thing
            raise
    finally:
        os.close(opened)


def _is_abandoned(leftover: Path, host: str, process: int) -> bool:
    if host == _host():
        return process == os.getpid() or not _is_alive(process)
    try:
        latest = max(place.stat().st_mtime for place in [leftover, *leftover.rglob("*")])
    except OSError:  # it is being written, or is gone
        return False
    return time.time() - latest > _A_DAY


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # there os.kill(process, 0) would interrupt it; a leftover costs only room
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no process id at all
        return True
    return True
