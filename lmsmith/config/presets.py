"""Presets: named configurations, as changes from the defaults of the config classes.

`modern`, `llama` and `qwen3` set the architecture and the training recipe. `train/choose.py`
chooses their size for the text, the machine and the time. `babygpt`, `gpt2` to `gpt2-xl` and
`gpt3-small` to `gpt3-175b` are published models with their published sizes. `sized` gives any
preset a size by one number (`--model.size`).

The GPT-3 presets follow table 2.1 (sizes, batch sizes, learning rates) and appendix B (warm-up over
375 million tokens) of the paper, with two differences: attention is dense in all layers, where the
paper alternates dense and sparse ones, and the batch has its final size from the start, where the
paper's grows. Two rows of table 2.1 are inconsistent, see NOTES.
"""

import math
from typing import Any

from lmsmith.config.model import MODEL_KINDS
from lmsmith.config.registry import Registry
from lmsmith.config.run import RunConfig

# Architecture: Radford et al. 2019. That paper does not give the training settings; they are those
# of Brown et al. 2020, appendix B.
_GPT2 = {
    "model.norm": "layernorm",
    "model.norm_gain": True,
    "model.embedding_norm": False,
    "model.positions": "learned",
    "model.feed_forward": "gelu-tanh",
    "model.bias": True,
    "model.tied_head": True,
    "model.qk_norm": False,
    "model.logit_softcap": 0.0,
    "model.init": "gpt2",
    "optim.name": "adamw",
    "optim.learning_rate": 6e-4,
    "optim.beta2": 0.95,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup_steps": 100,
    "schedule.final_fraction": 0.1,
}

# Radford et al. 2019, table 2; learning rates of the GPT-3 models of about the same sizes.
_GPT2_SIZES = {
    # n_layer, n_head, d_model, learning rate
    "gpt2": (12, 12, 768, 6e-4),
    "gpt2-medium": (24, 16, 1024, 3e-4),
    "gpt2-large": (36, 20, 1280, 2.5e-4),
    "gpt2-xl": (48, 25, 1600, 2e-4),
}

# Brown et al. 2020, table 2.1.
_GPT3_SIZES = {
    # n_layer, n_head, d_model, batch size in sequences of 2,048 tokens, learning rate
    "gpt3-small": (12, 12, 768, 256, 6e-4),
    "gpt3-medium": (24, 16, 1024, 256, 3e-4),
    "gpt3-large": (24, 16, 1536, 256, 2.5e-4),
    "gpt3-xl": (24, 16, 2048, 512, 2e-4),
    "gpt3-2.7b": (32, 32, 2560, 512, 1.6e-4),
    "gpt3-6.7b": (32, 32, 4096, 1024, 1.2e-4),
    "gpt3-13b": (40, 40, 5120, 1024, 1e-4),
    "gpt3-175b": (96, 96, 12288, 1600, 0.6e-4),
}

NOTES = {
    "gpt3-xl": "the paper gives GPT-3 XL 24 heads of width 128, 3,072 in total, but d_model 2,048; "
    "this preset has 16 heads of width 128",
    "gpt3-13b": "the paper gives GPT-3 13B d_model 5,140, but 40 heads of width 128 are 5,120; "
    "this preset has d_model 5,120",
}
"""A note for users of a preset, by its name."""

_LLAMA = {
    "model.norm_gain": True,
    "model.embedding_norm": False,
    "model.feed_forward": "swiglu",
    "model.qk_norm": False,
    "model.logit_softcap": 0.0,
    "model.init": "gpt2",
    "optim.name": "adamw",
    "optim.learning_rate": 2e-3,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup_steps": 50,
    "schedule.final_fraction": 0.1,
}

_RNN = {
    "model.kind": "rnn",
    "model.logit_softcap": 0.0,
    "optim.learning_rate": 8e-3,
    "optim.beta2": 0.99,
    "optim.clip_norm": 1.0,
    "schedule.warmup_steps": 20,
}

