"""Two processes against one: the loss and every gradient of a batch, under DDP and FSDP2.

`rank_program.py` is the program of each process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lmsmith.verify.registry import Skipped, equivalence

SECONDS, GRACE = 600.0, 10.0  # of all, even on a busy machine; of torchrun to end its processes


@equivalence("two ranks", "loss and gradients of two processes; of one", bound=1e-11)
def two_ranks() -> float:
    if os.name == "nt" or not torch.distributed.is_available():
        raise Skipped("torch.distributed with Gloo is not available on this machine")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as place:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "lmsmith.verify.rank_program", place],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": place},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with _ended(process):
            _, said = process.communicate(timeout=SECONDS)
        results = [Path(place, rank) for rank in "01"]
        if process.returncode or not all(path.exists() for path in results):
            raise RuntimeError(f"torchrun ended with status {process.returncode}: {said[-500:]}")
        return float(np.max([float(path.read_text("ascii")) for path in results]))


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """If the block ends by Ctrl-C or a time limit, asks torchrun to end the processes that it
    started. (`subprocess.run` would kill torchrun alone and leave them behind.)
    """
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
