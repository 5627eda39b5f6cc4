"""Runs lmsmith as if one process had memory for at most MOST rows of a micro-batch. Command line:
... MOST
"""

import os
import sys
from typing import Any

import torch

from lmsmith.__main__ import main
from lmsmith.distributed.shard import SummedLoss

most = int(sys.argv.pop())
forward = SummedLoss.forward


def cramped(self: SummedLoss, inputs: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
    if os.environ["RANK"] == "1" and torch.is_grad_enabled() and len(inputs) > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
    return forward(self, inputs, *rest, **named)


if __name__ == "__main__":
    SummedLoss.forward = cramped  # type: ignore[method-assign]
    main()
