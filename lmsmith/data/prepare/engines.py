"""Runs units on threads, processes or a Ray cluster. The result is the same.

    for number in run_local(encode_unit, job, units, workers=8): ...  # in order of completion

`work(job, number, unit)` writes its result to disk, so only numbers are returned, and a killed
worker loses only the unit it was working on.

- Threads, for little text: they start at once. Encoding releases the GIL but reading files does
  not, so more than a few threads wait for one another.
- Processes, otherwise. They are forked from a small server that has imported the modules they need
  (`forkserver`; where it is not available, each process imports them), never from the calling
  program, which may have threads of its own. They end when that program ends.
- Ray (https://docs.ray.io; `pip install 'lmsmith[ray]'`): one task per unit, on a running cluster.
  Its machines must see the sources and the folder under the same paths. If a worker or machine
  dies, its task is retried.
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
from lmsmith.errors import DataError
from lmsmith.machine.cluster import connected_ray

Work = Callable[[Any, int, Unit], None]
Units = Iterable[tuple[int, Unit]]

MANY_BYTES = 1 << 28  # with more text than this, starting processes pays off
AHEAD = 2  # queued units per worker
RETRIES = 5  # of a unit whose Ray worker dies


def run_local(work: Work, job: Any, units: Units, *, workers: int, n_bytes: int) -> Iterator[int]:
    """Runs the units, `workers` at a time, and yields their numbers as they finish.

    `n_bytes`: approximate size of the text. Raises the errors of `work`, after the running units
    have ended; DataError if the system killed a process.
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
            while len(running) < AHEAD * workers and (entry := next(waiting, None)) is not None:
                running[executor.submit(work, job, *entry)] = entry[0]
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                number = running.pop(future)
                future.result()
                yield number
    except BrokenProcessPool as error:
        raise DataError(
            "an encoding process was killed, most likely because memory ran out. Finished work "
            f"is kept: the same command with fewer --workers than {workers} continues from there."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_ray(work: Work, job: Any, units: Units) -> Iterator[int]:
    """Runs the units on a Ray cluster: the one this program is connected to, or the one that runs
    on this machine.

    Raises ConfigError if Ray is not installed or no cluster is running.
    """
    ray = connected_ray("local")
    task = ray.remote(_in_folder).options(num_cpus=1, max_retries=RETRIES)
    job_ref, folder = ray.put(job), os.getcwd()
    waiting = iter(units)
    running: dict[Any, int] = {}
    try:
        while True:
            n_queued = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < n_queued and (entry := next(waiting, None)) is not None:
                running[task.remote(folder, work, job_ref, *entry)] = entry[0]
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
                    f"unit {number} failed after {RETRIES} retries: "
                    f"{str(error).strip().splitlines()[0]} Finished work is kept: the same "
                    "command continues from there."
                ) from error
            yield number
    finally:
        for task_at_work in running:
            with contextlib.suppress(Exception):
                ray.cancel(task_at_work, force=True)


def _in_folder(folder: str, work: Work, job: Any, number: int, unit: Unit) -> None:
    """Runs the work in the caller's working directory, because source paths may be relative."""
    os.chdir(folder)
    work(job, number, unit)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmsmith.data.prepare.encode", "lmsmith.tokens.bpe"])
    return context


def _start() -> None:
    """Initializes a process: ignores Ctrl-C, which the main process handles, and exits when that
    ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main_process = multiprocessing.parent_process()
    assert main_process is not None

    def watch() -> None:
        multiprocessing.connection.wait([main_process.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
