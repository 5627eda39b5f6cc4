"""The Transformer against Hugging Face's with the same weights, and properties of all kinds."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.config.presets import preset
from lmsmith.loss import summed_cross_entropy
from lmsmith.models import kernels
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

FAMILIES = ("modern", "llama", "gpt2", "babygpt")
Map = Callable[[Tensor], Tensor]

SMALL: dict[str, Any] = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.d_model": 12,
    "model.vocab_size": 13,
    "model.context_length": 11,
}


def small(name: str, **changes: Any) -> GPTConfig:
    """A preset's model, small enough for milliseconds; `changes` omit the section's name."""
    ours = {f"model.{key}": value for key, value in changes.items()}
    return preset(name).changed({**SMALL, **ours}, where="here").model


def random_model(config: GPTConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> GPT:
    """Every parameter is random, so that none is zero or one and could be missing unnoticed. No
    dropout.
    """
    model = GPT(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0.1, 0.5, generator=generator)
    return model


def random_ids(B: int, T: int, V: int = 13, seed: int = 5) -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


# Hugging Face


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return pytest.importorskip("transformers")


def same(x: Tensor) -> Tensor:
    return x


def transposed(x: Tensor) -> Tensor:
    """Hugging Face's GPT-2 stores its projections as (in, out)."""
    return x.T


def gpt2_names(n_layer: int) -> Iterator[tuple[str, list[str], Map]]:
    """Our name, theirs, and the function that turns their weight, or gradient, into ours."""
    yield "token_embedding.weight", ["transformer.wte.weight"], same
    yield "position_embedding.weight", ["transformer.wpe.weight"], same
    layer = {
        "norm_attention": ("ln_1", same),
        "attention.qkv": ("attn.c_attn", transposed),
        "attention.out": ("attn.c_proj", transposed),
        "norm_feed_forward": ("ln_2", same),
        "feed_forward.up": ("mlp.c_fc", transposed),
        "feed_forward.down": ("mlp.c_proj", transposed),
    }
    for index, (ours, (theirs, change)) in itertools.product(range(n_layer), layer.items()):
        yield f"blocks.{index}.{ours}.weight", [f"transformer.h.{index}.{theirs}.weight"], change
        yield f"blocks.{index}.{ours}.bias", [f"transformer.h.{index}.{theirs}.bias"], same
    yield "final_norm.weight", ["transformer.ln_f.weight"], same
    yield "final_norm.bias", ["transformer.ln_f.bias"], same


