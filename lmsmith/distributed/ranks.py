"""The processes of a run: which of how many this one is, and the little they tell each other.

`torchrun --nproc-per-node 8 -m lmsmith train ...` starts one process a GPU (or, on CPUs, as many as
are asked for) and says to each in its environment which it is. Everything is the same in all of
them but the rows of the batch that they work on; rank 0 alone prints, and writes files.

    with joined(device) as ranks:          # alone: ranks of one, and nothing is joined
        loss = ranks.sum(loss)
        n_steps, stop = ranks.broadcast(n_steps, stop)

A process that dies is seen by torchrun, which ends the others; one that hangs, by whoever waits for
it, after PATIENCE. What the processes tell each other goes over Gloo, also between GPUs, whose NCCL
is for gradients and weights.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from lmsmith.errors import TrainingError, UsageError

_LOST = (
    "gloo/",
    "Connection closed",
    "Connection reset",
    "Timed out waiting",
    "NCCL",
)  # in Gloo's and NCCL's messages

PATIENCE = datetime.timedelta(seconds=60)
"""How long a process waits for the others before it says that one is lost."""

LONG = datetime.timedelta(minutes=30)
"""The same where one of them does something alone, such as saving, or each compiles."""

FOREVER = datetime.timedelta(days=7)
"""The same where a text is prepared."""


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world`, `local` of the `here` on its own machine.
    `device`: its own.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64, the same bits in all. TrainingError
        if one is lost.
        """
        return self._together(values, lambda tensor, group: dist.all_reduce(tensor, group=group))

    def max(self, *values: float) -> list[float]:
        """The maximum of each value over all ranks. TrainingError if one is lost."""
        return self._together(
            values, lambda tensor, group: dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
        )

    def broadcast(self, *values: float) -> list[float]:
        """Rank 0's values, on all ranks. TrainingError if one is lost."""
        return self._together(values, lambda tensor, group: dist.broadcast(tensor, 0, group=group))

    def wait(self, patience: datetime.timedelta = PATIENCE) -> None:
        """Until all are here. TrainingError if one is lost."""
        if self.world > 1:
            with lost_in_words(patience):
                dist.barrier(group=_talking(patience))

    def on_rank_zero(self, make: Callable[[], str], patience: datetime.timedelta = LONG) -> str:
        """Calls `make` on rank 0 while the other ranks wait; returns its result on all of them.

        Raises what `make` raises on rank 0, and TrainingError on the others.
        """
        if self.world == 1:
            return make()
        made: list[str | None] = [None]
        try:
            if self.first:
                made[0] = make()
        finally:
            with lost_in_words(patience):
                dist.broadcast_object_list(made, 0, group=_talking(patience))
        if made[0] is None:
            raise TrainingError("the first process could not go on: it says why.")
        return made[0]

    def rows(self, batch_size: int) -> tuple[int, int]:
        """From which row of a batch to which this process works; the batch size is a multiple of
        their number.
        """
        assert batch_size % self.world == 0
        share = batch_size // self.world
        return self.rank * share, (self.rank + 1) * share

    def _together(
        self, values: tuple[float, ...], act: Callable[[torch.Tensor, dist.ProcessGroup], object]
    ) -> list[float]:
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        with lost_in_words():
            act(tensor, _talking(PATIENCE))
            return list(tensor.tolist())


@functools.cache
def _talking(patience: datetime.timedelta) -> dist.ProcessGroup:
    """The same processes over the network of CPUs, which says in words what is lost. NCCL ends
    the process instead.
    """
    return dist.new_group(timeout=patience, backend="gloo")


@contextmanager
def lost_in_words(patience: datetime.timedelta = PATIENCE) -> Iterator[None]:
    """Puts the failures of torch.distributed, which come when a process is gone or hangs, into
    words.
    """
    try:
        yield
    except RuntimeError as error:  # DistError is one; Gloo's are plain
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _LOST):
            raise
        raise TrainingError(
            f"another process of this run is lost, or has not answered for "
            f"{patience.total_seconds():,.0f} s "
            f"({str(error).splitlines()[0][:200]}). The last checkpoint is whole: start the same "
            f"command with "
            "`lmsmith resume RUN`."
        ) from error


def place_in_environment(device_type: str = "cpu") -> Ranks:
    """What torchrun said of this process; one of one where nothing was said. UsageError for half
    of it.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if "WORLD_SIZE" not in found or found["WORLD_SIZE"] == "1":
        return Ranks()
    try:
        rank, world, local = (int(found[name]) for name in names)
        if not 0 <= rank < world or not 0 <= local < world:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the environment says "
            f"{', '.join(f'{name}={value}' for name, value in found.items())}: wanted RANK, "
            "WORLD_SIZE and LOCAL_RANK as torchrun sets them. Start with `torchrun "
            "--nproc-per-node N -m lmsmith ...`."
        ) from error
    device = torch.device("cpu")
    if (
        device_type.partition(":")[0] == "cuda"
    ):  # "cuda:0" too: of many processes each has one of its own
        device = torch.device("cuda", local)
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started process {local} of this machine, and it has "
                f"{torch.cuda.device_count()} GPUs: "
                "start as many processes (--nproc-per-node gpu), or set --train.device cpu."
            )
    return Ranks(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", world)), device)


@contextmanager
def joined(ranks: Ranks) -> Iterator[Ranks]:
    """Joins the processes for the length of the block: NCCL on GPUs, Gloo else. Alone there is
    nothing to join.
    """
    if ranks.world == 1:
        yield ranks
        return
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    with lost_in_words():
        store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun keeps its store when it starts lost processes again; in it are the addresses
            # of those before.
            store = dist.PrefixStore(
                f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
        dist.init_process_group(
            "nccl" if ranks.device.type == "cuda" else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=PATIENCE,
            device_id=ranks.device if ranks.device.type == "cuda" else None,
        )
    try:
        yield ranks
    finally:
        _talking.cache_clear()
        dist.destroy_process_group()
