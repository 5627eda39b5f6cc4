"""Every setting of the Transformer: what it changes, that it changes nothing else, and common
properties.

Models get equal weights wherever parameters of the same name have the same indices. So where a
setting does not affect the output, the output is bit-identical or equal up to rounding.
"""

import itertools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.config import settings
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

V, T = 13, 11
BASE: dict[str, Any] = {
    "n_layer": 4,
    "n_head": 4,
    "d_model": 16,
    "vocab_size": V,
    "context_length": T,
    "d_ff": 24,
}
NGRAMS = {"ngram_tables": (2, 3), "ngram_table_size": 31}
LONG = {"rope_factor": 3.0, "rope_original_context": 5, "rope_factors": (1.5, 4.0)}
EVERYWHERE, NOWHERE = "", "-"
BLOCK = r"blocks\.\d\."

# setting: (what is set besides, its value, the parameters that come, go or change shape, where the
# output changes) The output changes EVERYWHERE, NOWHERE, or from a position on.
SWITCHES: dict[str, list[tuple[dict[str, Any], Any, str, str | int]]] = {
    "size": [({}, 9, NOWHERE, NOWHERE)],  # it sets other settings before a model is built
    "n_layer": [({}, 5, r"blocks\.4\.", EVERYWHERE)],
    "n_head": [
        ({}, 2, BLOCK + r"attention\.qk_gain", 1)
    ],  # a first token sees itself, whatever the weights
    "n_kv_head": [({}, 2, BLOCK + r"attention\.qkv", EVERYWHERE), ({}, 4, NOWHERE, NOWHERE)],
    "n_head_per_kv": [
        ({}, 2, BLOCK + r"attention\.qkv", EVERYWHERE),
        ({}, 3, BLOCK + r"attention\.qkv", EVERYWHERE),  # 2, because 3 does not divide 4
        ({"n_kv_head": 4}, 2, NOWHERE, NOWHERE),
    ],
    "d_model": [({}, 24, r"token|head|" + BLOCK + "(attention.(qkv|out)|feed)", EVERYWHERE)],
    "d_head": [({}, 6, BLOCK + r"attention\.(qkv|out)", EVERYWHERE), ({}, 4, NOWHERE, NOWHERE)],
    "d_ff": [({}, 40, BLOCK + "feed_forward", EVERYWHERE)],
    "vocab_size": [({}, 17, "token|head", NOWHERE)],
    "vocab_multiple": [({}, 8, "token|head", NOWHERE)],
    "context_length": [
        ({}, 12, NOWHERE, NOWHERE),
        ({"positions": "learned"}, 12, "position", NOWHERE),
    ],
    "ngram_tables": [({"ngram_table_size": 31}, (2, 3), "ngram", EVERYWHERE)],
    "ngram_table_size": [(NGRAMS, 29, "ngram", EVERYWHERE)],
    "norm": [
        ({}, "layernorm", NOWHERE, EVERYWHERE),
        ({"embedding_norm": False, "logit_softcap": 0.0}, "none", NOWHERE, EVERYWHERE),
        ({"norm_gain": True, "bias": True}, "layernorm", r".*norm.*\.bias", EVERYWHERE),
    ],
    "norm_placement": [
        ({"norm_gain": True}, "post", "final_norm", EVERYWHERE),
        ({"norm_gain": True}, "output", NOWHERE, EVERYWHERE),
        ({"norm_gain": True, "parallel_residual": True}, "output", NOWHERE, EVERYWHERE),
    ],
    "parallel_residual": [({}, True, NOWHERE, EVERYWHERE)],
    "norm_gain": [({}, True, rf"({BLOCK}|final_)norm", EVERYWHERE)],
    "norm_eps": [({}, 0.1, NOWHERE, EVERYWHERE)],
    "embedding_norm": [({}, False, NOWHERE, EVERYWHERE)],
    "positions": [({}, "learned", "position", EVERYWHERE), ({}, "none", NOWHERE, 1)],
    "rope_base": [({}, 7.0, NOWHERE, 1)],
    "rope_fraction": [({}, 0.5, NOWHERE, 1)],
    "rope_pattern": [({}, "RN", NOWHERE, 1), ({}, "RRRRN", NOWHERE, NOWHERE)],
    "rope_scaling": [
        ({"rope_factor": 3.0, "rope_original_context": 30}, "yarn", NOWHERE, 1),
        (LONG, "longrope", NOWHERE, 1),
        ({"rope_factor": 3.0}, "linear", NOWHERE, 1),
        ({"rope_factor": 3.0, "rope_original_context": 5}, "llama3", NOWHERE, 1),
    ],
    "rope_factor": [({"rope_scaling": "linear"}, 3.0, NOWHERE, 1)],
    "rope_factors": [(LONG | {"rope_scaling": "longrope"}, (1.0, 3.0), NOWHERE, 1)],
    "rope_attention_factor": [
        ({"rope_scaling": "yarn", "rope_factor": 3.0, "rope_original_context": 30}, 1.5, NOWHERE, 1)
    ],
    "rope_original_context": [({"rope_scaling": "llama3", "rope_factor": 3.0}, 5, NOWHERE, 1)],
    "feed_forward": [
        *(({}, kind, NOWHERE, EVERYWHERE) for kind in ("gelu", "gelu-tanh", "silu")),
        *(({}, kind, BLOCK + r"feed_forward\.up", EVERYWHERE) for kind in ("swiglu", "geglu")),
    ],
    "bias": [({}, True, BLOCK + r".*\.bias", EVERYWHERE)],
    "attention_bias": [
        ({}, "all", BLOCK + r"attention\..*\.bias", EVERYWHERE),
        ({}, "qkv", BLOCK + r"attention\.qkv\.bias", EVERYWHERE),
        ({}, "none", NOWHERE, NOWHERE),
        ({"bias": True}, "none", BLOCK + r"attention\..*\.bias", EVERYWHERE),
        ({"bias": True}, "qkv", BLOCK + r"attention\.out\.bias", EVERYWHERE),
        ({"bias": True}, "all", NOWHERE, NOWHERE),
    ],
    "tied_head": [({}, True, "head", EVERYWHERE)],
    "dropout": [({}, 0.3, NOWHERE, NOWHERE)],
    "attention_dropout": [({}, 0.3, NOWHERE, NOWHERE)],
    "ngram_dropout": [(NGRAMS, 0.3, NOWHERE, NOWHERE)],
    "qk_norm": [({}, False, BLOCK + r"attention\.qk_gain", 1)],
    "qk_gain": [
        ({}, "dimension", BLOCK + r"attention\..*gain", 1),
        ({}, "projection", BLOCK + r"attention\..*gain", 1),
        ({"n_kv_head": 2}, "projection", BLOCK + r"attention\..*gain", 1),
    ],
    "window": [
        ({"window_pattern": "SL"}, 4, NOWHERE, 4),
        ({"window_pattern": "S"}, 12, NOWHERE, NOWHERE),
    ],
    "window_pattern": [({"window": 4}, "SSSL", NOWHERE, 4)],
    "value_embedding_every": [
        ({}, 2, rf"value_embeddings\.[13]|{BLOCK}attention\.value_gate", EVERYWHERE),
        ({"n_kv_head": 2}, 1, rf"value_embeddings|{BLOCK}attention\.value_gate", EVERYWHERE),
    ],
    "residual_scalars": [({}, True, "residual_scale|input_scale", EVERYWHERE)],
    "logit_softcap": [({}, 0.0, NOWHERE, EVERYWHERE)],
    "init": [({}, init, NOWHERE, NOWHERE) for init in ("gpt2", "truncated-normal")],
}
# Windows and stretched positions are compared with a model without them.
UNSCALED = {
    "rope_scaling": "none",
    "rope_factor": 1.0,
    "rope_factors": (),
    "rope_original_context": 0,
}
WITHOUT = {"window": {"window_pattern": ""}, "window_pattern": {"window": 0}} | dict.fromkeys(
    UNSCALED, UNSCALED
)
CASES = [(name, *case) for name, cases in SWITCHES.items() for case in cases]
IDS = [f"{name}-{value}" for name, _, value, _, _ in CASES]


