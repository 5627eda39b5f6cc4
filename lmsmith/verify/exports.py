"""Exported models in the programs that they are for, where these are installed."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch

from lmsmith.interop import huggingface
from lmsmith.verify.models import T, random_ids, small_model
from lmsmith.verify.registry import Skipped, equivalence, relative, unequal


@equivalence("transformers", "logits of exported models in transformers; ours", bound=1e-5)
def in_transformers() -> float:
    """GPT-2 and Llama by transformers' own classes, and read back by us."""
    if importlib.util.find_spec("transformers") is None:
        raise Skipped("transformers is not installed")
    ids, worst = random_ids(2, T), 0.0
    for variant in ("gpt2", "llama"):
        model = small_model(variant, torch.float32)
        with tempfile.TemporaryDirectory() as place, torch.no_grad():
            tensors = {name: p.detach() for name, p in model.named_parameters()}
            huggingface.write(Path(place), model.config, tensors)
            theirs = huggingface.open_in_transformers(Path(place))
            worst = max(worst, relative(theirs(ids).logits, model(ids)))
            _, back = huggingface.read(Path(place))
            worst = max([worst, *(unequal(back[name], tensors[name]) for name in tensors)])
    return worst
