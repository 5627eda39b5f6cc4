"""Checks whether a step gives bit-identical numbers with another number of threads.

Most kernels divide rows or columns among threads, and one thread computes each number. Some kernels
add up partial results of all threads, so their last bits depend on the number of threads. Which
kernels do so depends on the processor, the library and the shapes. So the check makes a real step
of the run twice and undoes it.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from lmsmith.data.batches.windows import AnyBatches
from lmsmith.machine.limits import free_memory
from lmsmith.models import kernels
from lmsmith.optim.groups import Optimizers
from lmsmith.train.guard import SpikeError
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

SPARE = 2.0  # this many times the memory of a check must be free


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
) -> bool:
    """Returns whether step `step` and `score()` give the same bits with threads[0] and threads[1]
    threads.

    Restores the weights and the state of the optimizers, and leaves threads[1] threads set. Returns
    False if there is too little memory to check.
    """
    assert isinstance(replica.optimizers, Optimizers)
    state = [p.detach() for p in replica.model.parameters()] + list(
        replica.optimizers.state().values()
    )
    # Held at once: a copy of the state before, and the gradients.
    needed = 2 * sum(tensor.numel() * tensor.element_size() for tensor in state)
    free = free_memory()
    if free and free < SPARE * needed:
        return False
    before = [tensor.clone() for tensor in state]
    found: list[bytes] = []
    try:
        for n in threads:
            use_threads(n, threads[1])
            numbers = train_step(replica, batches, step, n_steps)
            scored = score()
            values = [torch.tensor([*numbers.values(), scored], dtype=torch.float64)]
            found.append(digest(values + state))  # a copy would take as much memory as the state
            restore(state, before)
    except SpikeError:
        return False
    finally:
        replica.optimizers.clear()
        restore(state, before)
        use_threads(threads[1], threads[1])
    return found[0] == found[1]


def digest(tensors: list[Tensor]) -> bytes:
    """Returns a hash of the bytes of CPU tensors, which tells -0.0 from 0.0."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


@torch.no_grad()
def restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
