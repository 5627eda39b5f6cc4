"""Compiled blocks give the same losses as uncompiled ones.

This runs in its own process, because the shape checks that tests add cannot be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY

from lmsmith.config import RunConfig
from lmsmith.data.batches.windows import Batches
from lmsmith.models.gpt import GPT
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

T, B = 32, 6
KINDS: dict[str, dict[str, Any]] = {
    "windows": {"model.window": 9, "model.window_pattern": "SL"},
    "gpt2": {"preset": "gpt2", "model.n_kv_head": 2},
    "recomputed": {"train.activation_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_give_the_same_losses(kind: str) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, __file__, kind],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain, compiled = json.loads(done.stdout.splitlines()[-1])
    assert compiled == pytest.approx(plain, rel=1e-6)
    assert len(set(plain)) == len(plain)


def losses(kind: str, compiled: str) -> list[float]:
    sizes = {
        "model.vocab_size": 50,
        "model.n_layer": 2,
        "model.context_length": T,
        "train.batch_size": B,
    }
    config = RunConfig().changed(
        TINY | sizes | KINDS[kind] | {"train.compile": compiled}, where="a test"
    )
    model = GPT(config.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():  # no zeros
            p.normal_(0, 0.2, generator=generator)
    ids = np.random.default_rng(0).integers(0, 50, 4000).astype(np.uint16)
    batches = Batches(ids, context_length=T, batch_size=B, seed=1)
    replica = Replica(model.train(), config)
    return [train_step(replica, batches, step, 10)["loss"] for step in range(5)]


if __name__ == "__main__":
    both = [losses(sys.argv[1], compiled) for compiled in ("no", "yes")]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["graph_break"], "each block is one graph"
    print(json.dumps(both))
