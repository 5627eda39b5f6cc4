"""The heap of this process: how much freed memory the C library keeps (glibc on Linux).

Does nothing with other C libraries.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from typing import Any

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for later allocations.

    Every step frees and allocates the same activations. By default, glibc unmaps and maps blocks of
    some megabytes each time, and the kernel clears every page: a tenth of a small model's step.
    """
    if (mallopt := _from_glibc("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_TOP_PAD, 1 << 26)


def release_freed_memory() -> None:
    """Returns all freed memory to the system, after work whose memory is not needed again."""
    if (trim := _from_glibc("malloc_trim")) is not None:
        gc.collect()
        trim(0)


@functools.cache
def _from_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
