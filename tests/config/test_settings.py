"""Settings: checks, parsing of text, and TOML round trips."""

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.config import (
    MODEL_KINDS,
    DataSource,
    RunConfig,
    TrainConfig,
    flatten,
    read_toml,
    settings,
)
from lmsmith.config.aliases import RENAMED
from lmsmith.config.synonyms import _SENTENCES
from lmsmith.errors import ConfigError
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rnn_config import RNNConfig

OF_KIND = {kind: dict(settings(MODEL_KINDS.get(kind))) for kind in MODEL_KINDS}
LEAVES = OF_KIND["gpt"]
EVERY = {name: leaf for leaves in OF_KIND.values() for name, leaf in leaves.items()}

# For every number: values just outside what is allowed, and values just inside.
BAD: dict[str, list[Any]] = {
    "model.size": [-1],
    "model.n_layer": [0, -1],
    "model.n_head": [0, 5, 768],
    "model.n_kv_head": [-1, 4, 12],
    "model.n_head_per_kv": [0, -1],
    "model.d_model": [0, 383],
    "model.d_head": [-1, 3],
    "model.d_ff": [-1],
    "model.vocab_size": [-1],
    "model.vocab_multiple": [0],
    "model.context_length": [0],
    "model.ngram_tables": [(1,), (9,), (2, 2), (3, 2)],
    "model.ngram_table_size": [0],
    "model.base_width": [0],
    "model.norm_eps": [0.0, math.inf, math.nan],
    "model.rope_base": [1.0, math.inf, math.nan],
    "model.rope_factor": [0.5, math.inf, math.nan],
    "model.rope_fraction": [0.0, -0.1, 1.1, math.nan, 0.01, 3 / 64],
    "model.rope_factors": [(1.0,), (0.0,) * 32],
    "model.rope_attention_factor": [-1.0, math.inf, math.nan, 1.3],
    "model.rope_original_context": [-1],
    "model.dropout": [-0.1, 1.0, math.nan],
    "model.attention_dropout": [-0.1, 1.0, math.nan],
    "model.ngram_dropout": [-0.1, 1.0, math.nan],
    "model.window": [-1, 5],
    "model.value_embedding_every": [-1],
    "model.logit_softcap": [-1.0, math.inf, math.nan],
    "model.order": [0, 256],
    "model.add_k": [0.0, math.inf, math.nan],
    "optim.learning_rate": [0.0, math.inf, math.nan],
    "optim.embedding_learning_rate": [-0.1, math.inf, math.nan],
    "optim.muon_learning_rate": [0.0, math.inf, math.nan],
    "optim.muon_momentum": [-0.1, 1.0, math.nan],
    "optim.sgd_momentum": [-0.1, 1.0, math.nan],
    "train.spike_z": [0.0, -1.0, math.nan, math.inf],
    "optim.muon_iterations": [0],
    "optim.beta1": [-0.1, 1.0, math.nan],
    "optim.beta2": [-0.1, 1.0, math.nan],
    "optim.eps": [0.0, math.inf, math.nan],
    "optim.weight_decay": [-0.1, math.inf, math.nan],
    "optim.clip_norm": [-0.1, math.inf, math.nan],
    "schedule.warmup_steps": [-1],
    "schedule.cooldown_fraction": [-0.1, 1.1, math.nan],
    "schedule.final_fraction": [-0.1, 1.1, math.nan],
    "data.validation_fraction": [-0.1, 1.0, math.nan],
    "data.validation_tokens": [-1],
    "train.steps": [-1],
    "train.minutes": [-1.0, math.inf, math.nan],
    "train.tokens": [-1],
    "train.epochs": [-1.0, math.inf, math.nan],
    "train.batch_size": [0],
    "train.batch_tokens": [-1],
    "train.initial_batch_size": [-1],
    "train.max_epochs": [-1.0, math.nan, math.inf],
    "train.average_fraction": [-0.1, 1.1, math.nan],
    "train.batch_warmup_fraction": [0.0, -0.1, 1.1, math.nan],
    "train.micro_batch_size": [-1],
    "train.seed": [-1, 2**32],
    "train.eval_every": [-1],
    "train.save_every": [-1],
    "train.task_every": [-1],
    "train.task_limit": [0, -1],
    "train.log_every": [-1],
    "train.keep": [0],
    "train.stop_at_val_loss": [-1.0, math.inf, math.nan],
    "train.threads": [-1],
    "lora.rank": [-1],
    "lora.alpha": [-1.0],
    "align.beta": [-0.1, math.inf, math.nan],
    "align.gamma": [-0.1, math.inf, math.nan],
    "align.label_smoothing": [-0.1, 0.5, math.nan],
    "align.max_length": [-1],
    "rl.group_size": [1],
    "rl.max_tokens": [-1],
    "rl.temperature": [0.0, -1.0, math.inf, math.nan],
    "rl.top_k": [-1],
    "rl.top_p": [0.0, 1.1, math.nan],
    "rl.min_p": [-0.1, 1.1, math.nan],
    "rl.steps_per_rollout": [0],
    "rl.clip_low": [0.0, 1.1, math.nan],
    "rl.clip_high": [-0.1, math.inf, math.nan],
    "rl.kl_weight": [-0.1, math.inf, math.nan],
    "rl.overlong_buffer": [-1],
    "rl.eval_problems": [0],
}
GOOD: dict[str, list[Any]] = {
    "model.n_head": [1, 2, 3, 192],
    "model.n_kv_head": [0, 1, 2, 3, 6],
    "model.n_head_per_kv": [1, 2, 4, 1000],
    "model.d_head": [0, 2, 64, 1000],
    "model.rope_fraction": [1.0, 0.5, 2 / 64],
    "model.ngram_tables": [(), (2,), (2, 8)],
    "model.dropout": [0.0, 0.99],
    "optim.embedding_learning_rate": [0.0, 0.3],
    "optim.muon_momentum": [0.0],
    "schedule.cooldown_fraction": [0.0, 1.0],
    "train.average_fraction": [0.0, 1.0],
    "schedule.final_fraction": [0.0, 1.0],
    "train.micro_batch_size": [0, 1, 3, 64],
    "train.seed": [0, 2**32 - 1],
}


