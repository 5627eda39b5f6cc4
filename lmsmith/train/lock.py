"""Ensures that only one process trains a run at a time.

The training process holds the operating system's lock on RUN/.lock, which the system releases when
the process dies for any reason. Network disks may not share that lock between machines, or have
none. So the process also writes RUN/trainer.json (its machine, process and start time) and touches
it every BEAT_SECONDS. A second process that tries to train the run

- is refused if the system's lock is held;
- takes over at once if the record is from the same machine since its last boot: that process has
  lost the lock, so it is dead;
- takes over if the record is from another machine and has not been touched for DEAD_SECONDS. The
  clocks of two machines differ, so that age is measured by the disk's clock, and a record that
  seems fresh is watched for DEAD_SECONDS.

A process that was suspended meanwhile finds another process's record before it saves, and ends
(`check_held`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import filelock

from lmsmith import atomic, foreign_json
from lmsmith.distributed.ranks import Ranks
from lmsmith.errors import StorageError, TrainingError, UsageError
from lmsmith.strict_json import to_json

LOCK, RECORD = ".lock", "trainer.json"
BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0
_WATCH_SECONDS = 0.5  # time between checks of a record

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_held: dict[Path, str] = {}  # the token of each record that this process has written


@dataclass(frozen=True)
class Trainer:
    """The process that trains a run, as written in trainer.json. `boot` changes at each reboot."""

    host: str
    boot: str
    process: int
    since: str
    token: str

    def __str__(self) -> str:
        host = "this machine" if self.boot == _boot() else self.host
        return f"process {self.process} on {host}, since {self.since}"


@contextlib.contextmanager
def held(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes this process the trainer of the run inside the block.

    `say` gets messages while a trainer on another machine is watched, and when it counts as dead.
    Raises UsageError if another process trains the run, StorageError if its folder cannot be
    written.
    """
    lock = _system_lock(run)
    try:
        _wait_for_the_dead(run, lock is not None, say)
        token = _write_record(run)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(run, token, stop), name="trainer", daemon=True)
        beat.start()
        key = run.absolute()
        _held[key] = token
        try:
            yield
        finally:
            stop.set()
            beat.join()
            del _held[key]
            if (found := _read(run)) and found.token == token:
                with contextlib.suppress(OSError):
                    (run / RECORD).unlink()
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def held_by_first(run: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[None]:
    """`held` for the processes of torchrun: rank 0 holds the lock for all. All ranks must call it
    together.
    """
    with contextlib.ExitStack() as stack:

        def take() -> str:
            stack.enter_context(held(run, say))
            return "held"

        ranks.on_rank_zero(take)
        yield


def check_held(run: Path) -> None:
    """Raises TrainingError if another process has taken over the run from this one."""
    token = _held.get(run.absolute())
    found = _read(run) if token else None
    if found and found.token != token:
        raise TrainingError(
            f"{run} is now trained by {found}, because this process did not respond for "
            f"{DEAD_SECONDS:.0f} s. "
            "This process ends; the files of the other one are untouched."
        )


def trainer(run: Path) -> Trainer | None:
    """Returns the process that trains the run, according to its record; None without a readable
    record.
    """
    return _read(run)


def _system_lock(run: Path) -> filelock.BaseFileLock | None:
    """Acquires the system's lock on the run; None on disks without locks. Raises UsageError,
    StorageError.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(run / LOCK)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # filelock warns about disks without locks; the record replaces the lock there
            lock.acquire(blocking=False)
    except filelock.Timeout as error:
        if not isinstance(lock, filelock.SoftFileLock):
            raise _busy(run, _read(run)) from error
        return None
    except NotImplementedError:  # older filelock on a disk without locks
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise StorageError(atomic.explain(error, run / LOCK)) from error
    if isinstance(lock, filelock.SoftFileLock):  # only a file, which outlives a killed process
        lock.release()
        return None
    return lock


def _wait_for_the_dead(run: Path, locked: bool, say: Callable[[str], None]) -> None:
    """Returns once the trainer named in the record is dead. Raises UsageError if it is alive."""
    found = _read(run)
    if found is None or (locked and found.boot == _boot()):
        return
    if _age(run) < DEAD_SECONDS:
        say(f"{run} was trained by {found}: waiting up to {DEAD_SECONDS:.0f} s for it to respond")
        first, until = _mark(run), time.monotonic() + DEAD_SECONDS
        while time.monotonic() < until:
            mark = _mark(run)
            if mark is None:  # the other process has ended
                return
            if mark != first:
                raise _busy(run, _read(run))
            time.sleep(_WATCH_SECONDS)
    say(f"{run}: {found} has not responded for {DEAD_SECONDS:.0f} s and counts as dead")


def _busy(run: Path, found: Trainer | None) -> UsageError:
    process = str(found) if found else "another process"
    how = f"stop it there (kill {found.process})" if found else "stop it"
    return UsageError(
        f"{run} is being trained by {process}, and two processes would overwrite each other's "
        f"work. Nothing was changed. Wait until it ends, or {how}, and resume the run then."
    )


def _write_record(run: Path) -> str:
    token = secrets.token_hex(8)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    record = Trainer(platform.node(), _boot(), os.getpid(), since, token)
    atomic.write(run / RECORD, to_json(asdict(record)) + "\n")
    return token


def _beat(run: Path, token: str, stop: threading.Event) -> None:
    """Touches the record until `stop`, as long as it is ours. Temporary disk errors are ignored."""
    while not stop.wait(BEAT_SECONDS):
        found = _read(run)
        if found and found.token == token:
            with contextlib.suppress(OSError):
                os.utime(run / RECORD)


def _read(run: Path) -> Trainer | None:
    try:
        content: dict[str, Any] = foreign_json.read(run / RECORD)
        return Trainer(**{field.name: content[field.name] for field in fields(Trainer)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _mark(run: Path) -> int | None:
    """Time at which the record was last touched, in ns; None without a record.

    Opening the file makes network disks ask the server.
    """
    try:
        with (run / RECORD).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _age(run: Path) -> float:
    """Seconds since the record was touched, by the disk's clock; 0 if unknown."""
    mark = _mark(run)
    try:
        (run / LOCK).touch()
        now = (run / LOCK).stat().st_mtime_ns
    except OSError:
        return 0.0
    return (now - mark) / 1e9 if mark is not None else 0.0


def _boot() -> str:
    """Returns an id of this machine that changes at each reboot; its host name on systems without
    one.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
