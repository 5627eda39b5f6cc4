"""Chooses the device and the precision of a run, and measures its speed.

`survey` measures and leaves the process unchanged; only `set_up_process` changes it.
"""

import sys
from dataclasses import dataclass

import torch

from lmsmith.config import RunConfig
from lmsmith.distributed.ranks import Ranks
from lmsmith.errors import ConfigError
from lmsmith.machine.heap import keep_freed_memory, release_freed_memory
from lmsmith.machine.limits import n_cores, omp_threads
from lmsmith.machine.products import choose_matmul, matmul_rate, use_matmul
from lmsmith.train.same_numbers import use_threads

BFLOAT16_GAIN = 1.3  # a smaller speed-up is lost again in conversions


@dataclass(frozen=True)
class Machine:
    """Device and precision of a run. `flops`: measured FLOP/s of matrix products in that
    precision.
    """

    device: torch.device
    threads: int
    matmul: str
    dtype: str
    flops: float
    reason: str  # why this precision and this library were chosen


def survey(config: RunConfig, ranks: Ranks | None = None) -> Machine:
    """Measures this machine, in about 0.2 s. Raises ConfigError if the device is not available.

    With several `ranks`, each gets one GPU, or its share of the CPU cores.
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
    # torchrun sets OMP_NUM_THREADS to 1 by itself.
    asked = omp_threads() if ranks.world == 1 else 0
    threads = config.train.threads or asked or max(1, n_cores() // ranks.here)
    if config.train.dtype == "tf32" and device.type != "cuda":
        raise ConfigError(
            f"train.dtype = 'tf32' needs an NVIDIA GPU, and this device is {device.type}. Use "
            "float32 or auto."
        )
    threads_before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads)
        return _measured(config, device, threads)
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(precision)


def set_up_process(machine: Machine) -> None:
    """Sets device, threads, matrix-product library and memory allocator for the whole process.

    Call it once, before a model is built.
    """
    if machine.device.type != "cpu" and machine.device.index is not None:
        torch.accelerator.set_device_index(machine.device.index)
    use_threads(machine.threads, machine.threads)
    use_matmul(machine.matmul, machine.dtype)
    keep_freed_memory()
    release_freed_memory()  # of the measurement


def _measured(config: RunConfig, device: torch.device, threads: int) -> Machine:
    """Chooses library and precision of matrix products, and measures their rate."""
    matmul, reason = str(config.train.matmul), f"train.matmul = {config.train.matmul}"
    if matmul == "auto":
        on_cpu = device.type == "cpu"
        matmul, reason = choose_matmul() if on_cpu else ("default", "default library")
    dtype = str(config.train.dtype)
    if dtype == "auto" and config.model.recurrent:
        dtype = "float32"  # rounding errors would accumulate in the recurrent state
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
                reason = f"{half} is {gain:.2f} times as fast as float32 here"
    rate = flops.get(dtype, max(flops.values()))
    return Machine(device, threads, matmul, dtype, rate, reason)


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether the device supports bfloat16 natively. GPUs before Ampere only emulate it,
    and have float16 instead.
    """
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def device_name(config: RunConfig) -> str:
    """Returns the device that was set; for "auto" the best available one."""
    if config.train.device != "auto":
        return config.train.device
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU under CUDA, else of this process. 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not available on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