def made(changes: dict[str, Any]) -> RunConfig:
    """The config with dotted settings set directly in the dataclasses, without parsing."""
    config = RunConfig()
    for name, value in changes.items():
        if name in ("model.order", "model.add_k"):
            config = config.changed({"model.kind": "ngram"}, where="here")
        section, _, key = name.rpartition(".")
        part = dataclasses.replace(getattr(config, section), **{key: value}) if section else value
        config = dataclasses.replace(config, **{section or key: part})
    return config


def test_a_batch_grows_linearly_in_multiples_that_the_ranks_can_divide() -> None:
    train = TrainConfig(steps=20, batch_size=24, initial_batch_size=4, batch_warmup_fraction=0.5)
    assert [train.rows_of(step) for step in range(11)] == [4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24]
    assert train.rows_of(10**6) == 24
    assert TrainConfig(steps=20, batch_size=24).rows_of(0) == 24
    assert TrainConfig(steps=3, batch_size=24, initial_batch_size=24).rows_of(0) == 24


def test_every_number_has_a_tested_bound() -> None:
    assert set(BAD) == {
        name
        for name, leaf in EVERY.items()
        if leaf.kind in (int, float, tuple[int, ...], tuple[float, ...])
    }


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_errors_name_bad_values(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
        made({name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values]
)
def test_values_at_the_bound_are_accepted(name: str, value: Any) -> None:
    assert flatten(dataclasses.asdict(made({name: value})))[name] == value


@pytest.mark.parametrize("kind", OF_KIND)
def test_every_setting_has_its_default_and_meaning(kind: str) -> None:
    config = RunConfig().changed({"model.kind": kind}, where="here")
    defaults = {name: leaf.default for name, leaf in OF_KIND[kind].items()}
    assert flatten(dataclasses.asdict(config)) == defaults
    assert all(leaf.meaning for leaf in EVERY.values())
    assert MODEL_KINDS.get(kind).description


def test_heads_that_do_not_divide_the_width_suggest_a_width() -> None:
    for d_model, n_head, near in ((100, 6, "96"), (7, 4, "8"), (3, 8, "16")):
        with pytest.raises(
            ConfigError, match=f"Use model.d_model {near} or another number of heads"
        ):
            GPTConfig(d_model=d_model, n_head=n_head)
        GPTConfig(d_model=int(near), n_head=n_head)
    with pytest.raises(ConfigError, match="Choose an even width"):
        GPTConfig(d_model=30, n_head=6)
    assert GPTConfig(d_model=30, n_head=6, positions="learned").width_head == 5
    assert GPTConfig(d_model=100, n_head=6, d_head=8).width_head == 8
    with pytest.raises(ConfigError, match=r"each head is 7 wide \(model\.d_head = 7\)"):
        GPTConfig(d_model=100, n_head=6, d_head=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"window": 64},
            r"window = 64 and model\.window_pattern = '' do not go together.* Set both",
        ),
        (
            {"window_pattern": "SSL"},
            r"window = 0 and model\.window_pattern = 'SSL' do not go together",
        ),
        ({"window": 64, "window_pattern": "LL"}, "do not go together"),
        (
            {"rope_factor": 2.0},
            r"rope_scaling = 'none', model\.rope_factor = 2 .* do not go together",
        ),
        (
            {"rope_scaling": "llama3", "rope_factor": 2.0},
            r"rope_original_context = 0 do not go together",
        ),
        ({"rope_scaling": "linear", "rope_original_context": 9}, "do not go together"),
        (
            {"rope_scaling": "linear", "positions": "none"},
            r"stretches rotary positions, but .* is 'none'",
        ),
        (
            {"rope_pattern": "RN", "positions": "learned"},
            r"rope_pattern = 'RN' chooses the layers with rotary positions, .* to ''",
        ),
        (
            {"rope_fraction": 0.5, "positions": "none"},
            r"rope_fraction = 0.5 limits rotary positions",
        ),
        ({"rope_pattern": "RS"}, "model.rope_pattern = RS: expected letters R and N"),
        ({"rope_scaling": "yarn", "rope_factor": 2.0}, "do not go together"),
        (
            {
                "rope_scaling": "longrope",
                "rope_factor": 2.0,
                "rope_original_context": 1,
                "rope_factors": (1.0,) * 32,
            },
            "rope_original_context = 1: expected 2 or more",
        ),
        (
            {"rope_scaling": "linear", "rope_factor": 2.0, "rope_attention_factor": 1.5},
            "only yarn and longrope scale",
        ),
        (
            {"qk_gain": "projection", "qk_norm": False},
            r"qk_gain = 'projection' is the gain of normalized .* model.qk_norm is false",
        ),
        (
            {"parallel_residual": True, "norm_placement": "post"},
            "norm_placement = 'post' normalizes between them",
        ),
        (
            {"window": 64, "window_pattern": "SsL"},
            r"model\.window_pattern = SsL: expected letters S and L",
        ),
        (
            {"norm": "none"},
            r"norm = 'none' .* model\.embedding_norm = true .* set model\.embedding_norm to false",
        ),
        (
            {"norm": "none", "embedding_norm": False, "norm_gain": True},
            r"set model\.norm_gain to false as well",
        ),
        (
            {"norm": "none", "embedding_norm": False, "norm_placement": "post"},
            "set model.norm_placement to 'pre'",
        ),
        (
            {"ngram_dropout": 0.2},
            r"ngram_dropout = 0\.2, but model\.ngram_tables is empty.* Set model.ngram_dropout to 0",
        ),
    ],
)
def test_contradictory_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**settings)


