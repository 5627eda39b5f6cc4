"""Where the runs of a study run: processes on this machine, tasks on a Ray cluster, a SLURM array.

Each run is a process `lmsmith train RECIPE --out RUN`, or `lmsmith resume RUN` if it was
interrupted. Local processes are pinned to cores of their own where the system allows it, so that
runs hardly disturb each other and budgets in seconds are fair. If this process is killed, its
children save and stop (Linux), and the next start resumes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmsmith import atomic
from lmsmith.errors import UsageError
from lmsmith.machine.cluster import connected_ray
from lmsmith.machine.limits import n_cores
from lmsmith.study.plan import Arm
from lmsmith.study.results import Place
from lmsmith.train.stop import Noted, noted

Job = tuple[Arm, int]
Command = Callable[[Place, Job], list[str]]
STOPPED = {130, 143, -signal.SIGINT, -signal.SIGTERM}  # exit statuses of an interrupted run
BUSY = "trained by"  # in the error of a run that another process trains
PR_SET_PDEATHSIG = 1  # prctl(2)


class Engine(Protocol):
    """Runs jobs."""

    @property
    def free(self) -> bool:
        """Whether another job can start."""

    @property
    def running(self) -> Sequence[Job]:
        """The jobs that run now."""

    def start(self, job: Job) -> None:
        """Starts or resumes a run."""

    def ended(self) -> Iterator[Job]:
        """The jobs that ended since the last call."""

    def stop(self) -> None:
        """Asks all runs to save and stop, and waits until they have."""


@contextlib.contextmanager
def stopping(engine: Engine) -> Iterator[Noted]:
    """Stops the runs of `engine` if the block raises. The block calls `check` on the value.

    Signals are noted and not raised where they arrive: Python ignores an exception in the functions
    that run around a fork, and the study would run on.
    """
    with noted() as signals:
        try:
            yield signals
        except BaseException:
            engine.stop()
            raise


def command_of(place: Place, job: Job) -> list[str]:
    """The command that starts or resumes a run."""
    run = place.run(*job)
    if (run / "config.toml").exists():
        words = ["resume", str(run)]
    else:
        words = ["train", str(place.recipe(*job)), "--out", str(run)]
    return [sys.executable, "-m", "lmsmith", *words]


@dataclass
class Processes:
    """Runs on this machine: `at_once` processes of `threads` threads each (0: one per `threads`
    cores)."""

    place: Place
    threads: int = 1
    at_once: int = 0
    command: Command = command_of
    _jobs: list[tuple[Job, subprocess.Popen[bytes], tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        cores = cores[: n_cores()] or list(range(n_cores()))
        groups = [tuple(cores[i : i + self.threads]) for i in range(0, len(cores), self.threads)]
        groups = [group for group in groups if len(group) == self.threads]
        if self.at_once > len(groups) or not groups:  # more runs than cores: they share them
            groups = [tuple(cores)] * max(1, self.at_once)
        self._cores = groups[: self.at_once or len(groups)]

    @property
    def free(self) -> bool:
        return bool(self._cores)

    @property
    def running(self) -> list[Job]:
        return [job for job, _, _ in self._jobs]

    def start(self, job: Job) -> None:
        if not (self.place.run(*job) / "config.toml").exists():
            shutil.rmtree(self.place.run(*job), ignore_errors=True)
        cores, threads = self._cores.pop(0), str(self.threads)
        with self.place.printed(*job).open("wb") as stream:
            process = subprocess.Popen(
                self.command(self.place, job),
                env={**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        if hasattr(os, "sched_setaffinity") and len(cores) == self.threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores)
        self._jobs.append((job, process, cores))

    def ended(self) -> Iterator[Job]:
        for entry in [entry for entry in self._jobs if entry[1].poll() is not None]:
            self._jobs.remove(entry)
            job, process, cores = entry
            self._cores.append(cores)
            keep_error(self.place, job, process.returncode)
            yield job

    def stop_one(self, job: Job) -> None:
        """Asks one run to save and stop; it is among the next `ended`."""
        for other, process, _ in self._jobs:
            if other == job:
                process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        for _, process, _ in self._jobs:
            process.send_signal(signal.SIGTERM)
        for job, process, _ in self._jobs:
            keep_error(self.place, job, process.wait())
        self._jobs.clear()


def keep_error(place: Place, job: Job, status: int) -> None:
    """Keeps what a failed run printed; removes what other runs printed.

    Raises UsageError if another process trains the run.
    """
    printed = place.printed(*job)
    if status == 0 or status in STOPPED or not printed.exists():
        printed.unlink(missing_ok=True)
        return
    text = printed.read_text(encoding="utf-8", errors="replace")
    if f"is {BUSY}" in text or f"being {BUSY}" in text:
        printed.unlink()
        raise UsageError(
            f"{place.run(*job)} is trained by another process: wait until it has ended, and run "
            "this command again."
        )
    if status < 0:
        text += f"\nkilled by signal {-status}\n"
    atomic.write(place.error(*job), text)
    printed.unlink()


class RayTasks:
    """Runs on a Ray cluster, one task for each. All machines must see the same files."""

    def __init__(self, place: Place, threads: int = 1, at_once: int = 0) -> None:
        """Connects to the cluster. Raises ConfigError if Ray is not installed or not running."""
        ray = connected_ray("processes")
        self._ray, self.place, self.threads = ray, place, threads
        n_fit = int(ray.cluster_resources().get("CPU", 1)) // threads
        self._most = at_once or max(1, n_fit)
        self._task = ray.remote(_run_here).options(num_cpus=threads, max_retries=0)
        self._jobs: dict[Any, Job] = {}

    @property
    def free(self) -> bool:
        return len(self._jobs) < self._most

    @property
    def running(self) -> list[Job]:
        return list(self._jobs.values())

    def start(self, job: Job) -> None:
        place = self.place
        words = command_of(place, job)[1:]
        printed = str(place.printed(*job).resolve())
        self._jobs[self._task.remote(os.getcwd(), words, printed, self.threads)] = job

    def ended(self) -> Iterator[Job]:
        if not self._jobs:
            return
        for task in self._ray.wait(list(self._jobs), timeout=0)[0]:
            job = self._jobs.pop(task)
            try:
                keep_error(self.place, job, self._ray.get(task))
            except self._ray.exceptions.RayError as error:
                atomic.write(self.place.error(*job), f"the Ray task failed: {error}\n")
            yield job

    def stop(self) -> None:
        for task in self._jobs:
            self._ray.cancel(task)  # KeyboardInterrupt in the task, which stops its process
        for task in self._jobs:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.get(task)
        self._jobs.clear()


def _run_here(folder: str, words: list[str], printed: str, threads: int) -> int:
    """The body of a Ray task: runs a command of lmsmith and returns its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with Path(printed).open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            return process.wait()


