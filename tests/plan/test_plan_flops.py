"""FLOPs by part, against PyTorch's counter with math attention, and published figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmsmith
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.loss import summed_cross_entropy
from lmsmith.models import kernels
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_costs import BLOCK, blocks, keys_per_query
from lmsmith.models.lora import add_adapters
from lmsmith.optim.groups import Optimizers
from lmsmith.plan.flops import flops
from lmsmith.plan.parameters import parameters
from lmsmith.plan.published import nanochat

SIZE = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.d_model": 32,
    "model.context_length": 24,
    "model.vocab_size": 29,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("llama", {"model.n_kv_head": 2}),
    ("qwen3", {"model.n_kv_head": 1, "model.d_head": 6}),
    ("modern", {"model.value_embedding_every": 1, "model.residual_scalars": True}),
    ("modern", {"model.window": 5, "model.window_pattern": "SL", "model.vocab_multiple": 16}),
    ("llama", {"lora.rank": 3}),
    ("gpt2", {"lora.rank": 2, "lora.targets": ("q", "v")}),
    ("llama", {"lora.rank": 2, "lora.targets": ("down",)}),
    ("modern", {"lora.rank": 2, "lora.targets": ("out", "up"), "lora.embeddings": "yes"}),
]


def config_of(name: str, changes: dict[str, Any]) -> RunConfig:
    return preset(name).changed({**SIZE, **changes}, where="here")


def mm_in_place(added_to: Any, a: Any, b: Any, **options: Any) -> int:
    """The counter omits products that are added in place."""
    return int(2 * a[0] * a[1] * b[1])


def counted(config: RunConfig, B: int, device: str) -> tuple[int, int]:
    """PyTorch's count of forward pass (with the head's gradients) and the rest of the backward
    pass.
    """
    custom = {
        torch.ops.aten.addmm_: mm_in_place,
        torch.ops.aten.baddbmm_: lambda out, a, b, **k: 2 * a[0] * a[1] * a[2] * b[2],
    }
    with torch.device(device):
        model = GPT(config.model)
        if config.lora.rank:
            add_adapters(model, config.lora, torch.Generator())
    ids = torch.zeros(B, config.model.context_length, dtype=torch.int64, device=device)
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            hidden = model.hidden(ids).flatten(0, 1)
            total, _ = summed_cross_entropy(
                hidden, model.head_weight, ids.flatten(), vocab_size=config.model.vocab_size
            )
        found.append(counter.get_total_flops())
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            total.backward()
        found.append(counter.get_total_flops())
    return found[0], found[1]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_flops_equal_pytorchs_count_with_math_attention(name: str, changes: dict[str, Any]) -> None:
    config, B = config_of(name, changes), 3
    n_tokens = B * config.model.context_length
    predicted = flops(config, "full")
    head = predicted.parts["head"].backward
    forward, backward = counted(config, B, "meta")
    assert n_tokens * (predicted.forward + head) == forward
    assert n_tokens * (predicted.backward - head) == backward


@pytest.mark.parametrize("window", [0, 40, 200])
def test_flops_equal_the_cpu_kernels_blocks(window: int) -> None:
    changes = {"model.context_length": 2 * BLOCK + 44, "model.n_layer": 1}
    changes |= {"model.window": window, "model.window_pattern": "S" if window else ""}
    config = config_of("modern", changes)
    predicted = flops(config, "blocks")
    forward, backward = counted(config, 1, "cpu")
    counted_per_token = (forward + backward) / config.model.context_length
    assert predicted.per_token == pytest.approx(counted_per_token, rel=1e-12)
    assert BLOCK == kernels._CausalAttention.BLOCK


def test_causal_and_window_counts() -> None:
    for T, window in ((100, 0), (100, 30), (64, 99)):
        w = min(window or T, T)
        pairs = sum(min(t + 1, w) for t in range(T))
        assert keys_per_query(T, window, "causal") == pytest.approx(pairs / T - w / (2 * T))
        assert keys_per_query(T, window, "window") == w
        assert keys_per_query(T, window, "full") == T
    first = [low for _, _, low in blocks(300, 140)]
    assert first == [max(0, start - 139) for start in (0, 128, 256)]


def test_products_of_muon() -> None:
    config = config_of("llama", {"optim.name": "muon", "model.n_kv_head": 2})
    model = GPT(config.model)
    model.initialise(torch.Generator())
    optimizers = Optimizers(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizers.all[1].step()
    assert flops(config).optimizer_products == counter.get_total_flops()


def test_products_of_muon_with_adapters() -> None:
    config = config_of("llama", {"optim.name": "muon", "model.n_kv_head": 2, "lora.rank": 3})
    model = GPT(config.model)
    add_adapters(model, config.lora, torch.Generator())
    optimizers = Optimizers(model, config.optim)
    for parameter in optimizers.named.values():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizers.all[0].step()
    assert flops(config).optimizer_products == counter.get_total_flops()


def test_activation_checkpointing_repeats_the_blocks() -> None:
    plain, again = (
        flops(config_of("gpt2", {"train.activation_checkpointing": value}))
        for value in (False, True)
    )
    head = plain.parts["head"].forward
    assert again.per_token - plain.per_token == plain.forward - head


def test_a_step() -> None:
    config = config_of("gpt2", {"optim.name": "adamw"})
    found = flops(config)
    n = config.neural.n_parameters()
    assert found.per_step(100) == 100 * config.neural.train_flops_per_token() + 15 * n


def worked(context_length: int) -> RunConfig:
    """GPT-2 XL's shape with SwiGLU of width 6400."""
    return preset("llama").changed(
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


def test_worked_figures_by_part() -> None:
    found, T = flops(worked(1024), "full"), 1024
    assert T * found.forward == 4_513_336_524_800
    shares = {name: part.forward / found.forward for name, part in found.parts.items()}
    assert shares["head"] == pytest.approx(0.036, abs=0.0005)
    assert 1 - shares["head"] == pytest.approx(0.964, abs=0.0005)
    assert shares["feed-forward"] / (1 - shares["head"]) == pytest.approx(0.69, abs=0.005)
    long = flops(worked(16_384), "full")
    assert 16_384 * long.forward == pytest.approx(149.5e12, rel=5e-4)
    assert 16 * long.forward / found.forward == pytest.approx(33.1, abs=0.05)
    attention = long.parts["scores"].forward + long.parts["values"].forward
    assert attention / long.forward == pytest.approx(0.55, abs=0.005)


def test_worked_number_of_parameters() -> None:
    V, L, D, F = 50257, 48, 1600, 6400
    n = 2 * V * D + L * (4 * D**2 + 3 * D * F + 2 * D) + D
    assert sum(p.n for p in parameters(worked(1024))) == n == 2_127_057_600
    assert 4 * n == pytest.approx(8.5e9, rel=0.005)
    assert flops(worked(1024)).optimizer_elementwise == 15 * n


def test_gpt3s_data_was_seen_less_than_once() -> None:
    """300 billion tokens by weight; two of the paper's epochs do not follow from its table."""
    table = {  # billions of tokens, weight, epochs in the paper
        "Common Crawl": (410, 0.60, 0.44),
        "WebText2": (19, 0.22, 2.9),
        "Books1": (12, 0.08, 1.9),
        "Books2": (55, 0.08, 0.43),
        "Wikipedia": (3, 0.03, 3.4),
    }
    assert sum(size for size, _, _ in table.values()) == 499
    errors = {name: 300 * w / n / epochs - 1 for name, (n, w, epochs) in table.items()}
    assert {name for name, error in errors.items() if abs(error) > 0.06} == {
        "WebText2",
        "Wikipedia",
    }
    text = (Path(lmsmith.__file__).parent.parent / "docs/accounting.md").read_text("utf-8")
    for name in ("WebText2", "Wikipedia"):
        n, w, _ = table[name]
        assert f"{w} · 300 / {n} = {300 * w / n:.1f}" in text


@pytest.mark.parametrize(
    ("layers", "heads", "width", "published"),
    [(12, 12, 768, 0.350e12), (24, 16, 1024, 1.03e12), (36, 20, 1280, 2.26e12)],
)
def test_worked_figures_of_smaller_models(
    layers: int, heads: int, width: int, published: float
) -> None:
    size = {"model.n_layer": layers, "model.n_head": heads, "model.d_model": width}
    config = worked(1024).changed({**size, "model.d_ff": 4 * width}, where="here")
    assert 1024 * flops(config, "full").forward == pytest.approx(published, rel=0.005)


def test_nanochats_d24() -> None:
    config = preset("modern").changed(nanochat(24), where="here")
    assert flops(config, "window").per_token == 4_945_112_064


# Brown et al. 2020, table D.1: petaflop/s-days for 300 billion tokens.
GPT3_DAYS = {
    "gpt3-small": 2.60,
    "gpt3-medium": 7.42,
    "gpt3-large": 15.8,
    "gpt3-xl": 27.5,
    "gpt3-2.7b": 55.2,
    "gpt3-6.7b": 139,
    "gpt3-13b": 268,
    "gpt3-175b": 3640,
}


@pytest.mark.parametrize("name", GPT3_DAYS)
def test_gpt3s_petaflop_days(name: str) -> None:
    """The paper counts 6 FLOPs per parameter and token, without attention's two products."""
    config = preset(name).changed({"model.vocab_size": 50257}, where="here")
    days = 6 * config.neural.n_parameters() * 300e9 / 8.64e19
    assert days == pytest.approx(GPT3_DAYS[name], rel=0.02)