def test_windows_and_value_embeddings_by_layer() -> None:
    config = GPTConfig(n_layer=7, window=64, window_pattern="SSSL", value_embedding_every=3)
    assert [config.window_of(layer) for layer in range(7)] == [64, 64, 64, 0, 64, 64, 64]
    assert [layer for layer in range(7) if config.has_value_embedding(layer)] == [0, 3, 6]
    plain = GPTConfig(window_pattern="L")
    assert not any(plain.window_of(layer) or plain.has_value_embedding(layer) for layer in range(6))


def test_derived_sizes() -> None:
    config = GPTConfig(d_model=384, n_head=6, vocab_size=65, vocab_multiple=64)
    assert (config.width_head, config.n_kv, config.width_ff, config.padded_vocab_size) == (
        64,
        6,
        1536,
        128,
    )
    assert (
        GPTConfig(feed_forward="swiglu", d_model=384).width_ff == 1024
    )  # 8/3 of it, a multiple of 64 already
    assert GPTConfig(feed_forward="swiglu", d_model=768).width_ff == 2048
    assert GPTConfig(feed_forward="swiglu", d_model=288).width_ff == 768
    assert GPTConfig(feed_forward="swiglu", d_model=396).width_ff == 1088  # 1056, up
    assert GPTConfig(d_ff=100).width_ff == 100
    assert GPTConfig(n_kv_head=2).n_kv == 2
    assert GPTConfig(vocab_size=50257, vocab_multiple=128).padded_vocab_size == 50304


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("model.n_layers", "model.n_layer"),
        ("n_layer", "model.n_layer"),
        ("train.n_layer", "model.n_layer"),
        ("optim.leaning_rate", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("warmup", "schedule.warmup_steps"),
        ("model.batch_size", "train.batch_size"),
        ("eps", "optim.eps"),
        ("seed", "train.seed"),
        ("tokeniser", "tokenizer"),
    ],
)
def test_unknown_settings_suggest_the_nearest(unknown: str, meant: str) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown setting '{unknown}' in r.toml. Did you mean '{meant}'"
    ):
        RunConfig().changed({unknown: 1}, where="r.toml")


