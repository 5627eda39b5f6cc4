"""Measures the peak memory of tensors exactly: every allocation and release of PyTorch's allocator.

On GPUs PyTorch counts by itself. On CPUs its profiler reports each allocation, inside operations
too. The resident size of a process is no substitute: it includes the libraries, and memory that the
allocator keeps.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Allocated:
    """Bytes of tensors allocated within the measurement: at most, and at its end."""

    peak: int = 0
    final: int = 0


@contextmanager
def allocations(device: torch.device) -> Iterator[Allocated]:
    """Measures the body of a `with` statement; the result is complete after it.

    Only what the body allocates counts. On CPUs each operation becomes slower.
    """
    found = Allocated()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.peak = torch.cuda.max_memory_allocated(device) - before
        found.final = torch.cuda.memory_allocated(device) - before
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it prints its start and stop otherwise
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what is freed inside the measurement would count as negative
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    for _, n_bytes in changes:
        found.final += n_bytes
        found.peak = max(found.peak, found.final)
