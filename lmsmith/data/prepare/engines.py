"""Who does the units: threads, processes, or a Ray cluster. What comes out is the same.

    for number in run_local(encode_unit, job, units, workers=8): ...  # units, as they are done

`work(job, number, unit)` leaves what it does on the disk, so that here only numbers come back, and
a killed worker loses the unit it was at and nothing else.

- Threads, where there is little text: they start at once. Encoding runs without the interpreter's
  lock, reading files does not, so more than a few threads wait for one another.
- Processes else. They are forked from a small server that has imported what they need
  (`forkserver`; where there is none, each imports it by itself), never from a program that may have
  threads of its own, and end when that does.
- Ray (https://docs.ray.io; `pip install 'lmsmith[ray]'`): a task a unit, on the cluster that is
  there. Its machines see the sources and the folder under the same names as this one. A task whose
  worker or machine dies is given to another.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lmsmith.data.prepare.units import Unit
from lmsmith.errors import ConfigError, DataError

Work = Callable[[Any, int, Unit], None]
Units = Iterable[tuple[int, Unit]]

MANY_BYTES = 1 << 28  # of text from which on processes are worth their start
AHEAD = 2  # units a worker has waiting
RETRIES = 5  # of a unit whose Ray worker died


def run_local(work: Work, job: Any, units: Units, *, workers: int, n_bytes: int) -> Iterator[int]:
    """Does the units, `workers` at a time, and yields their numbers as they are done.

    `n_bytes` of text there are about. Raises what the work raises, after the others at work have
    ended; DataError where the system killed a process.
    """
    if workers == 1:
        for number, unit in units:
            work(job, number, unit)
            yield number
        return
    executor: Executor
    if n_bytes < MANY_BYTES:
        executor = ThreadPoolExecutor(workers)
    else:
        executor = ProcessPoolExecutor(workers, _context(), initializer=_start)
    waiting = iter(units)
    running: dict[Future[None], int] = {}
    try:
        while True:
            while len(running) < AHEAD * workers and (each := next(waiting, None)) is not None:
                running[executor.submit(work, job, *each)] = each[0]
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                number = running.pop(future)
                future.result()
                yield number
    except BrokenProcessPool as error:
        raise DataError(
            "a process that encoded was killed, most likely because memory ran out. What is done "
            "is kept: the same "
            f"command with fewer than --workers {workers} goes on from there."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_ray(work: Work, job: Any, units: Units) -> Iterator[int]:
    """The same on a Ray cluster: the one this program is connected to, or the one that runs on this
    machine.

    Raises ConfigError where Ray is not installed or no cluster runs.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray wants the package ray: `pip install 'lmsmith[ray]'`."
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError as error:
            raise ConfigError(
                "--engine ray: no Ray cluster runs here. `ray start --head` starts one on this "
                "machine and prints what "
                "to say on others to join it; without a cluster take --engine local."
            ) from error
    task = ray.remote(_in_folder).options(num_cpus=1, max_retries=RETRIES)
    given, place = ray.put(job), os.getcwd()
    waiting = iter(units)
    running: dict[Any, int] = {}
    try:
        while True:
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < most and (each := next(waiting, None)) is not None:
                running[task.remote(place, work, given, *each)] = each[0]
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done[0])
            try:
                ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise DataError(
                    f"unit {number} was given up after {RETRIES} tries: "
                    f"{str(error).strip().splitlines()[0]} What is "
                    "done is kept: the same command goes on from there."
                ) from error
            yield number
    finally:
        for task_at_work in running:
            with contextlib.suppress(Exception):
                ray.cancel(task_at_work, force=True)


def _in_folder(place: str, work: Work, job: Any, number: int, unit: Unit) -> None:
    """Sources may be named relative to where the command was given."""
    os.chdir(place)
    work(job, number, unit)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmsmith.data.prepare.encode", "lmsmith.tokens.bpe"])
    return context


def _start() -> None:
    """In each process: Ctrl-C is for the one that leads, and without it there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leader = multiprocessing.parent_process()
    assert leader is not None

    def watch() -> None:
        multiprocessing.connection.wait([leader.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