def test_a_setting_without_a_similar_one_points_to_the_help() -> None:
    with pytest.raises(ConfigError, match="`lmsmith train --help` lists them all"):
        RunConfig().changed({"xyzzy": 1}, where="r.toml")


@pytest.mark.parametrize(
    "name", [word for names in _SENTENCES[""] for word in names.split() if word.isidentifier()]
)
def test_sentences_about_the_command_line_are_not_suggested_as_settings(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig().changed({name: 1}, where="r.toml")
    meant = re.search(r"Did you mean '(.+?)'", str(error.value))
    assert meant is None or meant[1] == "preset" or "." in meant[1]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.steps", "1e6", 1_000_000),
        ("train.steps", "1E6", 1_000_000),
        ("train.steps", "1_000", 1000),
        ("train.steps", " 12 ", 12),
        ("train.steps", "12.0", 12),
        ("train.steps", 12.0, 12),
        ("train.tokens", "9007199254740993", 2**53 + 1),  # a float would round it
        ("train.tokens", 2**53 + 1, 2**53 + 1),
        ("optim.learning_rate", "3e-4", 3e-4),
        ("optim.learning_rate", "1", 1.0),
        ("optim.learning_rate", 1, 1.0),
        ("model.bias", "true", True),
        ("model.bias", "Yes", True),
        ("model.bias", "1", True),
        ("model.qk_norm", "false", False),
        ("model.qk_norm", "no", False),
        ("model.qk_norm", "0", False),
        ("model.qk_norm", False, False),
        ("model.ngram_tables", "2,3, 4", (2, 3, 4)),
        ("model.ngram_tables", "2", (2,)),
        ("model.ngram_tables", "", ()),
        ("model.ngram_tables", "none", ()),
        ("model.ngram_tables", [2, 3], (2, 3)),
        ("data.sources", "a.txt, b c.txt", ("a.txt", "b c.txt")),
        ("data.sources", ["a, b.txt"], ("a, b.txt",)),
        ("model.norm", "layernorm", "layernorm"),
        ("tokenizer", "5", "5"),
    ],
)
def test_text_is_parsed_by_the_type(name: str, text: Any, value: Any) -> None:
    found = flatten(
        dataclasses.asdict(RunConfig().changed({name: text}, where="the command line"))
    )[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("train.steps", "many", "a whole number"),
        ("train.steps", "1.5", "a whole number"),
        ("train.steps", 1.5, "a whole number"),
        ("train.steps", "1e-3", "a whole number"),
        ("train.steps", "inf", "a whole number"),
        ("train.steps", "nan", "a whole number"),
        ("train.steps", "1e999", "a whole number"),
        ("train.steps", "9" * 5000, "a whole number"),
        ("train.steps", True, "a whole number"),
        ("train.steps", [1], "a whole number"),
        ("train.steps", None, "a whole number"),
        ("optim.learning_rate", "fast", "a number"),
        ("optim.learning_rate", "inf", "a number"),
        ("optim.learning_rate", math.nan, "a number"),
        ("optim.learning_rate", 10**400, "a number"),
        ("optim.learning_rate", False, "a number"),
        ("optim.learning_rate", [0.1], "a number"),
        ("model.bias", "maybe", "true or false"),
        ("model.bias", 1, "true or false"),
        ("model.ngram_tables", 2, "a list"),
        ("model.ngram_tables", "2,x", "a whole number"),
        ("model.ngram_tables", [[2]], "a whole number"),
        ("data.sources", 5, "a list"),
        ("data.sources", ["a", 5], "text"),
        ("tokenizer", 5, "text"),
        ("model.norm", "batchnorm", "one of layernorm, rmsnorm, none"),
        ("model.norm", ["rmsnorm"], "one of layernorm, rmsnorm, none"),
    ],
)
def test_errors_name_wrong_types(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig().changed({name: value}, where="my.toml")
    message = str(caught.value)
    assert message.startswith(f"{name} = ")
    assert re.search(rf" in my\.toml: expected {wanted}( or auto)?\.$", message)


def test_dependent_settings_change_together() -> None:
    config = RunConfig().changed(
        {"model.d_model": 35, "model.n_head": 5, "model.positions": "none"}, where="here"
    )
    assert GPTConfig.of(config.model).width_head == 7
    assert config.optim == RunConfig().optim
    with pytest.raises(ConfigError, match="does not divide"):
        RunConfig().changed({"model.d_model": 35}, where="here")


def test_a_change_does_not_modify_the_original() -> None:
    before = RunConfig()
    after = before.changed({"train.seed": 7, "preset": "llama"}, where="here")
    assert (before.train.seed, before.preset, after.train.seed, after.preset) == (
        1,
        "modern",
        7,
        "llama",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.train.seed = 8  # type: ignore[misc]


def shares(*, low: float = 0.0, high: float = 1.0, **options: Any) -> some.SearchStrategy[float]:
    return some.floats(low, high, allow_nan=False, **options)


@some.composite
def changes(draw: some.DrawFn) -> dict[str, Any]:
    """Values for every setting that fit together."""
    by_kind: dict[Any, some.SearchStrategy[Any]] = {
        int: some.integers(1, 2**40),
        float: shares(high=1e6, exclude_min=True),
        bool: some.booleans(),
        # "none" and "auto" mean an empty text where they are words for it.
        str: some.text().filter(lambda text: text not in {leaf.zero for leaf in EVERY.values()}),
        tuple[str, ...]: some.lists(some.text()).map(tuple),
        tuple[int, ...]: some.sets(some.integers(2, 8)).map(sorted).map(tuple),
        tuple[Literal["tensorboard", "wandb"], ...]: some.lists(
            some.sampled_from(["tensorboard", "wandb"])
        ).map(tuple),
        tuple[float, ...]: some.just(()),
        tuple[DataSource, ...]: some.just(()),  # they exclude data.sources
    }
    kind = draw(some.sampled_from(list(OF_KIND)))
    leaves = OF_KIND[kind]
    ends = ("dropout", "beta1", "beta2", "momentum", "validation_fraction")
    own = {
        name: shares(exclude_min=True, exclude_max=True) for name in leaves if name.endswith(ends)
    }
    own |= {name: shares() for name in ("schedule.cooldown_fraction", "schedule.final_fraction")}
    own["train.average_fraction"] = shares()
    own["train.batch_warmup_fraction"] = shares(exclude_min=True)
    own |= {name: some.sampled_from(leaf.choices) for name, leaf in leaves.items() if leaf.choices}
    own |= {"model.kind": some.just(kind), "model.order": some.integers(1, 255)}
    own |= {"train.seed": some.integers(0, 2**32 - 1), "model.rope_base": shares(low=1.5, high=1e9)}
    own |= {"lora.targets": some.just(("q", "v")), "lora.rank": some.just(0)}
    own |= {"align.label_smoothing": shares(high=0.5, exclude_max=True)}
    own |= {name: shares(exclude_min=True) for name in ("rl.top_p", "rl.clip_low")}
    own |= {"rl.min_p": shares(), "rl.group_size": some.integers(2, 2**40)}
    own["model.rope_factor"] = shares(low=1.5, high=1e3)
    found = {name: draw(own.get(name, by_kind.get(leaf.kind))) for name, leaf in leaves.items()}
    if kind == "gpt":
        found |= draw(transformers(found))
    return found | ({"train.parallel": "ddp"} if kind == "rnn" else {"train.truncated_bptt": False})


@some.composite
def transformers(draw: some.DrawFn, drawn: dict[str, Any]) -> dict[str, Any]:
    """The settings of a Transformer, adjusted to fit together."""
    found = dict(drawn)
    n_kv, groups, half = (draw(some.integers(1, 9)) for _ in range(3))
    found |= {"model.n_kv_head": n_kv, "model.n_head": n_kv * groups}
    found["model.n_head_per_kv"] = draw(some.integers(1, 5))
    found["model.d_model"] = n_kv * groups * 2 * half
    found["model.d_head"] = 2 * draw(some.integers(0, 40))
    found["model.window_pattern"] = draw(some.text("SL", max_size=5))
    found["model.window"] *= "S" in found["model.window_pattern"]
    if found["model.rope_scaling"] == "none" or found["model.positions"] != "rope":
        found |= {"model.rope_scaling": "none", "model.rope_factor": 1.0}
    scaling = found["model.rope_scaling"]
    found["model.rope_original_context"] *= scaling in ("llama3", "yarn", "longrope")
    found["model.rope_attention_factor"] *= scaling in ("yarn", "longrope")
    width = found["model.d_head"] or 2 * half
    rope = found["model.positions"] == "rope"
    found["model.rope_fraction"] = 0.5 if rope and width % 4 == 0 else 1.0
    found["model.rope_pattern"] = draw(some.text("RN", max_size=5 * rope))
    if scaling == "longrope":
        n_pairs = int(width * found["model.rope_fraction"]) // 2
        found["model.rope_factors"] = (1.5,) * n_pairs
        found["model.rope_original_context"] += 1
    if found["model.tied_head"]:
        found["model.parametrization"] = "standard"
    if not found["model.qk_norm"]:
        found["model.qk_gain"] = "head"
    if found["model.norm_placement"] == "post":
        found["model.parallel_residual"] = False
    found["model.ngram_dropout"] *= bool(found["model.ngram_tables"])
    if found["model.norm"] == "none":
        found |= {"model.norm_gain": False, "model.embedding_norm": False}
        found["model.norm_placement"] = "pre"
    return found


def shown(config: RunConfig) -> dict[str, Any]:
    """A config as in `config.toml`: with lists, and words for zeros with a special meaning."""
    leaves = OF_KIND[config.model.kind]
    values = flatten(dataclasses.asdict(config))
    words = {name: leaves[name].shown(value) for name, value in values.items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in words.items()}


def differ(config: RunConfig) -> set[str]:
    values = flatten(dataclasses.asdict(config))
    leaves = OF_KIND[config.model.kind]
    return {name for name, leaf in leaves.items() if values[name] != leaf.default}


@hypothesis.settings(max_examples=40, deadline=None)
@given(changes())
def test_writing_and_reading_toml_gives_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    config = RunConfig().changed(values, where="here")
    assert flatten(dataclasses.asdict(config)) == values
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert read_toml(path) == shown(config)
    assert RunConfig().changed(read_toml(path), where=str(path)) == config


@hypothesis.settings(max_examples=40, deadline=None)
@given(changes())
def test_the_command_line_can_set_every_setting(values: dict[str, Any]) -> None:
    del values["data.mixture"]  # tables
    for name in ("data.sources", "data.validation", "train.tasks", "rl.rewards"):
        del values[name]  # a comma stands between entries, so a text with one is several
    as_text = {
        k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in values.items()
    }
    assert RunConfig().changed(as_text, where="the command line") == RunConfig().changed(
        values, where="here"
    )


@hypothesis.settings(max_examples=30, deadline=None)
@given(
    some.lists(
        some.tuples(some.text(min_size=1), shares(high=1e6, exclude_min=True)),
        min_size=1,
        max_size=4,
    )
)
def test_mixtures_are_tables(
    tmp_path_factory: pytest.TempPathFactory, sources: list[tuple[str, float]]
) -> None:
    wanted = tuple(DataSource(name, weight) for name, weight in sources)
    config = RunConfig().changed({"data.mixture": wanted}, where="here")
    assert config.data.mixture == wanted
    assert config.data.paths == tuple(name for name, _ in sources)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig().changed(read_toml(path), where=str(path)) == config


def test_a_recipe_mixes_sources(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'preset = "llama"\n[[data.mixture]]\npath = "books/"\nweight = '
        '3\n\n[[data.mixture]]\npath = "web"\n',
        encoding="utf-8",
    )
    config = RunConfig().changed(read_toml(path), where=str(path))
    assert config.data.mixture == (DataSource("books/", 3.0), DataSource("web", 1.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [{"path": "a", "weigth": 2}],
            r"unknown setting 'data\.mixture\.weigth' in here.*Did you mean "
            r"'data\.mixture\.weight'",
        ),
        ([{"path": "a", "weight": 0}], r"data\.mixture\.weight = 0\.0: expected above 0"),
        (
            [{"path": "a", "weight": "much"}],
            r"data\.mixture\.weight = 'much' in here: expected a number",
        ),
        ([{"weight": 2}], r"data\.mixture\.path = '': expected a file, folder or glob"),
        (["a", "b"], r"data\.mixture = 'a' in here: expected a table, as in \[\[data\.mixture\]\]"),
    ],
)
def test_bad_mixtures_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig().changed({"data.mixture": value}, where="here")


def test_sources_and_mixture_exclude_each_other() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.sources = a\.txt and 1 \[\[data\.mixture\]\] both name training data",
    ):
        RunConfig().changed(
            {"data.sources": ("a.txt",), "data.mixture": [{"path": "b"}]}, where="here"
        )


