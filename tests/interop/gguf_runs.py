"""Small runs with random weights and a learned BPE tokenizer, for the tests of GGUF."""

from pathlib import Path
from typing import Any

import torch

from lmsmith.checkpoint import save_model
from lmsmith.config import flatten
from lmsmith.config.presets import preset
from lmsmith.models.gpt import GPT
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import END_OF_TEXT, Tokenizer

TEXT = (
    "It was the best of times, it was the worst of times; 1234 years ago\n"
    "naïve café, 中文字, العربية, हिन्दी. Don't!  We'll see:\r\n\n  x = f(y)\n"
)
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_context": 32}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 24}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"n_kv_head": 2, "tied_head": True}),
    "llama, untied, biases": ("llama", {"attention_bias": "qkv", "tied_head": False}),
    "llama, all biases": ("llama", {"bias": True, "d_head": 20}),
    "llama, stretched": ("llama", LLAMA3 | {"norm_gain": False}),
    "llama, linear": ("llama", {"rope_scaling": "linear", "rope_factor": 2.0}),
    "llama, yarn": ("llama", YARN),
    "qwen3": ("qwen3", {"n_kv_head": 2}),
    "qwen3, untied": ("qwen3", {"tied_head": False, "d_head": 20, "norm_eps": 0.01}),
    "qwen3, linear": ("qwen3", {"rope_scaling": "linear", "rope_factor": 2.0, "n_kv_head": 1}),
    "qwen3, yarn": ("qwen3", YARN | {"vocab_multiple": 64}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tied_head": False, "bias": False, "vocab_multiple": 64}),
}


def tokenizer(pattern: str = "llama3", vocab_size: int = 400) -> BpeTokenizer:
    return learn_bpe([TEXT.encode() * 3], vocab_size, pattern=pattern, special_tokens=[END_OF_TEXT])


def run(
    folder: Path, name: str = "llama", words: Tokenizer | None = None, dtype: Any = torch.float32
) -> Path:
    """A run with every weight random, so that none is zero or one and could be lost unseen."""
    words = words or tokenizer()
    base, changes = MODELS[name]
    sizes = {"n_layer": 2, "n_head": 4, "d_model": 64, "d_ff": 96, "context_length": 96}
    sizes |= {"vocab_size": words.vocab_size}
    settings = {f"model.{key}": value for key, value in (sizes | changes).items()}
    config = preset(base).changed(settings, where="here").model
    model = GPT(config).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter_name, p in model.named_parameters():
        gain = p.dim() == 1 and parameter_name.endswith(("weight", "gain"))
        p.data.normal_(1.0 if gain else 0.0, 0.2, generator=generator)
    tensors = {key: p.detach().to(dtype) for key, p in model.named_parameters()}
    folder.mkdir()
    save_model(folder / "model", tensors, {"model": flatten(vars(config)), "step": 7})
    save_tokenizer(words, folder / "model")
    return folder
