"""Two processes against one: the loss and every gradient of a batch, under DDP and FSDP2.

`rank_program.py` is the program of each process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from lmsmith.verify.registry import Skipped, equivalence

SECONDS = 120.0


@equivalence("two ranks", "loss and gradients of two processes; of one", bound=1e-11)
def two_ranks() -> float:
    if os.name == "nt" or not torch.distributed.is_available():
        raise Skipped("torch.distributed with Gloo is not available on this machine")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "lmsmith.verify.rank_program", place],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        found = [float(path.read_text("ascii")) for path in Path(place).iterdir()]
    if done.returncode or len(found) != 2:
        raise RuntimeError(f"torchrun ended with status {done.returncode}: {done.stderr[-500:]}")
    return float(np.max(found))