def test_a_config_with_nothing_changed_round_trips() -> None:
    assert not differ(RunConfig())
    assert RunConfig().changed({}, where="here") == RunConfig()


def test_recipes_may_use_sections_or_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'preset = "llama"\n"train.seed" = 3\n[model]\nn_layer = 2\n[optim]\n', encoding="utf-8"
    )
    assert read_toml(path) == {"preset": "llama", "train.seed": 3, "model.n_layer": 2}
    path.write_bytes(b"\xef\xbb\xbf[model]\r\nn_layer = 2\r\n")  # as an editor on Windows saves it
    assert read_toml(path) == {"model.n_layer": 2}


@pytest.mark.parametrize("content", [b"[model\n", b"\xff\xfe\x00", b"a = 1\na = 2\n", b"x"])
def test_errors_name_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recipe\.toml is not TOML"):
        read_toml(path)


def test_errors_name_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "content", ["model = 3", "[[model]]\nn_layer = 1", "[model.n_layer]\nn = 1", "[train]\nx = 1"]
)
def test_toml_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown setting"):
        RunConfig().changed(read_toml(path), where=str(path))


def test_to_toml_is_plain_toml() -> None:
    assert flatten(tomllib.loads(RunConfig().to_toml())) == shown(RunConfig())
    assert (
        RunConfig()
        .to_toml()
        .startswith('preset = "modern"\ntokenizer = "auto"\n\n[model]\nkind = "gpt"\n')
    )


