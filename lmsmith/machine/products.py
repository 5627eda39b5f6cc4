"""Measures the speed of matrix products, and which library computes them fastest."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# (tokens, width, feed-forward width) of a small model's matrix product. It would not fill a GPU,
# which gets the shape of a large model.
SHAPE, GPU_SHAPE = (2048, 384, 1536), (16384, 4096, 4096)


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Measured floating-point operations per second of one matrix product at a model's shape, with
    the current settings.
    """
    m, k, n = shape = GPU_SHAPE if device.type == "cuda" else SHAPE
    a, b = (x.to(device, dtype) for x in _operands(shape))
    return 2 * m * k * n / _least_seconds(lambda: torch.mm(a, b.T), device)


def choose_matmul() -> tuple[str, str]:
    """Measures whether oneDNN should compute PyTorch's CPU products instead of the default BLAS.

    Returns the choice ("onednn" or "default") and the reason, as a phrase.

    `torch.set_float32_matmul_precision("medium")` lets oneDNN compute float32 products. On
    processors without bfloat16 tiles it computes them in plain float32, on some (AMD's) a third
    faster than the default, MKL. If it would round to bfloat16, the error shows that, and the
    default is kept.
    """
    a, b = _operands(SHAPE)
    before = torch.get_float32_matmul_precision()
    seconds: dict[str, float] = {}
    products: dict[str, torch.Tensor] = {}
    try:
        for name, precision in (("default", "highest"), ("onednn", "medium")) * 2:
            torch.set_float32_matmul_precision(precision)
            products[name] = torch.mm(a, b.T)
            elapsed = _least_seconds(lambda: torch.mm(a, b.T), torch.device("cpu"))
            seconds[name] = min(elapsed, seconds.get(name, elapsed))
    finally:
        torch.set_float32_matmul_precision(before)
    difference = float(
        (products["onednn"] - products["default"]).norm() / products["default"].norm()
    )
    gain = seconds["default"] / seconds["onednn"]
    if difference > 1e-5:
        return "default", "oneDNN rounds to bfloat16 here"
    if gain < 1.05:
        return "default", f"oneDNN is no faster here ({gain:.2f} times)"
    return "onednn", f"oneDNN is {gain:.2f} times as fast here, in float32"


def use_matmul(name: str, dtype: str = "float32") -> None:
    """Applies the choice of `choose_matmul` to this process, and TF32 on GPUs if `dtype`
    is "tf32".
    """
    precision = "high" if dtype == "tf32" else "medium" if name == "onednn" else "highest"
    torch.set_float32_matmul_precision(precision)


@contextmanager
def fastest_matmul() -> Iterator[None]:
    """Float32 products on the CPU by the library that measures faster; restored afterwards.

    The measurement is made once in a process. Both libraries compute in float32, so results differ
    by rounding alone.
    """
    before = torch.get_float32_matmul_precision()
    try:
        use_matmul(_chosen())
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _chosen() -> str:
    return choose_matmul()[0]


def _operands(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)


def _least_seconds(work: Callable[[], object], device: torch.device, n: int = 4) -> float:
    """Returns the shortest of `n` timed calls after one untimed call, in seconds. Other programs
    only ever lengthen a measurement.
    """
    times = []
    for _ in range(n + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
