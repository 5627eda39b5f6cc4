"""Decoding leaves PyTorch's number of threads as it was."""

import os
import subprocess
import sys

PROGRAM = """
import torch
torch.set_num_threads(1)
from lmsmith.generate.decode import generate
from lmsmith.models.gpt_config import GPTConfig
model = GPTConfig(vocab_size=50, n_layer=1, n_head=1, d_model=16, context_length=16).build()
model.initialise(torch.Generator().manual_seed(1))
assert len(list(generate(model, [1, 2], max_tokens=3))) == 3
print(torch.get_num_threads())
"""


def test_the_first_use_of_compiled_kernels_keeps_the_number_of_threads() -> None:
    """numba starts its threads then, and with them sets OpenMP's number of threads."""
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"]