@pytest.mark.parametrize(
    ("kind", "name", "value", "of"),
    [
        ("gpt", "cell", "gru", "rnn"),
        ("gpt", "smoothing", "mle", "ngram"),
        ("rnn", "n_head", 2, "gpt"),
        ("rnn", "positions", "none", "gpt"),
        ("rnn", "order", 3, "ngram"),
        ("ngram", "n_layer", 2, "gpt and rnn"),
        ("ngram", "cell", "gru", "rnn"),
    ],
)
def test_settings_of_another_kind_of_model_are_refused(
    kind: str, name: str, value: Any, of: str
) -> None:
    changes = {"model.kind": kind, f"model.{name}": value}
    message = rf"model\.{name} in a\.toml is a setting of model\.kind {of}, .* of kind {kind}"
    with pytest.raises(ConfigError, match=message):
        RunConfig().changed(changes, where="a.toml")


def test_another_kind_starts_from_its_own_defaults() -> None:
    config = RunConfig().changed({"model.d_model": 36, "model.bias": True}, where="here")
    rnn = config.changed({"model.kind": "rnn", "model.cell": "gru"}, where="here")
    assert rnn.model == RNNConfig(cell="gru")
    assert rnn.changed({"model.d_model": 7}, where="here").model == RNNConfig(cell="gru", d_model=7)
    with pytest.raises(
        ConfigError, match=r"model\.kind = 'grn' in here: expected one of gpt, rnn, ngram"
    ):
        config.changed({"model.kind": "grn"}, where="here")