def slurm_script(place: Place, jobs: Sequence[Job], threads: int, at_once: int) -> str:
    """A SLURM job array, one task for each run. A task that is submitted again resumes its run."""
    names = " ".join(shlex.quote(place.run(*job).name) for job in jobs)
    most = f"%{at_once}" if at_once else ""
    out = shlex.quote(str(place.out.resolve()))
    return f"""#!/bin/bash
#SBATCH --job-name=lmsmith-study
#SBATCH --array=0-{len(jobs) - 1}{most}
#SBATCH --cpus-per-task={threads}
#SBATCH --output=/dev/null
names=({names})
name=${{names[$SLURM_ARRAY_TASK_ID]}}
cd {shlex.quote(os.getcwd())}
out={out}
export OMP_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}
summary="$out/runs/$name/summary.json"
[ -e "$summary" ] && ! grep -q '"signal": "' "$summary" && exit
words=(train "$out/recipes/$name.toml" --out "$out/runs/$name")
[ -e "$out/runs/$name/config.toml" ] && words=(resume "$out/runs/$name")
{shlex.quote(sys.executable)} -m lmsmith "${{words[@]}}" > "$out/errors/$name.running" 2>&1
status=$?
case $status in
  0 | 130 | 143) rm "$out/errors/$name.running" ;;
  *) mv "$out/errors/$name.running" "$out/errors/$name.txt" ;;
esac
exit $status
"""


def _end_with_parent() -> None:
    """In a new process: SIGTERM, with which a run saves and stops, when the parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
