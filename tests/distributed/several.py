"""Run by each of several processes in a test: gradients under DDP and FSDP2 against those of one
process.
"""

import os
import sys

import torch

from lmsmith.config.presets import preset
from lmsmith.distributed.ranks import joined, ranks_from_environment
from lmsmith.distributed.shard import (
    SummedLoss,
    is_sharded,
    parallelize,
    shard_like,
    split_rows,
    synchronised,
    unshard,
)
from lmsmith.models.gpt import GPT

TINY = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.d_model": 16,
    "model.vocab_size": 31,
    "model.context_length": 12,
}
ROWS = 4  # of the global batch; one micro-batch each


def model_of(name: str) -> GPT:
    model = GPT(preset(name).changed(TINY, where="here").model).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with ignored targets, more in one process's rows than in the other's."""
    ids = torch.randint(0, 31, (ROWS, 13), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3:] = targets[1, :9] = targets[3, 5] = -1
    return ids[:, :-1], targets


def main() -> None:
    torch.set_num_threads(1)
    ranks = ranks_from_environment()
    assert (ranks.world, os.environ["RANK"]) == (2, str(ranks.rank))
    inputs, targets = batch()
    n_targets = int((targets != -1).sum())
    with joined(ranks):
        for name in ("modern", "gpt2"):
            alone = model_of(name)
            wanted = SummedLoss(alone)(inputs, targets)
            (wanted / n_targets).backward()
            for how in ("ddp", "fsdp"):
                model = model_of(name)
                module = parallelize(SummedLoss(model), ranks, how)
                start, end = ranks.rows(ROWS)
                total = 0.0
                for row in range(start, end):
                    with synchronised(module, last=row == end - 1):
                        part = module(inputs[row : row + 1], targets[row : row + 1])
                        (part * ranks.world / n_targets).backward()
                    total += float(part.detach())
                found = ranks.sum(total)[0]
                assert abs(found - float(wanted.detach())) < 1e-12 * abs(found), (name, how)
                for (key, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
                    assert is_sharded(p) == (how == "fsdp"), (key, how)
                    assert p.grad is not None
                    torch.testing.assert_close(
                        unshard(p.grad), q.grad, rtol=1e-10, atol=1e-13, msg=f"{name} {how} {key}"
                    )
                    torch.testing.assert_close(
                        unshard(shard_like(q.detach(), p)), q.detach(), rtol=0, atol=0
                    )
        stack = torch.arange(30.0).reshape(5, 3, 2)
        torch.testing.assert_close(split_rows(lambda rows: rows + 1, ranks)(stack), stack + 1)
        assert ranks.broadcast(float(ranks.rank), 7.0) == [0.0, 7.0]
        assert ranks.max(float(ranks.rank)) == [1.0]
        ranks.wait()
    print(f"rank {ranks.rank} is right")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