@pytest.mark.parametrize("name", [name for name, leaf in EVERY.items() if leaf.zero])
def test_a_zero_with_a_special_meaning_has_a_word(name: str) -> None:
    leaf = EVERY[name]
    kind = next(kind for kind, leaves in OF_KIND.items() if name in leaves)
    start = RunConfig().changed({"model.kind": kind}, where="here")
    for said in (leaf.zero, leaf.kind()):
        config = start.changed({name: said}, where="here")
        value = flatten(dataclasses.asdict(config))[name]
        assert (value, type(value)) == (leaf.kind(), leaf.kind)
        assert flatten(tomllib.loads(config.to_toml()))[name] == leaf.zero
    for word in {"auto", "none", "all"} - {leaf.zero}:
        if leaf.kind is not str:
            with pytest.raises(
                ConfigError, match=f"{name} = '{word}' in here: expected .* or {leaf.zero}"
            ):
                start.changed({name: word}, where="here")


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_accepted(old: str, caplog: pytest.LogCaptureFixture) -> None:
    new = RENAMED[old]
    kind = next(kind for kind, leaves in OF_KIND.items() if new in leaves)
    value: Any = {"data.mixture": [{"path": "a"}], "model.ngram_tables": "2,3"}.get(new, 1)
    value = {str: "runs/a", bool: True}.get(EVERY[new].kind, value)
    start = RunConfig().changed({"model.kind": "rnn" if "bptt" in new else kind}, where="here")
    config = start.changed({old: value}, where="an old recipe")
    assert config == start.changed({new: value}, where="here")
    assert differ(config) - differ(start) == {new}
    assert config == start.changed({old: "?", new: value}, where="both")  # today's name counts


def test_old_names_in_a_file_are_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsmith.config.aliases._noted", set())
    old = {"train.recompute": True, "optim.table_learning_rate": 0.1}
    for _ in range(2):
        RunConfig().changed(old, where="run/config.toml")
    (record,) = caplog.records
    assert record.message == (
        "note: in run/config.toml: "
        "optim.table_learning_rate is now called optim.embedding_learning_rate, "
        "train.recompute is now called train.activation_checkpointing"
    )


def test_settings_of_recurrent_networks() -> None:
    rnn = {"model.kind": "rnn", "train.truncated_bptt": True}
    assert RunConfig().changed(rnn, where="here").train.truncated_bptt
    with pytest.raises(ConfigError, match=r"train\.truncated_bptt"):
        RunConfig().changed({"train.truncated_bptt": True}, where="here")
    with pytest.raises(ConfigError, match=r"train\.parallel"):
        RunConfig().changed(rnn | {"train.parallel": "fsdp"}, where="here")
