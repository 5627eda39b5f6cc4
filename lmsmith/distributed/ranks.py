"""The processes (ranks) of a run, and the collectives they use.

`torchrun --nproc-per-node 8 -m lmsmith train ...` starts one process per GPU (or, on CPUs, as many
as requested) and sets each one's rank in its environment. All ranks do the same work on different
rows of each batch. Only rank 0 prints and writes files.

    with joined(device) as ranks:          # a single process has world size 1 and joins nothing
        loss = ranks.sum(loss)
        n_steps, stop = ranks.broadcast(n_steps, stop)

If a process dies, torchrun ends the others. If one hangs, the others raise TrainingError after
PATIENCE. These collectives use Gloo, also between GPUs; NCCL carries gradients and weights only.
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
)  # parts of Gloo's and NCCL's error messages

PATIENCE = datetime.timedelta(seconds=60)
"""Time that a process waits for the others before it reports one as lost."""

LONG = datetime.timedelta(minutes=30)
"""Timeout while one rank does something alone, such as saving, or each rank compiles."""

FOREVER = datetime.timedelta(days=7)
"""Timeout while text is prepared."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank: `rank` of `world` processes, `local` of `here` processes on this
    machine, and its `device`.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Returns the sum of each value over all ranks, in float64, bit-identical on all.
        TrainingError if a rank is lost.
        """
        return self._together(values, lambda tensor, group: dist.all_reduce(tensor, group=group))

    def max(self, *values: float) -> list[float]:
        """Returns the maximum of each value over all ranks. TrainingError if a rank is lost."""
        return self._together(
            values, lambda tensor, group: dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
        )

    def broadcast(self, *values: float) -> list[float]:
        """Rank 0's values, on all ranks. TrainingError if a rank is lost."""
        return self._together(values, lambda tensor, group: dist.broadcast(tensor, 0, group=group))

    def wait(self, patience: datetime.timedelta = PATIENCE) -> None:
        """Barrier: waits until all ranks call it. TrainingError if a rank is lost."""
        if self.world > 1:
            with explain_lost_process(patience):
                dist.barrier(group=_talking(patience))

    def on_rank_zero(self, make: Callable[[], str], patience: datetime.timedelta = LONG) -> str:
        """Calls `make` on rank 0 while the other ranks wait; returns its result on all of them.

        Raises the errors of `make` on rank 0, and TrainingError on the others.
        """
        if self.world == 1:
            return make()
        result: list[str | None] = [None]
        try:
            if self.first:
                result[0] = make()
        finally:
            with explain_lost_process(patience):
                dist.broadcast_object_list(result, 0, group=_talking(patience))
        if result[0] is None:
            raise TrainingError("rank 0 failed: see its error message.")
        return result[0]

    def rows(self, batch_size: int) -> tuple[int, int]:
        """First row and end row of the batch rows that this rank works on. The batch size must be
        divisible by the world size.
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
        with explain_lost_process():
            act(tensor, _talking(PATIENCE))
            return list(tensor.tolist())


@functools.cache
def _talking(patience: datetime.timedelta) -> dist.ProcessGroup:
    """Returns a Gloo group of all processes. Gloo raises an error that says what is lost, where
    NCCL ends the process.
    """
    return dist.new_group(timeout=patience, backend="gloo")


@contextmanager
def explain_lost_process(patience: datetime.timedelta = PATIENCE) -> Iterator[None]:
    """Turns torch.distributed's errors about a dead or hanging process into TrainingError."""
    try:
        yield
    except RuntimeError as error:  # DistError is one; Gloo's are plain
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _LOST):
            raise
        raise TrainingError(
            "another process of this run was lost, or has not answered for "
            f"{patience.total_seconds():,.0f} s ({str(error).splitlines()[0][:200]}). The last "
            "checkpoint is complete. Resume with the same torchrun options: `torchrun ... -m "
            "lmsmith resume RUN`."
        ) from error


def ranks_from_environment(device_type: str = "cpu") -> Ranks:
    """Reads this process's rank from torchrun's environment variables; rank 0 of 1 without them.
    Raises UsageError if they are incomplete or invalid.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    if "WORLD_SIZE" not in variables or variables["WORLD_SIZE"] == "1":
        return Ranks()
    try:
        rank, world, local = (int(variables[name]) for name in names)
        if not 0 <= rank < world or not 0 <= local < world:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise UsageError(
            "the environment has "
            f"{', '.join(f'{name}={value}' for name, value in variables.items())}. Expected RANK, "
            "WORLD_SIZE and LOCAL_RANK as torchrun sets them: start with `torchrun "
            "--nproc-per-node N -m lmsmith ...`."
        ) from error
    device = torch.device("cpu")
    # "cuda:0" too: with several processes, each has a GPU of its own
    if device_type.partition(":")[0] == "cuda":
        device = torch.device("cuda", local)
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started process {local} on this machine, which has "
                f"{torch.cuda.device_count()} GPUs. Start one process per GPU (--nproc-per-node "
                "gpu), or set --train.device cpu."
            )
    return Ranks(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", world)), device)


@contextmanager
def joined(ranks: Ranks, patience: datetime.timedelta = PATIENCE) -> Iterator[Ranks]:
    """Joins the process group during the block: NCCL on GPUs, Gloo otherwise. A single process
    joins nothing. `patience`: timeout of joining, and of collectives on gradients and weights.
    """
    if ranks.world == 1:
        yield ranks
        return
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    with explain_lost_process(patience):
        store, *_ = next(dist.rendezvous("env://", timeout=patience))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun reuses its store when it restarts processes, and the store still holds the
            # addresses of the earlier ones: a prefix per restart keeps them apart.
            store = dist.PrefixStore(
                f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
        dist.init_process_group(
            "nccl" if ranks.device.type == "cuda" else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=patience,
            device_id=ranks.device if ranks.device.type == "cuda" else None,
        )
    try:
        yield ranks
    finally:
        _talking.cache_clear()
        dist.destroy_process_group()
