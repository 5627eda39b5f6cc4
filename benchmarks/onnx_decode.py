"""Decode speed of an exported ONNX graph against PyTorch eager: `python benchmarks/onnx_decode.py`.

Both read one token per call with a KV cache, in float32, batch 1, alternately. Needs
`lmsmith[onnx]`.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lmsmith.config.presets import preset
from lmsmith.evaluate.likelihood import inference
from lmsmith.interop.onnx_model import Session, write

N_TOKENS, ROUNDS = 100, 5
SIZES = {"n_layer": 4, "n_head": 4, "d_model": 256, "vocab_size": 4096, "context_length": 512}


def rate(read: Callable[[torch.Tensor], object]) -> float:
    """Tokens per second of N_TOKENS calls of one token."""
    token = torch.ones(1, 1, dtype=torch.int64)
    start = time.perf_counter()
    for _ in range(N_TOKENS):
        read(token)
    return N_TOKENS / (time.perf_counter() - start)


for name in ("modern", "llama"):
    changes = {f"model.{key}": value for key, value in SIZES.items()}
    model = preset(name).changed(changes, where="here").model.build().eval()  # type: ignore[attr-defined]
    model.initialise(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, inference(model):
        write(Path(folder) / "model.onnx", model)
        torch_rates, onnx_rates = [], []
        for _ in range(ROUNDS):
            session = Session(Path(folder) / "model.onnx", torch.get_num_threads())
            torch_rates.append(rate(partial(model, state=model.new_state(1))))
            onnx_rates.append(rate(session.logits))
    print(
        f"{name:8} torch eager {max(torch_rates):6.0f} tokens/s, "
        f"onnxruntime {max(onnx_rates):6.0f} tokens/s"
    )
