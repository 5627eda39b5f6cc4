"""Exported models in the programs that they are for, where these are installed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lmsmith.checkpoint import save_model
from lmsmith.config import flatten
from lmsmith.interop import gguf_llama_cpp, huggingface
from lmsmith.interop.gguf_exporting import export_gguf
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import END_OF_TEXT
from lmsmith.verify.models import T, random_ids, small_model
from lmsmith.verify.registry import equivalence, package, relative, unequal


@equivalence("transformers", "exported logits; ours", bound=1e-5)
def in_transformers() -> float:
    """GPT-2 and Llama by transformers' own classes, and read back by us."""
    package("transformers")
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


@equivalence(
    "llama.cpp",
    "exported probabilities, ids; ours",
    bound=1e-4,
)
def in_llama_cpp() -> float:
    """Llama's architecture with a learned tokenizer, as f32. Raises CheckpointError if llama.cpp
    gives other ids."""
    for name in ("gguf", gguf_llama_cpp.LIBRARY):
        package(name)
    texts = [text.encode() * 3 for text in gguf_llama_cpp.TEXTS]
    tokenizer = learn_bpe(texts, 400, pattern="llama3", special_tokens=[END_OF_TEXT])
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 64, "d_ff": 96, "context_length": 96}
    model = small_model("llama", torch.float32, **sizes)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        tensors = {name: p.detach() for name, p in model.named_parameters()}
        save_model(run / "model", tensors, {"model": flatten(vars(model.config)), "step": 0})
        save_tokenizer(tokenizer, run / "model")
        receipt = export_gguf(run, Path(place) / "out", type="f32")
    return float(receipt["checked"]["llama.cpp"]["max_log_probability_difference"])
