"""Predicted parameter and FLOP counts against the built model, PyTorch's counter and worked
figures.
"""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.config.presets import preset
from lmsmith.loss import summed_cross_entropy
from lmsmith.models import kernels
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

FAMILIES = ("modern", "llama", "gpt2", "babygpt")
SIZE = {
    "model.n_layer": 3,
    "model.n_head": 4,
    "model.n_kv_head": 2,
    "model.d_model": 24,
    "model.context_length": 16,
    "model.vocab_size": 29,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"model.d_ff": 40, "model.vocab_multiple": 16},
    {"model.n_kv_head": 0},
]
VARIANTS += [{"model.d_head": 10}, {"model.d_head": 4, "model.attention_bias": "qkv"}]
SWITCHES: list[dict[str, Any]] = [
    {"model.feed_forward": "geglu"},
    {"model.feed_forward": "swiglu", "model.tied_head": True},
    {"model.norm_placement": "post", "model.norm_gain": True, "model.bias": True},
    {"model.value_embedding_every": 2},
    {"model.value_embedding_every": 1, "model.n_kv_head": 0, "model.d_model": 40},
    {"model.residual_scalars": True, "model.positions": "learned", "model.ngram_tables": (2, 3)},
    {"model.window": 5, "model.window_pattern": "SSL"},
    {"model.window": 1, "model.window_pattern": "S"},
    {"model.d_head": 10, "model.value_embedding_every": 1, "model.attention_bias": "all"},
    {"model.window": 99, "model.window_pattern": "SL"},
]


def config_of(name: str, changes: dict[str, Any]) -> GPTConfig:
    return preset(name).changed({**SIZE, "model.dropout": 0.0, **changes}, where="here").model


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_matrix_parameters_are_linear_maps_and_head(name: str, changes: dict[str, Any]) -> None:
    config = config_of(name, changes)
    model = GPT(config)
    inside = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    assert config.matrix_parameters() == inside + model.head_weight.numel()


def in_place(
    added_to: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], **options: object
) -> int:
    """Counts what PyTorch's counter omits: matrix products added in place."""
    return 2 * a[0] * a[1] * b[1]


def in_place_in_batches(
    added_to: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], **options: object
) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_predicted_flops_equal_pytorchs_count(name: str, changes: dict[str, Any]) -> None:
    """In a counted step, attention in one block computes the full square; the prediction counts
    half.
    """
    config = config_of(name, changes)
    model = GPT(config)
    B, T = 3, config.context_length
    ids = torch.zeros(B, T, dtype=torch.int64)
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: in_place}
    ) as counter:
        hidden = model.hidden(ids).flatten(0, 1)
        total, _ = summed_cross_entropy(
            hidden, model.head_weight, ids.flatten(), vocab_size=config.vocab_size
        )
        total.backward()
    attention = 6 * config.n_layer * T * config.n_head * config.width_head
    assert counter.get_total_flops() == B * T * (config.train_flops_per_token() + attention)


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_setting_is_counted(changes: dict[str, Any]) -> None:
    """Each query is multiplied only with the keys that it sees, so the count is exact.

    A window of w sees w - w²/2T + w/2T keys on average. The prediction omits the last term, half of
    the diagonal.
    """
    config = config_of("modern", changes)
    model, B, T = GPT(config), 3, config.context_length
    inside = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    assert config.matrix_parameters() == inside + model.head_weight.numel()
    ids = torch.zeros(B, T, dtype=torch.int64)
    counted = {torch.ops.aten.addmm_: in_place, torch.ops.aten.baddbmm_: in_place_in_batches}
    with (
        pytest.MonkeyPatch.context() as patch,
        FlopCounterMode(display=False, custom_mapping=counted) as counter,
    ):
        patch.setattr(kernels._CausalAttention, "BLOCK", 1)
        hidden = model.hidden(ids).flatten(0, 1)
        total, _ = summed_cross_entropy(
            hidden, model.head_weight, ids.flatten(), vocab_size=config.vocab_size
        )
        total.backward()
    width, layers = config.n_head * config.width_head, range(config.n_layer)
    diagonal = sum(12 * width * min(config.window_of(layer) or T, T) / 2 for layer in layers)
    assert counter.get_total_flops() == B * (T * config.train_flops_per_token() + diagonal)


def gpt2_xl(context_length: int) -> GPTConfig:
    """The architecture of the worked example: SwiGLU of width 6400, RoPE, RMSNorm, untied head, no
    biases.
    """
    return (
        preset("llama")
        .changed(
            {
                "model.n_layer": 48,
                "model.n_head": 25,
                "model.d_model": 1600,
                "model.d_ff": 6400,
                "model.vocab_size": 50257,
                "model.context_length": context_length,
            },
            where="here",
        )
        .model
    )


def forward_over_full_attention(config: GPTConfig) -> float:
    """FLOPs of one window forward: a third of training's, plus the half of attention that
    training's count omits and the worked figures include.
    """
    T = config.context_length
    return T * config.train_flops_per_token() / 3 + config.n_layer * 2 * T * T * config.d_model


def test_worked_figures_of_gpt2_xls_shape() -> None:
    config = gpt2_xl(1024)
    with torch.device("meta"):
        assert GPT(config).n_parameters() == 2_127_057_600
    forward = forward_over_full_attention(config)
    assert forward == 4_513_336_524_800
    head = 2 * 1024 * 1600 * 50257
    assert head / forward == pytest.approx(0.036, abs=0.0005)
    long = forward_over_full_attention(gpt2_xl(16_384))
    assert long == pytest.approx(149.5e12, rel=0.0005)
    assert long / forward == pytest.approx(33.1, abs=0.05)


def test_attention_counts_half_the_square() -> None:
    config = gpt2_xl(1024)
    whole = 3 * forward_over_full_attention(config) / 1024
    assert whole - config.train_flops_per_token() == 6 * 48 * 1024 * 1600