_PRESETS: dict[str, dict[str, Any]] = {
    # The defaults of the config classes (RMSNorm, RoPE, QK-norm, squared ReLU, zero-initialized
    # projections, logit soft-capping, Muon), hashed n-gram embeddings, from which a small model
    # learns short-range statistics quickly, and value embeddings, with which it learns quickly to
    # copy tokens from its context (`docs/studies.md`).
    "modern": {
        "model.ngram_tables": (2, 3, 4),
        "model.value_embedding_every": 2,
        "optim.embedding_learning_rate": 0.02,
    },
    # Touvron et al. 2023, "LLaMA", section 2.
    "llama": _LLAMA,
    # Qwen Team 2025, "Qwen3 Technical Report", section 2: Llama with QK-norm, grouped queries and,
    # in its small models, a tied head. Two query heads share a key-value head, as in Qwen3-0.6B and
    # 1.7B. The recipe is that of `llama`. The base of RoPE stays 10,000: theirs, 1,000,000, is for
    # contexts of 32,768 tokens.
    "qwen3": {
        **_LLAMA,
        "model.n_head_per_kv": 2,
        "model.norm_eps": 1e-6,
        "model.qk_norm": True,
        "model.qk_gain": "dimension",
        "model.tied_head": True,
    },
    # Recurrent networks, trained with Muon like `modern` (`docs/log.md`).
    "rnn": {**_RNN, "model.cell": "elman"},
    "gru": {**_RNN, "model.cell": "gru"},
    "lstm": {**_RNN, "model.cell": "lstm"},
    # Counted, without gradient training.
    "ngram": {"model.kind": "ngram"},
    # nanoGPT's character-level model of Shakespeare: 10.65 million parameters.
    "babygpt": {
        **_GPT2,
        "model.n_layer": 6,
        "model.n_head": 6,
        "model.d_model": 384,
        "model.context_length": 256,
        "model.dropout": 0.2,
        "model.attention_dropout": 0.2,
        "optim.learning_rate": 1e-3,
        "optim.beta2": 0.99,
        "train.batch_size": 64,
    },
}
_PRESETS |= {
    name: {
        **_GPT2,
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.d_model": d_model,
        "model.context_length": 1024,
        "optim.learning_rate": rate,
    }
    for name, (n_layer, n_head, d_model, rate) in _GPT2_SIZES.items()
}
_PRESETS |= {
    name: {
        **_GPT2,
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.d_model": d_model,
        "model.context_length": 2048,
        "train.batch_size": n_rows,
        "optim.learning_rate": rate,
        "schedule.warmup_steps": round(375e6 / (2048 * n_rows)),
    }
    for name, (n_layer, n_head, d_model, n_rows, rate) in _GPT3_SIZES.items()
}


class _Presets(Registry[dict[str, Any]]):
    """The registry of presets. Each model kind that an extension adds has a preset of its name."""

    def load_extensions(self) -> None:
        for kind in MODEL_KINDS.added():
            if kind not in self.known:
                MODEL_KINDS.get(kind)  # loads an entry point; its module may register the preset
                self.known.setdefault(kind, {"model.kind": kind})
        super().load_extensions()


PRESETS = _Presets("preset", "lmsmith.presets", _PRESETS)
"""Per preset, the settings by dotted name that differ from the defaults."""


def preset(name: str) -> RunConfig:
    """Returns the config of a preset. Raises ConfigError for an unknown name."""
    return RunConfig(preset=name).changed(PRESETS.get(name), where=f"preset {name}")


def has_size(name: str) -> bool:
    """Returns whether the preset fixes the size of its model."""
    return "model.n_layer" in PRESETS.get(name)


def sized(base: RunConfig, n: int) -> dict[str, Any]:
    """Returns the settings that `--model.size n` changes in a preset.

    - Model: n layers, width 64 n, heads of width 64, as in the GPT-2 family; size 12 is GPT-2 124M.
    - Context: the smallest power of two that is at least 64 n, and at most 2,048.
    - Batch: 64 n^3 tokens, rounded to a power of two from 2,048 to 2,097,152. The blocks have
      49,152 n^3 parameters, so at 20 tokens per parameter (Hoffmann et al. 2022, "Chinchilla")
      every size within these bounds trains for about 15,000 steps.
    - Learning rate of AdamW: 6e-4 at width 768, inversely proportional to the width, at most 3e-3.
      This is within a fifth of GPT-3's table from Small to 6.7B, except for Medium.
    - With Muon, whose step size does not depend on the width, AdamW trains only embeddings, head
      and gains: the preset's learning rate up to size 4, then proportional to 1/sqrt(width).
    """
    context_length = min(2048, 2 ** math.ceil(math.log2(64 * n)))
    n_tokens = 2 ** min(21, max(11, round(math.log2(64 * n**3))))
    rate = base.optim.learning_rate * min(1, math.sqrt(4 / n))
    return {
        "model.n_layer": n,
        "model.d_model": 64 * n,
        "model.n_head": n,
        "model.context_length": context_length,
        "train.batch_size": n_tokens // context_length,
        "optim.learning_rate": rate if base.optim.name == "muon" else min(3e-3, 7.2e-3 / n),
    }
