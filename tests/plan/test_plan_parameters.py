"""Parameters by tensor, against the built model; published sizes."""

import random
from typing import Any

import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import PRESETS, preset
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.models.lora import add_adapters
from lmsmith.optim.groups import Optimizers
from lmsmith.plan.parameters import by_group, parameters

NEURAL = [name for name in PRESETS.names() if name != "ngram"]

# Settings that change which tensors exist or their shapes; imported models are combinations of them.
CHOICES: dict[str, list[Any]] = {
    "model.norm": ["layernorm", "rmsnorm", "none"],
    "model.norm_placement": ["pre", "post", "output"],
    "model.parallel_residual": [True, False],
    "model.norm_gain": [True, False],
    "model.positions": ["learned", "rope", "none"],
    "model.feed_forward": ["gelu", "gelu-tanh", "silu", "relu2", "swiglu", "geglu"],
    "model.bias": [True, False],
    "model.attention_bias": ["auto", "none", "qkv", "all"],
    "model.tied_head": [True, False],
    "model.qk_norm": [True, False],
    "model.qk_gain": ["head", "dimension", "projection"],
    "model.ngram_tables": [(), (2,), (2, 3, 4)],
    "model.value_embedding_every": [0, 1, 2],
    "model.residual_scalars": [True, False],
    "model.n_kv_head": [0, 1, 2],
    "model.d_head": [0, 6],
    "model.d_ff": [0, 20],
    "model.vocab_multiple": [1, 16],
}


def random_config(seed: int) -> RunConfig | None:
    draw = random.Random(seed)
    changes = {name: draw.choice(values) for name, values in CHOICES.items()}
    changes |= {"model.n_layer": 3, "model.n_head": 4, "model.d_model": 48, "model.vocab_size": 37}
    changes |= {"model.context_length": 16, "model.ngram_table_size": 11}
    try:
        return preset("modern").changed(changes, where="here")
    except ConfigError:  # settings that do not go together
        return None


RANDOM = [config for seed in range(120) if (config := random_config(seed))]


def built(config: RunConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = config.neural.build()
        if config.lora.rank:
            add_adapters(model, config.lora, torch.Generator())
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def predicted(config: RunConfig) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in parameters(config)}


@pytest.mark.parametrize("name", NEURAL)
def test_every_tensor_of_every_preset(name: str) -> None:
    config = preset(name).changed({"model.vocab_size": 50257}, where="here")
    with torch.device("meta"):
        small = config
        if config.neural.n_parameters() > 1e9:  # large presets differ from small ones in numbers
            small = config.changed({"model.n_layer": 2}, where="here")
        assert list(predicted(small).items()) == list(built(small).items())


def test_every_tensor_of_random_architectures() -> None:
    assert len(RANDOM) > 40
    for config in RANDOM:
        assert list(predicted(config).items()) == list(built(config).items()), config.model


def test_adapters_and_learned_parameters() -> None:
    for lora in (
        {"lora.rank": 3},
        {"lora.rank": 2, "lora.targets": ("q", "v", "down"), "lora.embeddings": "yes"},
    ):
        config = next(each for each in RANDOM if each.model.attention_biases != "none")
        config = config.changed(lora, where="here")
        assert list(predicted(config).items()) == list(built(config).items())
        with torch.device("meta"):
            model = config.neural.build()
            add_adapters(model, config.lora, torch.Generator())
        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {p.name for p in parameters(config) if p.learned} == learned


@pytest.mark.parametrize("seed", [0, 1])
def test_optimizers_of_parameters(seed: int) -> None:
    config = RANDOM[seed].changed({"optim.name": "muon"}, where="here")
    model = GPT(config.model)
    model.initialise(torch.Generator())
    muon = Optimizers(model, config.optim).all[1]
    names = {p: name for name, p in model.named_parameters()}
    expected = {names[p] for group in muon.param_groups for p in group["params"]}
    assert {p.name for p in parameters(config) if p.optimizer == "muon"} == expected


@pytest.mark.parametrize(
    ("name", "vocab_size", "expected"),
    [
        ("gpt2", 50257, 124_439_808),
        ("gpt2", 50304, 124_475_904),
        ("gpt2-medium", 50257, 354_823_168),
        ("gpt2-large", 50257, 774_030_080),
        ("gpt2-xl", 50257, 1_557_611_200),
    ],
)
def test_published_sizes_of_gpt2(name: str, vocab_size: int, expected: int) -> None:
    config = preset(name).changed({"model.vocab_size": vocab_size}, where="here")
    assert sum(p.n for p in parameters(config)) == expected
    assert sum(by_group(parameters(config)).values()) == expected


def test_smollm2() -> None:
    smollm2 = preset("llama").changed(
        {
            "model.n_layer": 30,
            "model.d_model": 576,
            "model.n_head": 9,
            "model.n_kv_head": 3,
            "model.d_ff": 1536,
            "model.vocab_size": 49152,
            "model.tied_head": True,
        },
        where="here",
    )
    assert smollm2.neural.n_parameters() == 134_515_008


def test_babygpt_without_position_table() -> None:
    config = preset("babygpt").changed({"model.vocab_size": 65}, where="here")
    groups = by_group(parameters(config))
    total = sum(groups.values())
    # The published 10.65M excludes position embeddings, and its blocks have no biases.
    assert total - groups["position embedding"] == pytest.approx(10.65e6, rel=0.005)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt3-small", 125e6),
        ("gpt3-medium", 356e6),
        ("gpt3-large", 760e6),
        ("gpt3-xl", 1320e6),
        ("gpt3-2.7b", 2650e6),
        ("gpt3-6.7b", 6660e6),
        ("gpt3-13b", 12850e6),
        ("gpt3-175b", 174600e6),
    ],
)
def test_gpt3s_table(name: str, published: float) -> None:
    """Brown et al. 2020, table D.1, gives the sizes with more digits than table 2.1."""
    config = preset(name).changed({"model.vocab_size": 50257}, where="here")
    assert config.neural.n_parameters() == pytest.approx(published, rel=0.01)
