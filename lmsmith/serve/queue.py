"""The queue of sequences that wait for a slot: bounded, and fair between clients.

A client is an address. `take` gives addresses a turn each, and the users of one address (the field
`user` of a request) among themselves.

A client may have at most as many places as are free. So a single client fills at most half of the
queue, two clients a third each, and a new client finds a place however much the others ask for
(dynamic thresholds; Choudhury and Hahne 1998, with alpha = 1). The same holds for the tokens of
prompts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from lmsmith.serve.errors import ApiError, busy
from lmsmith.serve.jobs import Job

MOST_TOKENS = 1 << 21
"""Tokens of prompts in the queue, about 80 MB."""


class Queue:
    """The waiting jobs. The caller holds a lock."""

    def __init__(self, max_jobs: int) -> None:
        self.max_jobs = max_jobs
        self.n_jobs = 0
        self._jobs: OrderedDict[str, deque[Job]] = OrderedDict()  # by client and user
        self._turns: dict[str, int] = {}  # the last turn of each address
        self._n_turns = 0

    def __iter__(self) -> Iterator[Job]:
        return (job for jobs in self._jobs.values() for job in jobs)

    def refusal(self, jobs: Sequence[Job], seconds: int) -> ApiError | None:
        """Why a request's jobs get no place; None if they do. `seconds`: until there may be one."""
        client = address(jobs[0].client)
        own = [job for job in self if address(job.client) == client]
        free = self.max_jobs - self.n_jobs
        if len(own) + len(jobs) > free:
            return busy(
                f"{len(own)} sequences of this client wait and the queue has {free} free places of "
                f"{self.max_jobs}: a client may have as many as are free. Try again later.",
                seconds,
            )
        if n_tokens((*own, *jobs)) > MOST_TOKENS - n_tokens(self):
            return busy("the prompts that wait are long: try again later.")
        return None

    def add(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._jobs.setdefault(job.client, deque()).append(job)
        self.n_jobs += len(jobs)

    def take(self, has_slot: Callable[[Job], bool]) -> Job | None:
        """Removes and returns the next job that has a slot."""
        for client in sorted(self._jobs, key=self._last_turn):
            for job in self._jobs[client]:
                if has_slot(job):
                    self._jobs.move_to_end(client)
                    self._n_turns += 1
                    self._turns[address(client)] = self._n_turns
                    self.remove(job)
                    return job
        if not self._jobs:
            self._turns.clear()
        return None

    def remove(self, job: Job) -> None:
        """Removes a job; one that does not wait is no error."""
        jobs = self._jobs.get(job.client)
        if not jobs or job not in jobs:
            return
        jobs.remove(job)
        self.n_jobs -= 1
        if not jobs:
            del self._jobs[job.client]

    def _last_turn(self, client: str) -> int:
        return self._turns.get(address(client), 0)


def address(client: str) -> str:
    """The address of a client, which may be followed by a user."""
    return client.partition(" ")[0]


def n_tokens(jobs: Iterable[Job]) -> int:
    """Tokens of the jobs' prompts; prompts that several share count once."""
    return sum({id(job.request.ids): len(job.request.ids) for job in jobs}.values())
