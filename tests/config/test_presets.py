"""Presets are compared with the published models they are named after."""

import dataclasses
import time
from typing import Any

import pytest
import torch

from lmsmith.config import RunConfig, flatten, settings
from lmsmith.config.presets import NOTES, PRESETS, has_size, preset, sized
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT

# Radford et al. 2019 and Brown et al. 2020, appendix B: what makes GPT-2, whatever the defaults of
# config.py become.
GPT2: dict[str, Any] = {
    "model.n_kv_head": 0,
    "model.d_ff": 0,
    "model.ngram_tables": (),
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
    "optim.embedding_learning_rate": 0.0,
    "optim.beta1": 0.9,
    "optim.beta2": 0.95,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.final_fraction": 0.1,
}
# config/train_shakespeare_char.py of nanoGPT, where it differs.
BABYGPT = {
    **GPT2,
    "model.n_layer": 6,
    "model.n_head": 6,
    "model.d_model": 384,
    "model.context_length": 256,
    "model.dropout": 0.2,
    "model.attention_dropout": 0.2,
    "optim.learning_rate": 1e-3,
    "optim.beta2": 0.99,
    "schedule.warmup_steps": 100,
    "train.batch_size": 64,
}
# Touvron et al. 2023, section 2.
LLAMA = {
    **GPT2,
    "model.norm": "rmsnorm",
    "model.positions": "rope",
    "model.rope_base": 10_000.0,
    "model.feed_forward": "swiglu",
    "model.bias": False,
    "model.tied_head": False,
}
# Qwen3-0.6B's config.json and the Qwen3 technical report, section 2.
QWEN3 = {
    **LLAMA,
    "model.norm_eps": 1e-6,
    "model.qk_norm": True,
    "model.qk_gain": "dimension",
    "model.n_head_per_kv": 2,
    "model.tied_head": True,
}
MODERN = {
    "model.norm": "rmsnorm",
    "model.positions": "rope",
    "model.feed_forward": "relu2",
    "model.qk_norm": True,
    "model.bias": False,
    "model.tied_head": False,
    "model.init": "zero-projections",
    "model.logit_softcap": 15.0,
    "optim.name": "muon",
    "schedule.shape": "trapezoid",
}
WANTED = {
    "gpt2": {
        **GPT2,
        "model.n_layer": 12,
        "model.n_head": 12,
        "model.d_model": 768,
        "model.context_length": 1024,
    },
    "babygpt": BABYGPT,
    "llama": LLAMA,
    "qwen3": QWEN3,
    "modern": MODERN,
}


@pytest.mark.parametrize("name", WANTED)
def test_a_preset_equals_the_model_that_it_is_named_after(name: str) -> None:
    found = flatten(dataclasses.asdict(preset(name)))
    assert {key: found[key] for key in WANTED[name]} == WANTED[name]
    assert found["preset"] == name


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("gpt2-", "gpt3-"))])
def test_larger_presets_differ_from_gpt2_only_in_size_and_learning_rate(name: str) -> None:
    found, small = (flatten(dataclasses.asdict(preset(other))) for other in (name, "gpt2"))
    differ = {key for key in found if found[key] != small[key]}
    sizes = {"model.n_layer", "model.n_head", "model.d_model", "model.context_length"}
    assert differ <= sizes | {
        "preset",
        "optim.learning_rate",
        "train.batch_size",
        "schedule.warmup_steps",
    }


def test_presets_change_known_settings_and_share_nothing() -> None:
    for name in PRESETS:
        assert set(PRESETS.get(name)) <= set(dict(settings(type(preset(name).model))))
    assert preset("gpt2") == preset("gpt2")
    assert len({preset(name) for name in PRESETS}) == len(PRESETS.names())


@pytest.mark.parametrize(
    ("n_head", "n_kv"), [(1, 1), (2, 1), (3, 3), (4, 2), (9, 9), (12, 6), (16, 8)]
)
def test_qwen3_groups_queries_at_every_size(n_head: int, n_kv: int) -> None:
    """Qwen3-0.6B has 16 query heads and 8 key-value heads."""
    base = preset("qwen3")
    changed = base.changed(sized(base, n_head), where="here")
    assert (changed.model.n_head, changed.model.n_kv) == (n_head, n_kv)  # type: ignore[attr-defined]
    given = changed.changed({"model.n_kv_head": n_head}, where="here").model
    assert given.n_kv == n_head  # type: ignore[attr-defined]


def test_the_default_preset_is_there() -> None:
    assert RunConfig().preset in PRESETS


@pytest.mark.parametrize("name", ["gpt3", ""])
def test_an_unknown_name_lists_the_presets(name: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no preset .* There are: modern, llama, .*, gpt3-175b"
    ):
        preset(name)