def llama_names(config: GPTConfig) -> Iterator[tuple[str, list[str], Map]]:
    K = config.width_head

    def neighbours(x: Tensor) -> Tensor:
        """Hugging Face rotates number i of a head with i + K/2, we rotate neighbours: rows 0, K/2,
        1, ...
        """
        return x.view(-1, 2, K // 2, x.size(1)).transpose(1, 2).reshape(x.shape)

    def fused(x: Tensor) -> Tensor:
        n_qk = (config.n_head + config.n_kv) * K
        return torch.cat([neighbours(x[:n_qk]), x[n_qk:]])

    yield "token_embedding.weight", ["model.embed_tokens.weight"], same
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        attention = [f"{theirs}self_attn.{part}_proj.weight" for part in "qkv"]
        yield f"{ours}attention.qkv.weight", attention, fused
        yield f"{ours}attention.out.weight", [f"{theirs}self_attn.o_proj.weight"], same
        feed_forward = [f"{theirs}mlp.{part}_proj.weight" for part in ("gate", "up")]
        yield f"{ours}feed_forward.up.weight", feed_forward, same
        yield f"{ours}feed_forward.down.weight", [f"{theirs}mlp.down_proj.weight"], same
        yield f"{ours}norm_attention.weight", [f"{theirs}input_layernorm.weight"], same
        yield f"{ours}norm_feed_forward.weight", [f"{theirs}post_attention_layernorm.weight"], same
    yield "final_norm.weight", ["model.norm.weight"], same
    yield "head.weight", ["lm_head.weight"], same


def assert_same_loss_and_gradients(
    ours: GPT,
    theirs: Any,
    names: list[tuple[str, list[str], Map]],
    ids: Tensor,
    tolerance: float,
    spread: float = 0.3,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, p in theirs.named_parameters():
        p.data.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, spread, generator=generator)
    parameters = dict(ours.named_parameters())
    assert sorted(parameters) == sorted(name for name, _, _ in names)
    others = dict(theirs.named_parameters())
    assert sorted(others) == sorted(itertools.chain.from_iterable(found for _, found, _ in names))
    for name, found, change in names:
        parameters[name].data.copy_(change(torch.cat([others[other] for other in found])))
    targets = ids[:, 1:]
    logits = theirs(input_ids=ids[:, :-1]).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    total, n = summed_cross_entropy(
        ours.hidden(ids[:, :-1]).flatten(0, 1),
        ours.head_weight,
        targets.flatten(),
        vocab_size=ours.config.vocab_size,
    )
    loss = total / n
    assert abs(float(loss.detach()) - float(wanted.detach())) <= tolerance / 100 * float(
        wanted.detach()
    )
    torch.testing.assert_close(ours(ids[:, :-1]), logits, rtol=tolerance, atol=tolerance)
    loss.backward()
    wanted.backward()
    for name, found, change in names:
        a, b = parameters[name].grad, change(torch.cat([others[other].grad for other in found]))
        assert a is not None
        assert float((a - b).norm()) <= tolerance * float(b.norm()), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_gpt2_equals_hugging_face(hugging_face: Any, dtype: torch.dtype, tolerance: float) -> None:
    theirs = hugging_face.GPT2LMHeadModel(
        hugging_face.GPT2Config(
            n_layer=3,
            n_head=3,
            n_embd=33,
            vocab_size=37,
            n_positions=19,
            attn_implementation="eager",
        )
    )
    config = small("gpt2", n_layer=3, n_head=3, d_model=33, vocab_size=37, context_length=19)
    ids = random_ids(4, 18, 37)
    assert_same_loss_and_gradients(
        GPT(config).to(dtype), theirs.to(dtype).eval(), list(gpt2_names(3)), ids, tolerance
    )


def test_llama_equals_hugging_face(hugging_face: Any) -> None:
    theirs = hugging_face.LlamaForCausalLM(
        hugging_face.LlamaConfig(
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            hidden_size=60,
            intermediate_size=44,
            vocab_size=37,
            max_position_embeddings=19,
            rms_norm_eps=1e-5,
            attn_implementation="eager",
        )
    )
    config = small(
        "llama",
        n_layer=3,
        n_head=6,
        n_kv_head=2,
        d_model=60,
        d_ff=44,
        vocab_size=37,
        context_length=19,
    )
    ids = random_ids(4, 18, 37)
    assert_same_loss_and_gradients(GPT(config), theirs.eval(), list(llama_names(config)), ids, 1e-4)


@pytest.mark.parametrize("n_layer", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_gpt2_at_full_width_equals_hugging_face(hugging_face: Any, n_layer: int) -> None:
    """124M parameters, 12 layers, float32, GPT-2's initial weights: loss to 1e-6, every gradient to
    1e-4 (relative).
    """
    theirs = hugging_face.GPT2LMHeadModel(
        hugging_face.GPT2Config(
            n_layer=n_layer, attn_implementation="eager", vocab_size=50257 if n_layer == 12 else 997
        )
    ).eval()
    vocab_size = theirs.config.vocab_size
    changes = {"model.n_layer": n_layer, "model.vocab_size": vocab_size}
    config = preset("gpt2").changed(changes, where="here").model
    ids = random_ids(1, 129, vocab_size)
    names = list(gpt2_names(n_layer))
    assert_same_loss_and_gradients(GPT(config), theirs, names, ids, 1e-4, spread=0.02)


def test_post_norm_equals_the_first_gpt(hugging_face: Any) -> None:
    """Radford et al. 2018: GPT-2 with norms after each residual addition and no final norm."""
    sizes = {
        "n_layer": 3,
        "n_head": 3,
        "n_embd": 33,
        "vocab_size": 37,
        "n_positions": 19,
        "afn": "gelu",
    }
    theirs = hugging_face.OpenAIGPTLMHeadModel(hugging_face.OpenAIGPTConfig(**sizes))
    config = small(
        "gpt2",
        n_layer=3,
        n_head=3,
        d_model=33,
        vocab_size=37,
        context_length=19,
        norm_placement="post",
    )
    renamed = {"transformer.wte.weight": "transformer.tokens_embed.weight"}
    renamed |= {"transformer.wpe.weight": "transformer.positions_embed.weight"}
    names = [
        (ours, [renamed.get(name, name) for name in found], change)
        for ours, found, change in gpt2_names(3)
        if not ours.startswith("final_norm")
    ]
    assert_same_loss_and_gradients(
        GPT(config).double(), theirs.double().eval(), names, random_ids(4, 18, 37), 1e-11
    )


def test_sliding_windows_equal_mistral(hugging_face: Any) -> None:
    """Jiang et al. 2023: Llama with a sliding window in every layer."""
    sizes = {
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_size": 60,
        "intermediate_size": 44,
        "vocab_size": 37,
        "max_position_embeddings": 19,
        "rms_norm_eps": 1e-5,
        "sliding_window": 5,
        "rope_theta": 10_000.0,
    }
    theirs = hugging_face.MistralForCausalLM(
        hugging_face.MistralConfig(**sizes, attn_implementation="eager")
    )
    config = small(
        "llama",
        n_layer=3,
        n_head=6,
        n_kv_head=2,
        d_model=60,
        d_ff=44,
        vocab_size=37,
        context_length=19,
    )
    config = dataclasses.replace(config, window=5, window_pattern="S")
    assert_same_loss_and_gradients(
        GPT(config), theirs.eval(), list(llama_names(config)), random_ids(4, 18, 37), 1e-4
    )


# Sizes


def on_meta(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


@pytest.mark.parametrize(
    ("n_layer", "n_head", "d_model", "wanted"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_number_of_parameters_of_gpt2(n_layer: int, n_head: int, d_model: int, wanted: int) -> None:
    sizes = {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "vocab_size": 50257}
    config = preset("gpt2").changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model
    assert config.context_length == 1024
    assert on_meta(config).n_parameters() == wanted


def test_number_of_parameters_of_the_presets() -> None:
    gpt2 = (
        preset("gpt2")
        .changed({"model.vocab_size": 50257, "model.vocab_multiple": 64}, where="here")
        .model
    )
    assert on_meta(gpt2).n_parameters() == 124_475_904  # 50,304 rows
    baby = preset("babygpt").changed({"model.vocab_size": 65}, where="here").model
    assert on_meta(baby).n_parameters() == 10_770_816
    # nanoGPT's 10.65M excludes the 256 positions, and its linear maps and norms have no biases
    # (10,745,088 with them).
    plain = (
        preset("babygpt").changed({"model.vocab_size": 65, "model.bias": False}, where="here").model
    )
    assert on_meta(plain).n_parameters() - 256 * 384 == 10_646_784


def test_the_largest_gpt2_is_built_in_less_than_a_second() -> None:
    """On the meta device, without weights; the best of three, in this thread's CPU time."""

    def seconds() -> float:
        began = time.thread_time()
        on_meta(preset("gpt2-xl").changed({"model.vocab_size": 50257}, where="here").model)
        return time.thread_time() - began

    assert min(seconds() for _ in range(3)) < 1


def test_a_tied_head_is_the_table() -> None:
    model = GPT(small("gpt2"))
    assert model.head_weight is model.token_embedding.weight
    untied = GPT(small("modern"))
    assert untied.head_weight is untied.head.weight


# Properties of all kinds

KINDS = [
    {"positions": positions, "norm": norm, "ngram_tables": ngrams, "feed_forward": feed_forward}
    for positions, norm, ngrams, feed_forward in itertools.product(
        ("learned", "rope", "none"),
        ("layernorm", "rmsnorm"),
        ((), (2, 4)),
        ("gelu", "gelu-tanh", "silu", "relu2", "swiglu"),
    )
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_no_position_sees_a_later_one(kind: dict[str, Any]) -> None:
    """By gradients: a logit depends on all tokens up to its own and on no later one, also through
    hashes.
    """
    config = GPTConfig(
        n_layer=2,
        n_head=2,
        d_model=8,
        d_ff=8,
        vocab_size=7,
        context_length=6,
        ngram_table_size=31,
        **kind,
    )
    model, T = random_model(config), 6
    ids = random_ids(1, T, 7)
    embedded: list[Tensor] = []
    hook = model.token_embedding.register_forward_hook(
        lambda *call: embedded.append(call[2].requires_grad_())
    )
    logits = model(ids)
    hook.remove()
    weights = torch.linspace(1.0, 2.0, 7, dtype=torch.float64)
    for t in range(T):
        (d,) = torch.autograd.grad((logits[0, t] * weights).sum(), embedded, retain_graph=True)
        reached = d[0].abs().amax(-1) > 0
        assert reached.tolist() == [True] * (t + 1) + [False] * (T - t - 1)
    for t in range(T):
        other = ids.clone()
        other[0, t:] = (other[0, t:] + 1) % 7
        changed = (model(other) != logits).any(-1)[0]
        assert not changed[:t].any()
        assert changed[t:].all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunks", [(11,), (1,) * 11, (3, 1, 5, 2), (7, 4), (1, 10)])
def test_reading_piece_by_piece_equals_reading_at_once(name: str, chunks: tuple[int, ...]) -> None:
    model = random_model(small(name))
    ids = random_ids(3, 11)
    state = model.new_state(3)
    with torch.no_grad():
        parts = [model(part, state) for part in ids.split(chunks, dim=1)]
        assert state.position == 11
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[::7], ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_reading_piece_by_piece_for_every_kind(kind: dict[str, Any], n_kv_head: int) -> None:
    config = GPTConfig(
        n_layer=2, n_head=4, n_kv_head=n_kv_head, d_model=16, vocab_size=7, context_length=9, **kind
    )
    model, ids = random_model(config), random_ids(2, 9, 7)
    state = model.new_state(2)
    with torch.no_grad():
        parts = [model(part, state) for part in ids.split((2, 1, 4, 2), dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [{}, {"window": 30, "window_pattern": "SL"}])
def test_a_cache_grows_with_the_text(window: dict[str, Any]) -> None:
    """The cache does not reserve a long context, and keeps its contents when it grows."""
    config = GPTConfig(
        n_layer=2, n_head=2, n_kv_head=1, d_model=8, vocab_size=7, context_length=4096, **window
    )
    model, ids = random_model(config), random_ids(2, 300, 7)
    state, parts, rooms = model.new_state(2), [], []
    with torch.no_grad():
        for part in ids.split((60, 4, 1, 63, 2, 170), dim=1):
            parts.append(model(part, state))
            rooms.append(state.layers[1].keys.size(2))
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-12, atol=1e-12)
    assert rooms == [64, 64, 128, 128, 256, 512]


def test_rows_of_a_batch_are_independent() -> None:
    model, ids = random_model(small("modern")), random_ids(3, 11)
    one_by_one = torch.cat([model(row[None]) for row in ids])
    torch.testing.assert_close(model(ids), one_by_one, rtol=1e-12, atol=1e-12)


def test_more_tokens_than_the_context_fail_an_assertion() -> None:
    model = GPT(small("modern"))
    with pytest.raises(AssertionError, match="more tokens than context_length"):
        model(random_ids(1, 12))
    state = model.new_state(1)
    model(random_ids(1, 8), state)
    with pytest.raises(AssertionError, match="more tokens than context_length"):
        model(random_ids(1, 4), state)


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_padded_ids_are_never_predicted(name: str) -> None:
    """Logits have the vocabulary's width. Padded rows, however large, change neither logits nor
    loss.
    """
    model = random_model(small(name, vocab_multiple=16))
    ids = random_ids(2, 11)
    assert model.head_weight.shape == (16, 12)

    def loss() -> float:
        total, _ = summed_cross_entropy(
            model.hidden(ids).flatten(0, 1),
            model.head_weight,
            ids.flatten(),
            vocab_size=13,
            softcap=0.0,
        )
        return float(total.detach())

    before, cost = model(ids), loss()
    assert before.shape == (2, 11, 13)
    with torch.no_grad():
        model.head_weight[13:] = 1e6
    assert torch.equal(model(ids), before)
    assert loss() == cost


def test_the_cap_bounds_logits_and_is_a_tanh() -> None:
    capped, plain = (
        random_model(small("modern", logit_softcap=3.0)),
        random_model(small("modern", logit_softcap=0.0)),
    )
    with torch.no_grad():
        for model in (capped, plain):
            model.head.weight.mul_(4)
        ids = random_ids(4, 11)
        logits, raw = capped(ids), plain(ids)
    assert float(raw.abs().max()) > 15
    assert float(logits.abs().max()) <= 3.0
    torch.testing.assert_close(logits, 3 * torch.tanh(raw / 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_float32_under_bfloat16(name: str) -> None:
    model = random_model(small(name), dtype=torch.float32)
    ids = random_ids(2, 11)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = model(ids)
        state = model.new_state(2)
        parts = torch.cat([model(part, state) for part in ids.split((4, 7), 1)], 1)
    wanted = model.double()(ids).detach()
    assert found.dtype == torch.float32
    spread = float(wanted.std())
    assert float((found - wanted).norm()) < 0.1 * spread * math.sqrt(wanted.numel())
    assert float((parts - wanted).norm()) < 0.1 * spread * math.sqrt(wanted.numel())


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_under_bfloat16_are_close(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", block)
    model, ids = random_model(small(name), dtype=torch.float32), random_ids(4, 11)
    found = []
    for precision in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            hidden = model.hidden(ids)
        total, _ = summed_cross_entropy(
            hidden.flatten(0, 1), model.head_weight, ids.flatten(), vocab_size=13
        )
        total.backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters()})
    for key, wanted in found[0].items():
        # A gain per head sums over all positions, and most of the sum cancels.
        bound = 0.2 if key.endswith("qk_gain") else 0.05
        assert float((found[1][key] - wanted).norm()) < bound * float(wanted.norm()), key


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout", "ngram_dropout"])
def test_dropout_is_for_training_and_repeats_with_the_seed(dropout: str) -> None:
    config = small("modern", ngram_tables=(2,), **{dropout: 0.5})
    model, without = random_model(config), random_model(small("modern", ngram_tables=(2,)))
    ids = random_ids(2, 11)
    assert torch.equal(model(ids), without(ids))
    model.train()
    with torch.random.fork_rng(devices=[]):
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(model(ids))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


# Initial weights


def initialised(config: GPTConfig, seed: int = 1) -> GPT:
    model = GPT(config)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_follow_from_the_generators_seed_alone(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        a = initialised(small(name)).state_dict()
        torch.manual_seed(2)
        b, c = initialised(small(name)).state_dict(), initialised(small(name), seed=2).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def spread(weight: Tensor) -> tuple[float, float]:
    """Checks mean and root mean square to within a few standard errors."""
    return float(weight.detach().mean()), float(weight.detach().square().mean().sqrt())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_initial_weights_of_gpt2(name: str) -> None:
    config = small(name, n_layer=8, d_model=128, vocab_size=500, context_length=128)
    for key, weight in initialised(config).named_parameters():
        if key.endswith(".bias"):
            assert not weight.any()
        elif weight.dim() == 1:
            assert (weight == 1).all()
        else:
            std = (
                0.02 / 4 if key.endswith(("attention.out.weight", "down.weight")) else 0.02
            )  # sqrt(2 * 8 layers)
            n = weight.numel()
            mean, size = spread(weight)
            assert abs(mean) < 5 * std / math.sqrt(n), key
            assert size == pytest.approx(std, rel=5 / math.sqrt(2 * n)), key
            assert float(weight.detach().abs().max()) > 3 * std  # a normal has tails


def test_initial_weights_of_modern() -> None:
    config = small(
        "modern", n_layer=2, d_model=128, vocab_size=500, positions="learned", context_length=128
    )
    for key, weight in initialised(config).named_parameters():
        if key.startswith(("head", "ngram", "value_embeddings")) or key.endswith(
            ("attention.out.weight", "down.weight", "value_gate.weight")
        ):
            assert not weight.any(), key
        elif weight.dim() == 1:
            assert (weight == 1).all()
        elif key.startswith(("token", "position")):
            assert spread(weight)[1] == pytest.approx(1.0, rel=5 / math.sqrt(2 * weight.numel()))
        else:
            std = 0.5 / math.sqrt(128)
            assert spread(weight)[1] == pytest.approx(std, rel=0.03), key
            assert (
                std * math.sqrt(3) * 0.99 < float(weight.detach().abs().max()) <= std * math.sqrt(3)
            ), key


def test_the_modern_model_starts_uniform() -> None:
    model = initialised(small("modern"))
    ids = random_ids(4, 11)
    logits = model(ids)
    assert not logits.any()
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(13), abs=1e-6)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_tied_head_starts_near_uniform(positions: str) -> None:
    """With a table of N(0, 1), the model would be certain that the next token is this one."""
    model = initialised(small("modern", tied_head=True, d_model=384, positions=positions))
    ids = random_ids(4, 12)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(math.log(13), abs=0.15)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(name: str) -> None:
    """With random weights every parameter has a gradient: none is built and left unused."""
    model = random_model(small(name))
    ids = random_ids(8, 11)
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.any(), key


def test_loss_through_hidden_equals_loss_through_logits() -> None:
    """Training uses hidden states, evaluation uses logits. They must agree, with soft cap and
    padding.
    """
    model = random_model(small("modern", vocab_multiple=16))
    ids = random_ids(3, 11)
    total, _ = summed_cross_entropy(
        model.hidden(ids).flatten(0, 1),
        model.head_weight,
        ids.flatten(),
        vocab_size=13,
        softcap=15.0,
    )
    wanted = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="sum")
    torch.testing.assert_close(total, wanted, rtol=1e-13, atol=1e-13)


def test_the_description_names_the_parts_of_the_built_model() -> None:
    for n_layer, words in ((1, "1 layer"), (2, "1 layer"), (3, "2 layers")):
        config = small("modern", n_layer=n_layer)
        assert len(GPT(config).value_embeddings) == int(words.split()[0])
        assert config.describe().endswith(
            f"width 12, context 11, tables of 2,3,4-grams, value embeddings in {words}"
        )
    assert small("gpt2").describe() == "2 layers, 2 heads, width 12, context 11"
