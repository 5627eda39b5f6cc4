"""What this machine can do: its rate of matrix products, and which library does them fastest."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# A product whose shape small models have: 2048 tokens, width 384, feed-forward 1536. A GPU has as
# many cores as such a product has rows, so there one of a large model.
SHAPE, GPU_SHAPE = (2048, 384, 1536), (16384, 4096, 4096)


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of one matrix product at a model's shape, as things are
    set now.
    """
    m, k, n = shape = GPU_SHAPE if device.type == "cuda" else SHAPE
    a, b = (x.to(device, dtype) for x in _operands(shape))
    return 2 * m * k * n / _least_seconds(lambda: torch.mm(a, b.T), device)


def choose_matmul() -> tuple[str, str]:
    """Whether PyTorch's CPU products should go to oneDNN instead of its default BLAS, and why, in a
    phrase.

    `torch.set_float32_matmul_precision("medium")` lets oneDNN take float32 products. On processors
    without bfloat16 tiles it computes them in plain float32, and on some (AMD's) a third faster
    than the default, MKL. Where it would round to bfloat16, the error shows and it is not taken.
    """
    a, b = _operands(SHAPE)
    before = torch.get_float32_matmul_precision()
    seconds: dict[str, float] = {}
    products: dict[str, torch.Tensor] = {}
    try:
        for name, precision in (("default", "highest"), ("onednn", "medium")) * 2:
            torch.set_float32_matmul_precision(precision)
            products[name] = torch.mm(a, b.T)
            found = _least_seconds(lambda: torch.mm(a, b.T), torch.device("cpu"))
            seconds[name] = min(found, seconds.get(name, found))
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
    return "onednn", f"oneDNN multiplies {gain:.2f} times as fast here, in float32"


def use_matmul(name: str, dtype: str = "float32") -> None:
    """Sets for this process what `choose_matmul` chose, and on GPUs TF32 where `dtype` says so."""
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
    """The least of `n` times after a first that does not count: what other programs take away
    only adds to a time.
    """
    times = []
    for _ in range(n + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
