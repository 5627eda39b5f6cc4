"""Names for good starting points: what a preset changes from the defaults of `config.py`.

`modern` and `llama` say how a model is built and trained and leave its size to `train/choose.py`,
which fits it to the text, the machine and the time. `babygpt`, `gpt2` to `gpt2-xl` and `gpt3-small`
to `gpt3-175b` are models of the literature, so their sizes are theirs. `sized` gives any preset a
size by one number (`--model.size`).

Of GPT-3 are table 2.1 (sizes, batches, learning rates) and appendix B (warm-up over 375 million
tokens); not its alternation of dense and sparse attention, and not the growth of its batch:
attention is dense, the batch the last one. Two rows of the table do not multiply out, see NOTES.
"""

import math
from typing import Any

from lmsmith.config.model import MODEL_KINDS
from lmsmith.config.registry import Registry
from lmsmith.config.run import RunConfig

# Radford et al. 2019; training as in Brown et al. 2020, appendix B, which GPT-2's own paper leaves
# out.
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

# Radford et al. 2019, table 2; learning rates of GPT-3's models of about these sizes.
_GPT2_SIZES = {
    # n_layer, n_head, d_model, learning rate
    "gpt2": (12, 12, 768, 6e-4),
    "gpt2-medium": (24, 16, 1024, 3e-4),
    "gpt2-large": (36, 20, 1280, 2.5e-4),
    "gpt2-xl": (48, 25, 1600, 2e-4),
}

# Brown et al. 2020, table 2.1.
_GPT3_SIZES = {
    # n_layer, n_head, d_model, sequences of 2,048 tokens a batch, learning rate
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
    "gpt3-xl": "the paper gives XL 24 heads of 128 numbers, 3,072 in all, at a width of 2,048; "
    "here it has 16 of 128",
    "gpt3-13b": "the paper gives 13B a width of 5,140, and 40 heads of 128 numbers are 5,120; "
    "here it is 5,120 wide",
}
"""What the user of a preset is told."""

_RNN = {
    "model.kind": "rnn",
    "model.logit_softcap": 0.0,
    "optim.learning_rate": 8e-3,
    "optim.beta2": 0.99,
    "optim.clip_norm": 1.0,
    "schedule.warmup_steps": 20,
}

_PRESETS: dict[str, dict[str, Any]] = {
    # RMSNorm, RoPE, QK-norm, squared ReLU, zero projections, soft cap, Muon: the defaults of
    # config.py, and tables of hashed n-grams, which give a small model its local statistics at
    # once.
    "modern": {"model.ngram_tables": (2, 3, 4), "optim.embedding_learning_rate": 0.02},
    # Touvron et al. 2023, "LLaMA", section 2.
    "llama": {
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
    },
    # Recurrent networks, trained by Muon as `modern` is (`docs/log.md`).
    "rnn": {**_RNN, "model.cell": "elman"},
    "gru": {**_RNN, "model.cell": "gru"},
    "lstm": {**_RNN, "model.cell": "lstm"},
    # Counts: nothing is trained.
    "ngram": {"model.kind": "ngram"},
    # nanoGPT's model of Shakespeare by characters: 10.65 million parameters.
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
    """Presets; a model kind that an extension adds is the name of one."""

    def load_extensions(self) -> None:
        for kind in MODEL_KINDS.added():
            if kind not in self.known:
                MODEL_KINDS.get(kind)  # an entry point, whose module may register the preset
                self.known.setdefault(kind, {"model.kind": kind})
        super().load_extensions()


PRESETS = _Presets("preset", "lmsmith.presets", _PRESETS)
"""Settings by dotted name that a preset changes from the defaults."""


def preset(name: str) -> RunConfig:
    """The config that a preset names. Raises ConfigError for an unknown name."""
    return RunConfig(preset=name).changed(PRESETS.get(name), where=f"preset {name}")


def has_size(name: str) -> bool:
    """Whether the preset fixes the size of its model."""
    return "model.n_layer" in PRESETS.get(name)


def sized(base: RunConfig, n: int) -> dict[str, Any]:
    """What `--model.size n` makes of a preset.

    n layers of width 64 n, with heads of 64, as in GPT-2's family; size 12 is GPT-2's 124M.
    Context: the power of two that reaches 64 n, at most 2,048. Batch: 64 n^3 tokens, to the nearest
    power of two of 2,048 to 2,097,152. Blocks have 49,152 n^3 parameters, so at 20 tokens a
    parameter (Hoffmann et al. 2022, "Chinchilla") every size within these bounds makes about 15,000
    updates. Learning rate of AdamW: 6e-4 at GPT-2's width, else inversely as the width, at most
    3e-3 (from Small to 6.7B within a fifth of GPT-3's table, but for Medium). With Muon, whose
    updates have one size in every width, AdamW has only tables, head and gains: the preset's rate
    up to size 4, then as 1/sqrt(width).
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
