"""Measures the speeds that decide how long a training step takes on this machine's CPU.

About two seconds. Each figure is the best of several short measurements: other programs only ever
lengthen one. They interrupt long operations in every measurement, so with one thread its processor
time counts, which does not include interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from lmsmith.machine.products import choose_matmul, use_matmul

WIDTHS = (64, 128, 256, 512, 1024, 2048)
TOKENS = 1024
SECONDS = 0.12  # per figure


def measure(threads: int) -> dict[str, Any]:
    """Speeds by name, in FLOP/s, bytes/s, numbers/s and seconds; see `plan/here.py`."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads)
        matmul = choose_matmul()[0]
        use_matmul(matmul)
        by_width = {str(width): _products(width) for width in WIDTHS}
        return {
            "products": {"float32": by_width["1024"]},
            "by_width": by_width,
            "attention": _attention(),
            "copy": _copy(1 << 25),
            "small": _copy(1 << 17),
            "exponential": _exponential(),
            "overhead": _overhead(),
            "matmul": matmul,
        }
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def _products(width: int) -> float:
    a, b = torch.randn(TOKENS, width), torch.randn(4 * width, width)
    out = torch.empty(TOKENS, 4 * width)
    return 8 * TOKENS * width * width / _best(lambda: torch.mm(a, b.T, out=out))


def _attention() -> float:
    q, k = torch.randn(32, 128, 64), torch.randn(32, 256, 64)
    out = torch.empty(32, 128, 256)
    return 2 * 32 * 128 * 256 * 64 / _best(lambda: torch.bmm(q, k.mT, out=out))


def _copy(n: int) -> float:
    a, b, c = torch.randn(n), torch.randn(n), torch.empty(n)
    return 12 * n / _best(lambda: torch.add(a, b, out=c))


def _exponential() -> float:
    x, y = torch.randn(512, 512), torch.empty(512, 512)
    return x.numel() / _best(lambda: torch.softmax(x, -1, out=y))


def _overhead() -> float:
    x = torch.randn(16, requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(50):
            y = y * 1.5
        y.sum().backward()

    return _best(step) / 50


def _best(work: Callable[[], object]) -> float:
    """The shortest time of one call, in seconds."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    best, ends = float("inf"), time.perf_counter() + SECONDS
    while True:
        began = clock()
        work()
        best = min(best, clock() - began)
        if time.perf_counter() > ends:
            return best
