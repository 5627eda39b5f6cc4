"""Which parameter goes to which optimizer, and complete steps against formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lmsmith.config import OptimConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.models.lora import add_adapters
from lmsmith.optim.groups import Optimizers

FAMILIES = ("modern", "llama", "gpt2", "babygpt")
SMALL = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_kv_head": 2,
    "model.d_model": 16,
    "model.vocab_size": 13,
    "model.context_length": 11,
}


def built(name: str, **changes: Any) -> tuple[GPT, OptimConfig]:
    config = preset(name).changed({**SMALL, **changes}, where="here")
    model = GPT(config.model).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0.0, 0.5, generator=generator)
    return model, config.optim


def give_gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def groups_of(model: GPT, optimizers: Optimizers) -> dict[str, tuple[str, float, float]]:
    """Name -> (kind of optimizer, peak learning rate, weight decay)."""
    names = {p: name for name, p in model.named_parameters()}
    found = [
        (names[p], (type(optimizer).__name__, group["peak"], group["weight_decay"]))
        for optimizer in optimizers.all
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names)  # each is in one group, and in one only
    return dict(found)


@pytest.mark.parametrize("name", ["gpt2", "babygpt", "llama"])
def test_adamw_decays_only_tensors_of_two_or_more_dimensions(name: str) -> None:
    model, config = built(name)
    assert config.weight_decay == 0.1
    for key, found in groups_of(model, Optimizers(model, config)).items():
        decay = 0.1 if model.get_parameter(key).dim() >= 2 else 0.0
        assert found == ("AdamW", config.learning_rate, decay), key


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_matrices_inside_blocks(tied: bool) -> None:
    model, config = built(
        "modern",
        **{
            "model.tied_head": tied,
            "model.bias": True,
            "model.norm_gain": True,
            "model.norm": "layernorm",
            "model.positions": "learned",
            "optim.weight_decay": 0.3,
            "optim.learning_rate": 0.001,
            "optim.embedding_learning_rate": 0.002,
            "optim.muon_learning_rate": 0.03,
        },
    )
    found = groups_of(model, Optimizers(model, config))
    matrices = (
        "attention.qkv.weight",
        "attention.out.weight",
        "feed_forward.up.weight",
        "feed_forward.down.weight",
        "attention.value_gate.weight",
    )
    for key, group in found.items():
        if key.endswith(matrices):
            assert group == ("Muon", 0.03, 0.3), key
        elif "embedding" in key:
            assert group == ("AdamW", 0.002, 0.0), key
        elif key == "head.weight":
            assert group == ("AdamW", 0.001, 0.3), key
        else:
            assert model.get_parameter(key).dim() == 1
            assert group == ("AdamW", 0.001, 0.0), key
    assert sum(group[0] == "Muon" for group in found.values()) == 9
    assert (
        sum("embedding" in key for key in found) == 6
    )  # tokens, positions, three orders of n-grams, values of one layer
    assert ("head.weight" in found) != tied


@pytest.mark.parametrize("name", FAMILIES)
def test_tables_take_the_common_rate_unless_they_have_their_own(name: str) -> None:
    model, config = built(name, **{"optim.embedding_learning_rate": 0.0})
    assert (
        groups_of(model, Optimizers(model, config))["token_embedding.weight"][1]
        == config.learning_rate
    )


def test_muon_gets_the_maps_of_fused_matrices() -> None:
    """Queries, keys and values are separate maps, also with grouped-query attention; so are the two
    halves of a swiglu matrix.
    """
    model, config = built("modern", **{"model.feed_forward": "swiglu", "model.d_ff": 24})
    parts = Optimizers(model, config).all[1].parts
    names = {p: name for name, p in model.named_parameters()}
    wanted = {}
    for layer in ("blocks.0.", "blocks.1."):
        wanted |= {
            f"{layer}attention.qkv.weight": [16, 8, 8],
            f"{layer}feed_forward.up.weight": [24, 24],
        }
    assert {names[p]: sizes for p, sizes in parts.items()} == wanted
    for p, sizes in parts.items():
        assert sum(sizes) == p.size(0)


def adamw(
    start: Tensor, gradients: list[Tensor], rates: list[float], decay: float, config: OptimConfig
) -> Tensor:
    """Loshchilov and Hutter 2019, algorithm 2, with the decay scaled by the learning rate as in
    PyTorch.
    """
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        m_hat, v_hat = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
        theta = theta - lr * (m_hat / (v_hat.sqrt() + config.eps) + decay * theta)
    return theta


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_adamw_by_hand(name: str) -> None:
    """Every parameter that AdamW has, over several steps at changing shares of its peak rate."""
    model, config = built(
        name,
        **{"optim.weight_decay": 0.2, "optim.embedding_learning_rate": 0.05, "optim.eps": 1e-3},
    )
    optimizers = Optimizers(model, config)
    groups = groups_of(model, optimizers)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    shares = [0.5, 1.0, 0.25, 0.1]
    gradients: dict[str, list[Tensor]] = {key: [] for key in before}
    for step, share in enumerate(shares):
        give_gradients(model, step)
        for key, p in model.named_parameters():
            gradients[key].append(p.grad.clone())
        optimizers.step(share)
        assert all(p.grad is None for p in model.parameters())
    for key, (kind, peak, decay) in groups.items():
        if kind == "AdamW":
            wanted = adamw(
                before[key], gradients[key], [share * peak for share in shares], decay, config
            )
            torch.testing.assert_close(
                model.get_parameter(key).detach(), wanted, rtol=1e-12, atol=1e-12
            )
        else:
            assert not torch.equal(model.get_parameter(key), before[key])


def test_a_share_scales_every_peak() -> None:
    model, config = built("modern")
    optimizers = Optimizers(model, config)
    for share in (0.5, 0.25):
        give_gradients(model, 0)
        optimizers.step(share)
        for optimizer in optimizers.all:
            for group in optimizer.param_groups:
                assert group["lr"] == share * group["peak"]


def weights(model: GPT) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters()}


def assert_bitwise_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_continues_bit_for_bit_from_a_saved_state(name: str, dtype: torch.dtype) -> None:
    model, config = built(name)
    model.to(dtype)
    optimizers = Optimizers(model, config)
    for step in range(3):
        give_gradients(model, step)
        optimizers.step(0.7)
    taken = {key: tensor.clone() for key, tensor in optimizers.state().items()}
    start = weights(model)
    after = []
    for _ in range(2):  # twice: loading must not modify the given tensors
        other, _ = built(name)
        other.to(dtype).load_state_dict(start)
        resumed = Optimizers(other, config)
        resumed.load_state(taken)
        assert_bitwise_equal(resumed.state(), taken)
        for step in (3, 4):
            give_gradients(other, step)
            resumed.step(0.4)
        after.append(weights(other))
    for step in (3, 4):
        give_gradients(model, step)
        optimizers.step(0.4)
    assert_bitwise_equal(after[0], weights(model))
    assert_bitwise_equal(after[1], weights(model))


def test_a_state_names_every_tensor_by_its_parameter() -> None:
    model, config = built("modern")
    optimizers = Optimizers(model, config)
    assert optimizers.state() == {}
    give_gradients(model, 0)
    optimizers.step(1.0)
    state = optimizers.state()
    for key, (kind, _, _) in groups_of(model, optimizers).items():
        kinds = ("momentum",) if kind == "Muon" else ("step", "exp_avg", "exp_avg_sq")
        assert {name.partition("/")[0] for name in state if name.partition("/")[2] == key} == set(
            kinds
        )
    assert (
        sum(name.startswith("step/") for name in state) == len(dict(model.named_parameters())) - 9
    )
    assert all(float(value) == 1 for name, value in state.items() if name.startswith("step/"))


def test_an_incomplete_state_changes_the_run() -> None:
    """Without its momentum a resumed run differs, so the test above can fail."""
    model, config = built("modern")
    optimizers = Optimizers(model, config)
    give_gradients(model, 0)
    optimizers.step(1.0)
    other, _ = built("modern")
    other.load_state_dict(weights(model))
    resumed = Optimizers(other, config)
    for m, o in ((model, optimizers), (other, resumed)):
        give_gradients(m, 1)
        o.step(1.0)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(model).values(), weights(other).values(), strict=True)
    )


def with_adapters(name: str, **changes: Any) -> tuple[GPT, OptimConfig]:
    config = preset(name).changed({**SMALL, "lora.rank": 2, **changes}, where="here")
    model = GPT(config.model).double()
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    add_adapters(model, config.lora, generator)
    return model, config.optim


def test_muon_trains_adapters_alone_and_each_map_by_itself() -> None:
    model, config = with_adapters("modern")
    optimizers = Optimizers(model, config)
    assert [type(optimizer).__name__ for optimizer in optimizers.all] == ["Muon"]
    parts = {name: optimizers.all[0].parts.get(p) for name, p in optimizers.named.items()}
    assert parts["blocks.0.attention.qkv.lora_a"] == [2, 2, 2]
    assert parts["blocks.1.attention.qkv.lora_b"] == [16, 8, 8]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in optimizers.named.values():
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
    gradient = model.get_parameter("blocks.0.attention.qkv.lora_b").grad.clone()
    optimizers.step(1.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(optimizers.named)
    # Each map's change is its own orthogonal factor: by singular value decomposition.
    name = "blocks.0.attention.qkv.lora_b"
    change = before[name] - model.get_parameter(name).detach()
    for part, of_gradient in zip(change.split([16, 8, 8]), gradient.split([16, 8, 8]), strict=True):
        u, _, vh = torch.linalg.svd(of_gradient, full_matrices=False)
        cosine = (part * (u @ vh)).sum() / part.norm() / (u @ vh).norm()
        assert cosine > 0.97
    assert set(optimizers.state()) == {f"momentum/{name}" for name in optimizers.named}


def test_a_model_without_learned_parameters_is_refused() -> None:
    for name in ("modern", "gpt2"):
        model, config = built(name)
        for p in model.parameters():
            p.requires_grad_(False)
        with pytest.raises(ConfigError, match="every parameter is frozen"):
            Optimizers(model, config)
