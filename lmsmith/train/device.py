"""The machine a run is on: which device, how fast it multiplies.

`survey` looks and leaves the process as it was; `set_up_process` is the one place that changes it.
"""

import ctypes
import sys
from dataclasses import dataclass

import torch

from lmsmith.config import RunConfig
from lmsmith.distributed.ranks import Ranks
from lmsmith.errors import ConfigError
from lmsmith.machine.limits import n_cores, set_threads
from lmsmith.machine.products import choose_matmul, matmul_rate, use_matmul
from lmsmith.train.same_numbers import use_threads

BFLOAT16_GAIN = 1.3  # less than this in products alone is lost again in conversions

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Machine:
    """Where a run goes and in what precision. `flops`: of matrix products in it, a second,
    measured.
    """

    device: torch.device
    threads: int
    matmul: str
    dtype: str
    flops: float
    reason: str  # why this precision and this library


def survey(config: RunConfig, ranks: Ranks | None = None) -> Machine:
    """Measures this machine (a fifth of a second). Raises ConfigError.

    Under several `ranks` each has a GPU, or its share of the machine's cores.
    """
    ranks = ranks or Ranks()
    wanted = device_name(config)
    try:
        device = ranks.device if ranks.world > 1 else torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"train.device = {config.train.device!r} cannot be used here ({why}). Use cpu or auto."
        ) from error
    # torchrun sets OMP_NUM_THREADS to 1 unasked.
    asked = set_threads() if ranks.world == 1 else 0
    threads = config.train.threads or asked or max(1, n_cores() // ranks.here)
    if config.train.dtype == "tf32" and device.type != "cuda":
        raise ConfigError(
            "train.dtype = 'tf32' is a mode of NVIDIA's GPUs, and this is none. Use float32 or "
            "auto."
        )
    threads_before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads)
        return _measured(config, device, threads)
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(precision)


def set_up_process(machine: Machine) -> None:
    """Sets what holds for this whole process: device, threads, matrix products, freed memory.

    A command calls it once, before it builds a model.
    """
    if machine.device.type != "cpu" and machine.device.index is not None:
        torch.accelerator.set_device_index(machine.device.index)
    use_threads(machine.threads, machine.threads)
    use_matmul(machine.matmul, machine.dtype)
    keep_freed_memory()


def _measured(config: RunConfig, device: torch.device, threads: int) -> Machine:
    """Chooses library and precision of matrix products, and measures their rate."""
    matmul, reason = str(config.train.matmul), "as asked"
    if matmul == "auto":
        on_cpu = device.type == "cpu"
        matmul, reason = choose_matmul() if on_cpu else ("default", "the device's own")
    dtype = str(config.train.dtype)
    if dtype == "auto" and config.model.recurrent:
        dtype = "float32"  # a state is read on and on, and rounding would add up
    use_matmul(matmul, dtype)
    flops = {"tf32" if dtype == "tf32" else "float32": matmul_rate(device)}
    if dtype in ("auto", "bfloat16", "float16"):
        half = dtype
        if dtype == "auto":
            half = "bfloat16" if has_bfloat16(device) else "float16"
        flops[half] = matmul_rate(device, getattr(torch, half))
        if dtype == "auto":
            gain = flops[half] / flops["float32"]
            dtype = half if gain > BFLOAT16_GAIN else "float32"
            if dtype == half:
                reason = f"{half} products are {gain:.2f} times as fast here"
    rate = flops.get(dtype, max(flops.values()))
    return Machine(device, threads, matmul, dtype, rate, reason)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has it itself: before Ampere GPUs only imitate it, and have float16
    alone.
    """
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
    """Tells glibc to keep freed blocks for the next allocation instead of giving them back to the
    system.

    Every step frees and allocates the same activations. Blocks of some megabytes would be unmapped
    and mapped anew each time, and the system clears every page of them: a tenth of a small model's
    step. Elsewhere than on glibc: nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_TOP_PAD, 1 << 26)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the device where it has its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
