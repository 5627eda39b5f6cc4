"""Predictions from a config against the built model and PyTorch's FLOP counter."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.config.presets import preset
from lmsmith.models.gpt import GPT
from lmsmith.plan.flops import flops
from lmsmith.plan.parameters import parameters
from lmsmith.verify.registry import equivalence, relative

SIZE = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.d_model": 32,
    "model.context_length": 24,
    "model.vocab_size": 29,
}
PRESETS = ("gpt2", "llama", "qwen3", "modern")


@equivalence("plan", "parameters, FLOPs; PyTorch's counts", bound=0.0)
def plan() -> float:
    """With attention over all keys, which the counter's math backend computes."""
    worst = 0.0
    for name in PRESETS:
        config = preset(name).changed(SIZE, where="verify")
        with torch.device("meta"):
            model = GPT(config.model)  # type: ignore[arg-type]
            ids = torch.zeros(1, 24, dtype=torch.int64)
        counter: Any = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            model(ids)
        predicted = 24 * sum(part.forward for part in flops(config, "full").parts.values())
        n_parameters = sum(one.n for one in parameters(config))
        worst = max(worst, relative(predicted, counter.get_total_flops()))
        worst = max(worst, relative(n_parameters, sum(p.numel() for p in model.parameters())))
    return worst