def test_published_models_have_their_published_size() -> None:
    assert {name for name in PRESETS if not has_size(name)} == {
        "modern",
        "llama",
        "qwen3",
        "rnn",
        "gru",
        "lstm",
        "ngram",
    }


def n_parameters(name: str, vocab_size: int = 50257) -> int:
    config = preset(name).changed({"model.vocab_size": vocab_size}, where="here").model
    with torch.device("meta"):
        return GPT(config).n_parameters()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2s_sizes(name: str, wanted: int) -> None:
    assert n_parameters(name) == wanted
    assert preset(name).model.context_length == 1024


# Brown et al. 2020, table 2.1: parameters, layers, d_model, d_head, batch in tokens, learning rate.
GPT3 = {
    "gpt3-small": (125e6, 12, 768, 64, 0.5e6, 6e-4),
    "gpt3-medium": (350e6, 24, 1024, 64, 0.5e6, 3e-4),
    "gpt3-large": (760e6, 24, 1536, 96, 0.5e6, 2.5e-4),
    "gpt3-xl": (1.3e9, 24, 2048, 128, 1e6, 2e-4),
    "gpt3-2.7b": (2.7e9, 32, 2560, 80, 1e6, 1.6e-4),
    "gpt3-6.7b": (6.7e9, 32, 4096, 128, 2e6, 1.2e-4),
    "gpt3-13b": (13e9, 40, 5140, 128, 2e6, 1e-4),
    "gpt3-175b": (175e9, 96, 12288, 128, 3.2e6, 0.6e-4),
}


@pytest.mark.parametrize("name", GPT3)
def test_gpt3s_table(name: str) -> None:
    """As printed, except for the inconsistent width; warm-up over 375 million tokens (appendix
    B).
    """
    n, n_layer, d_model, d_head, batch, rate = GPT3[name]
    config = preset(name)
    assert (config.model.n_layer, config.model.width_head, config.optim.learning_rate) == (
        n_layer,
        d_head,
        rate,
    )
    assert config.model.d_model == (5120 if name == "gpt3-13b" else d_model)
    assert config.model.context_length == 2048
    assert config.train.batch_size * 2048 == pytest.approx(batch, rel=0.05)
    assert config.schedule.warmup_steps * config.train.batch_size * 2048 == pytest.approx(
        375e6, rel=0.01
    )
    assert n_parameters(name) == pytest.approx(n, rel=0.02)
    assert (name in NOTES) == (d_head * config.model.n_head != d_model or name == "gpt3-xl")


def test_gpt2_xl_is_described_in_under_a_second() -> None:
    """On the meta device, without allocating. Not in a subprocess, which would mostly import
    torch.
    """
    began = time.process_time()
    assert n_parameters("gpt2-xl") == 1_557_611_200
    assert time.process_time() - began < 1


# One dial


@pytest.mark.parametrize("name", ["modern", "llama", "gpt2"])
def test_every_size_can_be_built_and_larger_ones_are_larger_in_all_dimensions(name: str) -> None:
    base, last = preset(name), None
    for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48):
        config = base.changed(
            sized(base, n) | {"model.size": n, "model.vocab_size": 1000}, where="here"
        )
        model, tokens = config.model, config.train.batch_size * config.model.context_length
        assert (model.n_layer, model.d_model, model.width_head) == (n, 64 * n, 64)
        assert 2**11 <= tokens <= 2**21
        blocks = 12 * n * (64 * n) ** 2
        if 2**11 < tokens < 2**21:
            assert 20 * blocks / tokens == pytest.approx(
                15_360, rel=0.42
            )  # a power of two is at most sqrt(2) off
        found = (model.context_length, tokens, -config.optim.learning_rate)
        assert last is None or all(a >= b for a, b in zip(found, last, strict=True))
        last = found
        if n <= 12:
            with torch.device("meta"):
                GPT(model)


def test_sizes_match_published_models() -> None:
    """Size 12 is GPT-2 124M; AdamW's learning rates are within a fifth of GPT-3's table."""
    base = preset("gpt2")
    config = base.changed(sized(base, 12), where="here")
    assert config.model == base.model
    for name, (_, _, d_model, _, _, rate) in GPT3.items():
        if "medium" not in name and 768 <= d_model <= 4096:
            assert sized(base, d_model // 64)["optim.learning_rate"] == pytest.approx(
                rate, rel=0.21
            ), name
    muon = preset("modern")
    assert sized(muon, 4)["optim.learning_rate"] == muon.optim.learning_rate
    assert sized(muon, 16)["optim.learning_rate"] == muon.optim.learning_rate / 2
