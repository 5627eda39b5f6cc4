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
LAUNCHER = (
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:0",  # any free port
    "--local-addr=127.0.0.1",  # else torchrun looks up the host name, which need not be known
)


@equivalence("two ranks", "DDP and FSDP; one process", bound=1e-11)
def two_ranks() -> float:
    if os.name == "nt" or not torch.distributed.is_available():
        raise Skipped("torch.distributed with Gloo is not available on this machine")
    with tempfile.TemporaryDirectory() as place:
        process = subprocess.Popen(
            [sys.executable, "-m", *LAUNCHER, "-m", "lmsmith.verify.rank_program", place],
            cwd=place,
            env=_environment(place),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with _ended(process):
            _, said = process.communicate(timeout=SECONDS)
        errors = [path.read_text("utf-8") for path in sorted(Path(place).glob("*.error"))]
        results = [Path(place, rank) for rank in "01"]
        if process.returncode or not all(path.exists() for path in results):
            why = "; ".join(errors) or said[-500:]
            raise RuntimeError(f"torchrun ended with status {process.returncode}: {why}")
        return float(np.max([float(path.read_text("ascii")) for path in results]))


def _environment(place: str) -> dict[str, str]:
    """The environment of torchrun, without the user's settings of it and of the process group.

    Modules are imported from the same folders as here: a file such as queue.py in the user's folder
    would replace Python's.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PET_", "TORCHELASTIC_", "GLOO_", "MASTER_", "TORCH_DISTRIBUTED_"))
    }
    modules = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return ours | {"OMP_NUM_THREADS": "1", "TMPDIR": place, "PYTHONPATH": modules}


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
