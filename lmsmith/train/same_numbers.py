"""Checks whether a step gives bit-identical numbers with another number of threads.

Most kernels divide rows or columns among threads, and one thread computes each number. Some kernels
add up partial results of all threads, so their last bits depend on the number of threads. Which
kernels do so depends on the processor, the library and the shapes. So the check makes a real step
of the run twice and undoes it. A file holds the state from before the step: a copy in memory would
raise the peak memory of the run.
"""

import contextlib
import errno
import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from lmsmith.data.batches.windows import AnyBatches
from lmsmith.errors import StorageError
from lmsmith.machine.heap import release_freed_memory
from lmsmith.models import kernels
from lmsmith.optim.groups import Optimizers
from lmsmith.train.guard import SpikeError
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step


def use_threads(threads: int, most: int) -> None:
    """Sets PyTorch's threads; our kernels still compute as with `most` threads."""
    torch.set_num_threads(threads)
    kernels.layer_norm_threads = most if threads != most else 0


def can_be_checked(replica: Replica) -> bool:
    """Returns whether a step of this run can be repeated and undone: one CPU process, in
    PyTorch.
    """
    config = replica.config
    return (
        replica.device.type == "cpu"
        and replica.ranks.world == 1
        and isinstance(replica.optimizers, Optimizers)
        and replica.carried is None
        and replica.objective.is_cross_entropy
        and config.train.compile != "yes"
        and config.train.dtype != "float16"  # its gradient scale changes from step to step
        # One step represents all others only if all have the same shapes.
        and config.data.documents == "stream"
        and not config.train.initial_batch_size
    )


def same_numbers(
    replica: Replica,
    batches: AnyBatches,
    step: int,
    n_steps: int,
    threads: tuple[int, int],
    score: Callable[[], float],
    folder: Path,
) -> bool:
    """Returns whether step `step` and `score()` give the same bits with threads[0] and threads[1]
    threads.

    Restores the weights and the state of the optimizers, and leaves threads[1] threads set.
    `folder`: holds a nameless file with the state in the meantime. Returns False if the file cannot
    be written, for example because the disk is full.
    """
    assert isinstance(replica.optimizers, Optimizers)
    state = [p.detach() for p in replica.model.parameters()] + list(
        replica.optimizers.state().values()
    )
    try:
        before = _written(state, folder)
    except OSError:
        return False
    found: list[bytes] = []
    with before:
        try:
            for n in threads:
                if found:
                    replica.optimizers.clear()
                    read(before, state)
                use_threads(n, threads[1])
                numbers = train_step(replica, batches, step, n_steps)
                release_freed_memory()  # the evaluation needs blocks of other sizes
                scored = score()
                values = [torch.tensor([*numbers.values(), scored], dtype=torch.float64)]
                found.append(digest(values + state))
        except SpikeError:
            return False
        finally:
            replica.optimizers.clear()
            read(before, state)
            use_threads(threads[1], threads[1])
            release_freed_memory()
    return found[0] == found[1]


def digest(tensors: list[Tensor]) -> bytes:
    """Returns a hash of the bytes of CPU tensors, which tells -0.0 from 0.0."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(_bytes(tensor))
    return found.digest()


def _written(tensors: list[Tensor], folder: Path) -> BinaryIO:
    """Writes the bytes of CPU tensors to a nameless file. Raises OSError."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        for tensor in tensors:
            file.write(_bytes(tensor.contiguous()))
        file.flush()
    except OSError:
        with contextlib.suppress(OSError):
            file.close()
        raise
    return cast(BinaryIO, file)


@torch.no_grad()
def read(file: BinaryIO, tensors: list[Tensor]) -> None:
    """Reads what `_written` has written, into the same tensors. Raises StorageError."""
    try:
        file.seek(0)
        for tensor in tensors:
            values = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            n_bytes = cast(io.BufferedRandom, file).readinto(_bytes(values))
            if n_bytes != values.nbytes:
                raise OSError(errno.EIO, "the file is shorter than what was written")
            tensor.copy_(values)
    except OSError as error:
        raise StorageError(
            f"cannot read back the state of the run from a temporary file: {error.strerror}. "
            "Check the disk, and resume the run from its last checkpoint."
        ) from error


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
