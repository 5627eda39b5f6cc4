"""Models of transformers with random weights and odd sizes, and their logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 97, "n_positions": 224, "n_embd": 36, "n_layer": 2, "n_head": 3},
    "llama": {
        "vocab_size": 97,
        "max_position_embeddings": 224,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
}

# Heads of 12 have frequencies that are kept, divided, and one between the two. Texts are of 60
# tokens.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}


def random_model(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A model of transformers. Every weight is random, not zero or one, so that a test notices if
    one is ignored.
    """
    no_ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    chosen = SIZES.get(kind, SIZES["llama"]) | no_ids | settings
    config, model_class = (getattr(transformers, name) for name in CLASSES[kind])
    model = model_class(config(**chosen))
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data.normal_(
            1.0 if p.dim() == 1 and name.endswith("weight") else 0.0, 0.2, generator=generator
        )
    return model.to(dtype).eval()


def saved(model: Any, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def random_ids(V: int = 97, B: int = 2, T: int = 60) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(ids)
    return found if isinstance(found, Tensor) else found.logits
