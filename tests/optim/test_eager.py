"""`optim/eager.py`: the numbers of PyTorch's optimizers, without the import of its compiler."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.optim.eager import Adam, AdamW

TRAINS = """
import sys
from pathlib import Path
import lmsmith
lmsmith.train(
    sys.argv[1], out=Path(sys.argv[1]).parent / "run", steps=2, preset="llama", tokenizer="byte",
    settings={"model.n_layer": 1, "model.d_model": 8, "model.n_head": 1,
              "model.context_length": 8, "train.batch_size": 1},
)
found = {name for name in sys.modules if name in ("torch._dynamo", "sympy")}
assert not found, found
"""


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_steps_equal_pytorchs(ours: Any, theirs: Any, fused: bool) -> None:
    results = []
    for kind in (ours, theirs):
        generator = torch.Generator().manual_seed(3)
        params = [torch.randn(5, 7, generator=generator, requires_grad=True) for _ in range(2)]
        groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 0.02}]
        optimizer = kind(groups, lr=0.01, betas=(0.8, 0.9), fused=fused)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(5, 7, generator=generator)
            optimizer.step()
        results.append([*params, *(v for p in params for v in optimizer.state[p].values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not results[0][0].grad_fn


def test_training_does_not_import_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc def. " * 100)
    subprocess.run(
        [sys.executable, "-c", TRAINS, str(tmp_path / "text.txt")],
        check=True,
        capture_output=True,
    )
