"""The program of each of two processes that `ranks.py` starts with torchrun.

Compares loss and gradients of a batch, divided between the ranks, with those of one process, and
writes the difference to a file with the rank's number in the folder of the first argument. If it
fails, it writes the error to "RANK.error" there, because torchrun's own message lacks it.

On a busy machine one rank may be a minute behind the other, so they wait for each other as long as
ranks that compile.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from lmsmith.distributed.ranks import LONG, joined, ranks_from_environment
from lmsmith.distributed.shard import SummedLoss, parallelize, synchronised, unshard
from lmsmith.targets import IGNORED
from lmsmith.verify.models import T, random_ids, small_model
from lmsmith.verify.registry import relative

ROWS = 4


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with ignored targets, more of them on one rank than on the other."""
    ids = random_ids(ROWS, T + 1)
    targets = ids[:, 1:].clone()
    targets[0, 3:] = targets[1, :9] = targets[3, 5] = IGNORED
    return ids[:, :-1], targets


def _difference() -> float:
    """What one rank measures, with micro-batches of one row."""
    ranks = ranks_from_environment()
    inputs, targets = _batch()
    n_targets, worst = int((targets != IGNORED).sum()), 0.0
    with joined(ranks, LONG):
        for variant in ("gpt2", "modern"):
            alone: Any = small_model(variant)
            expected = SummedLoss(alone)(inputs, targets)
            (expected / n_targets).backward()
            for how in ("ddp", "fsdp"):
                model: Any = small_model(variant)
                module = parallelize(SummedLoss(model), ranks, how)
                start, end = ranks.rows(ROWS)
                total = 0.0
                for row in range(start, end):
                    with synchronised(module, last=row == end - 1):
                        part = module(inputs[row : row + 1], targets[row : row + 1])
                        (part * ranks.world / n_targets).backward()
                    total += float(part.detach())
                ranks.wait(LONG)
                worst = max(worst, relative(ranks.sum(total)[0], expected))
                for p, q in zip(model.parameters(), alone.parameters(), strict=True):
                    worst = max(worst, relative(unshard(p.grad), q.grad))
        ranks.wait(LONG)
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[1], os.environ["RANK"])
    try:
        path.write_text(repr(_difference()), "ascii")
    except Exception as error:
        path.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", "utf-8")
        raise