def numbers(name: str, p: Tensor) -> Tensor:
    """The same numbers for the same name and the same indices, whatever the shape of the table."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    drawn = torch.randn((128, 64)[: p.dim()], generator=generator, dtype=torch.float64)
    return 0.05 + 0.4 * drawn[tuple(slice(n) for n in p.shape)]


def model_of(**settings: Any) -> GPT:
    model = GPT(GPTConfig(**BASE | settings)).double().eval()
    for name, p in model.named_parameters():
        p.data.copy_(numbers(name, p))
    return model


def pair(name: str, besides: dict[str, Any], value: Any) -> tuple[GPT, GPT]:
    return model_of(**besides | WITHOUT.get(name, {})), model_of(**besides | {name: value})


def random_ids(B: int = 2, seed: int = 5) -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def test_every_setting_is_covered() -> None:
    own = {name.removeprefix("model.") for name, _ in settings() if name.startswith("model.")}
    assert set(SWITCHES) == own - {"kind"}
    assert all(
        GPTConfig.__dataclass_fields__[name].default != value for name, _, value, _, _ in CASES
    )


@pytest.mark.parametrize(("name", "besides", "value", "parameters", "output"), CASES, ids=IDS)
def test_a_switch_changes_what_it_should_and_nothing_else(
    name: str, besides: dict[str, Any], value: Any, parameters: str, output: str | int
) -> None:
    off, on = pair(name, besides, value)
    shapes = [{key: tuple(p.shape) for key, p in model.named_parameters()} for model in (off, on)]
    changed = {key for key in shapes[0] | shapes[1] if shapes[0].get(key) != shapes[1].get(key)}
    every = {key for key in shapes[0] | shapes[1] if re.match(parameters, key)}
    assert changed == (set() if parameters == NOWHERE else every)
    assert parameters == NOWHERE or changed
    ids = random_ids()
    with torch.no_grad():
        before, after = off(ids), on(ids)[..., :V]
    differs = (before - after).abs().amax((0, 2)) > 1e-9
    if output == NOWHERE:
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    elif output == EVERYWHERE:
        assert differs.all()
    else:
        assert differs.tolist() == [t >= int(output) for t in range(T)]


@pytest.mark.parametrize(("name", "besides", "value", "parameters", "output"), CASES, ids=IDS)
def test_with_every_setting_models_are_causal_learn_and_continue_from_a_cache(
    name: str, besides: dict[str, Any], value: Any, parameters: str, output: str | int
) -> None:
    """No position sees a later one (by gradients); every parameter has a gradient; reading in
    pieces with a cache equals reading at once.
    """
    model, ids = pair(name, besides, value)[1], random_ids()
    embedded: list[Tensor] = []
    hook = model.token_embedding.register_forward_hook(lambda *call: embedded.append(call[2]))
    logits = model(ids)
    hook.remove()
    weights = torch.linspace(1.0, 2.0, logits.size(-1), dtype=torch.float64)
    for t in (0, 4, T - 1):
        (d,) = torch.autograd.grad((logits[:, t] * weights).sum(), embedded, retain_graph=True)
        reached = d.abs().amax((0, 2)) > 0
        assert reached[t]
        assert not reached[t + 1 :].any()
        assert reached[: t + 1].all() or "window" in name
    F.cross_entropy(logits.flatten(0, 1), ids.roll(1).flatten()).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.any(), key
    state = model.new_state(2)
    with torch.no_grad():
        parts = [model(part, state) for part in ids.split((3, 1, 5, 2), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "value"),
    [("dropout", {}), ("attention_dropout", {}), ("ngram_dropout", NGRAMS)],
)
def test_dropout_only_in_training(settings: str, value: dict[str, Any]) -> None:
    model = model_of(**value | {settings: 0.3})
    ids = random_ids()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trained = model.train()(ids)
    assert not torch.allclose(trained, model.eval()(ids))


# Initial weights


def initialised(settings: dict[str, Any], seed: int = 1) -> GPT:
    model = GPT(GPTConfig(**BASE | settings))
    model.initialise(torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("init", ["gpt2", "truncated-normal"])
@pytest.mark.parametrize(
    "addition",
    [NGRAMS, {"value_embedding_every": 2}, {"residual_scalars": True}],
    ids=lambda addition: next(iter(addition)),
)
def test_optional_parts_start_without_effect(addition: dict[str, Any], init: str) -> None:
    with_it, without = initialised(addition | {"init": init}), initialised({"init": init})
    with torch.no_grad():
        assert torch.equal(with_it(random_ids()), without(random_ids()))
    for key, weight in without.named_parameters():
        assert torch.equal(weight, with_it.get_parameter(key))


ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"norm_placement": "post"},
    {"norm": "none", "embedding_norm": False, "logit_softcap": 0.0},
    {"value_embedding_every": 2, "residual_scalars": True, "window": 4, "window_pattern": "SL"},
    {"tied_head": True, "positions": "learned", "bias": True, "norm_gain": True},
]


@pytest.mark.parametrize("init", ["gpt2", "truncated-normal", "zero-projections"])
@pytest.mark.parametrize("settings", ARCHITECTURES)
def test_every_initialisation_can_learn(settings: dict[str, Any], init: str) -> None:
    """Zero projections block gradients for a step or two; then every parameter moves and the loss
    falls.
    """
    model, ids = initialised(settings | {"init": init}), random_ids(8)
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    normalised = model.config.norm != "none"  # without, logits may be large at first
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if normalised:
        assert losses[0] == pytest.approx(math.log(V), abs=1.5)
    assert losses[-1] < losses[0] - 0.1
    assert all(not torch.equal(p, start[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize(
    "settings", [{}, {"n_kv_head": 2}, {"feed_forward": "swiglu"}, {"tied_head": True}]
)
def test_truncated_normal(settings: dict[str, Any]) -> None:
    """Variance 2 / (fan in + fan out) before the cut at three sigma, for each map of a fused
    matrix.
    """
    sizes = {"d_model": 128, "d_ff": 192, "vocab_size": 500, "init": "truncated-normal"}
    model = initialised(settings | sizes)
    table = 1 / 128 if "tied_head" in settings else 1.0
    kv = 64 if "n_kv_head" in settings else 128
    seen = 0
    for key, weight in model.named_parameters():
        if weight.dim() < 2:
            assert (weight == 1).all()
            continue
        rows = [weight.size(0)]
        if key.endswith("qkv.weight"):
            rows = [128, kv, kv]
        elif key.endswith("up.weight") and "feed_forward" in settings:
            rows = [192, 192]
        assert model.parts().get(key, [weight.size(0)]) == rows
        for part in weight.detach().split(rows):
            std = table if key.startswith("token") else math.sqrt(2 / (part.size(0) + part.size(1)))
            assert float(part.abs().max()) <= 3 * std
            assert float(part.abs().max()) > 2.9 * std
            # Cut at three sigma a normal keeps 0.98658 of its standard deviation.
            assert float(part.std()) == pytest.approx(
                0.98658 * std, rel=5 / math.sqrt(2 * part.numel())
            )
            seen += part.numel()
    assert seen == sum(p.numel() for p in model.parameters() if p.dim() >= 2)


def test_maps_of_fused_matrices() -> None:
    for changes in (
        {},
        {"n_kv_head": 2, "feed_forward": "geglu"},
        {"feed_forward": "swiglu", "d_ff": 7},
    ):
        model = GPT(GPTConfig(**BASE | changes))  # type: ignore[arg-type]
        for key, rows in model.parts().items():
            assert sum(rows) == model.get_parameter(key).size(0)
        kinds = {
            key.rpartition(".")[0].partition(".")[2].partition(".")[2] for key in model.parts()
        }
        assert kinds == {"attention.qkv"} | (
            {"feed_forward.up"} if "feed_forward" in changes else set()
        )


def test_a_window_is_as_long_as_it_says() -> None:
    """One layer reaches as far as the window; n layers reach n times as far, minus one each."""
    for n_layer, window in itertools.product((1, 2, 3), (1, 2, 4)):
        model = model_of(n_layer=n_layer, window=window, window_pattern="S")
        embedded: list[Tensor] = []
        hook = model.token_embedding.register_forward_hook(
            lambda *call, into=embedded: into.append(call[2])
        )
        logits = model(random_ids(1))
        hook.remove()
        (d,) = torch.autograd.grad(logits[0, T - 1].square().sum(), embedded)
        reach = n_layer * (window - 1) + 1
        assert (d[0].abs().amax(-1) > 0).tolist() == [t >= T - reach for t in range(T)]
