"""Checks whether a step gives the same numbers, bit by bit, with another number of threads.

Most kernels share out rows or columns among threads, and each number is computed as by one thread.
Some kernels add up what each thread has found, and their last bits depend on the number of threads.
Which kernels do so depends on the processor, the library and the shapes. So the check makes a real
step of the run twice and takes it back.
"""

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

SPARE = 2.0  # times the memory that a check needs must be free


def use_threads(threads: int, most: int) -> None:
    """Sets PyTorch's threads; where it can be, the numbers are those of `most` threads."""
    torch.set_num_threads(threads)
    kernels.layer_norm_threads = most if threads != most else 0


def can_be_checked(replica: Replica) -> bool:
    """Whether a step of this run can be made twice: on one CPU process, in PyTorch."""
    config = replica.config
    return (
        replica.device.type == "cpu"
        and replica.ranks.world == 1
        and isinstance(replica.optimizers, Optimizers)
        and replica.carried is None
        and config.train.compile != "yes"
        and config.train.dtype != "float16"  # its gradient scale is a state
        # Only if every step has the same shapes does one step speak for all.
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
    """Whether step `step` and `score()` give the same bits with threads[0] and threads[1] threads.

    The weights and the state of the optimizers are then as before. threads[1] is what they are
    compared with, and what is set afterwards. False where memory does not suffice.
    """
    assert isinstance(replica.optimizers, Optimizers)
    state = [p.detach() for p in replica.model.parameters()] + list(
        replica.optimizers.state().values()
    )
    # Held at once: a copy from before, the result of one number of threads, the gradients.
    needed = 3 * sum(tensor.numel() * tensor.element_size() for tensor in state)
    free = free_memory()
    if free and free < SPARE * needed:
        return False
    before = [tensor.clone() for tensor in state]
    found: list[list[Tensor]] = []
    try:
        for n in threads:
            use_threads(n, threads[1])
            numbers = train_step(replica, batches, step, n_steps)
            scored = score()
            values = [torch.tensor([*numbers.values(), scored], dtype=torch.float64)]
            found.append(values + [tensor.clone() for tensor in state])
            restore(state, before)
    except SpikeError:
        return False
    finally:
        replica.optimizers.clear()
        restore(state, before)
        use_threads(threads[1], threads[1])
    return all(map(same_bits, *found))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes, of -0.0 and NaN as well."""
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@torch.no_grad()
def restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
