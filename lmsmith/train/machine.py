"""The machine a run is on: which device, how fast it multiplies, and this process set up for it."""

import ctypes
import sys
from dataclasses import dataclass

import torch

from lmsmith.accounting.measure import choose_matmul, matmul_rate, use_matmul
from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError
from lmsmith.limits import n_cores, set_threads
from lmsmith.parallel.process import Ranks

BFLOAT16_GAIN = 1.3  # less than this in products alone is lost again in conversions

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Machine:
    """Where a run goes and in what precision. `flops`: of matrix products in it, a second, measured."""

    device: torch.device
    threads: int
    matmul: str
    dtype: str
    flops: float
    reason: str  # why this precision and this library


def survey(config: RunConfig, ranks: Ranks | None = None) -> Machine:
    """Looks at this machine (a fifth of a second) and sets the process up for it. Raises ConfigError.

    Of several `ranks` each has a GPU, or its share of the machine's cores.
    """
    ranks = ranks or Ranks()
    wanted = device_name(config)
    try:
        device = ranks.device if ranks.world > 1 else torch.device(wanted)
        torch.empty(1, device=device)
        if device.index is not None:  # what is not said where goes there as well
            torch.accelerator.set_device_index(device.index)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"train.device = {config.train.device!r} cannot be used here ({why}). Use cpu or auto."
        ) from error
    # torchrun sets OMP_NUM_THREADS to 1 unasked.
    asked = set_threads() if ranks.world == 1 else 0
    threads = config.train.threads or asked or max(1, n_cores() // ranks.here)
    torch.set_num_threads(threads)
    keep_freed_memory()
    matmul, reason = str(config.train.matmul), "as asked"
    if matmul == "auto":
        matmul, reason = (
            choose_matmul() if device.type == "cpu" else ("default", "the device's own")
        )
    dtype = str(config.train.dtype)
    if dtype == "auto" and config.model.recurrent:
        dtype = "float32"  # a state is read on and on, and rounding would add up
    if dtype == "tf32" and device.type != "cuda":
        raise ConfigError(
            "train.dtype = 'tf32' is a mode of NVIDIA's GPUs, and this is none. Use float32 or auto."
        )
    use_matmul(matmul, dtype)
    flops = {"tf32" if dtype == "tf32" else "float32": matmul_rate(device)}
    if dtype in ("auto", "bfloat16", "float16"):
        half = dtype if dtype != "auto" else "bfloat16" if has_bfloat16(device) else "float16"
        flops[half] = matmul_rate(device, getattr(torch, half))
        if dtype == "auto":
            gain = flops[half] / flops["float32"]
            dtype = half if gain > BFLOAT16_GAIN else "float32"
            reason = (
                f"{half} products are {gain:.2f} times as fast here" if dtype == half else reason
            )
    return Machine(device, threads, matmul, dtype, flops.get(dtype, max(flops.values())), reason)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has it itself: before Ampere GPUs only imitate it, and have float16 alone."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def device_name(config: RunConfig) -> str:
    """The device that is asked for; the best there is, where it is left open."""
    if config.train.device != "auto":
        return config.train.device
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next allocation instead of giving them back to the system.

    Every step frees and allocates the same activations. Blocks of some megabytes would be unmapped and mapped anew each
    time, and the system clears every page of them: a tenth of a small model's step. Elsewhere than on glibc: nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_TOP_PAD, 1 << 26)
