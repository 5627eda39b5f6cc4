"""Architectures beside GPT-2 and Llama, compared with transformers: the same logits, text and bits,
both ways.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from other_versions import python_with
from random_models import LLAMA3, logits, random_ids, random_model, saved, transformers
from safetensors.torch import load_file

from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decode import generate
from lmsmith.generate.sampling import Sampling
from lmsmith.interop.architectures import ARCHITECTURES, architecture_for
from lmsmith.interop.families.refused import REFUSED
from lmsmith.interop.huggingface import read, write
from lmsmith.interop.mapping import shapes_of
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

THREE = {"num_attention_heads": 3, "num_key_value_heads": 1}  # heads of 12
SLIDING = {"use_sliding_window": True, "sliding_window": 7}
QWEN3 = {"head_dim": 8}  # its default is 128
NEOX = {"num_attention_heads": 3, "hidden_size": 48}
SMOLLM2 = {  # a Llama model: settings of SmolLM2-135M that are not Llama's defaults
    **{"tie_word_embeddings": True, "rope_theta": 100_000, "rms_norm_eps": 1e-5},
    **{"is_llama_config": True, "rope_interleaved": False, "num_key_value_heads": 1},
    **{"num_attention_heads": 3},
}
NO_ROPE = {"num_hidden_layers": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 200}
FACTORS = [1.0, 1.1, 1.5, 2.0, 3.0, 4.0]
LONG = {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS, "factor": 3.0}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows in the last layers": ("qwen2", {"max_window_layers": 1} | SLIDING),
    "qwen2, windows by layer": (
        "qwen2",
        {"layer_types": ["sliding_attention", "full_attention"]} | SLIDING,
    ),
    "qwen2, yarn": ("qwen2", {"rope_scaling": YARN} | THREE),
    "qwen3": ("qwen3", QWEN3),
    "qwen3, tied, one key": (
        "qwen3",
        {"tie_word_embeddings": True, "num_key_value_heads": 1} | QWEN3,
    ),
    "qwen3, biases": ("qwen3", {"attention_bias": True} | QWEN3),
    "qwen3, another eps": ("qwen3", {"rms_norm_eps": 0.1} | QWEN3),
    "qwen3, windows": ("qwen3", {"max_window_layers": 0} | SLIDING | QWEN3),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral, tied, heads that do not divide the width": (
        "mistral",
        {"hidden_size": 40, "head_dim": 8, "sliding_window": 9, "tie_word_embeddings": True},
    ),
    "mistral, without window": ("mistral", {"sliding_window": None}),
    "mistral, its window": ("mistral", {}),
    "smollm2": ("llama", SMOLLM2),
    "smollm3": ("smollm3", NO_ROPE),
    "smollm3, own head, biases": (
        "smollm3",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True} | NO_ROPE,
    ),
    "smollm3, every second": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3, by layer": ("smollm3", {"no_rope_layers": [0, 1, 1, 0]} | NO_ROPE),
    "smollm3, windows": ("smollm3", {"no_rope_layers": [1, 0, 0, 1]} | SLIDING | NO_ROPE),
    "olmo2": ("olmo2", {}),
    "olmo2, tied, all keys": ("olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "olmo2, biases, another eps": ("olmo2", {"attention_bias": True, "rms_norm_eps": 0.1}),
    "neox": ("gpt_neox", NEOX),
    "neox, tied, all rotary": ("gpt_neox", {"tie_word_embeddings": True, "rotary_pct": 1.0} | NEOX),
    "neox, one after the other": (
        "gpt_neox",
        {"use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 100} | NEOX,
    ),
    "neox, half a pair": ("gpt_neox", {"rotary_pct": 0.4} | NEOX),
    "neox, without biases in attention": ("gpt_neox", {"attention_bias": False} | NEOX),
    "neox, gelu-tanh": ("gpt_neox", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1} | NEOX),
    "llama, yarn": ("llama", {"rope_scaling": YARN} | THREE),
    "llama, yarn and its attention factor": (
        "llama",
        {"rope_scaling": YARN | {"attention_factor": 1.7}} | THREE,
    ),
    "llama, yarn of DeepSeek": (
        "llama",
        {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}} | THREE,
    ),
    "llama, yarn of the whole context": (
        "llama",
        {"rope_scaling": {"type": "yarn", "factor": 2.5}, "rope_theta": 100.0} | THREE,
    ),
    "llama, longrope": ("llama", {"rope_scaling": LONG} | THREE),
    "llama, longrope, attention factor": (
        "llama",
        {"rope_scaling": LONG | {"attention_factor": 1.4}} | THREE,
    ),
    "llama, longrope, original context outside": (
        "llama",
        {
            "rope_scaling": {key: LONG[key] for key in LONG if key != "factor"},
            "original_max_position_embeddings": 56,
        }
        | THREE,
    ),
    "mistral, llama3": ("mistral", {"rope_scaling": LLAMA3, "sliding_window": 30} | THREE),
    "neox, yarn": ("gpt_neox", {"rope_scaling": YARN, "rotary_pct": 0.75} | NEOX),
}
SMALL = ("qwen2", "qwen3", "mistral", "smollm2", "smollm3", "olmo2", "neox")


def ours(folder: Path) -> GPT:
    config, tensors = read(folder)
    model = GPT(config)
    model.load_state_dict(tensors)
    return model.eval()


def same_bits(one: Path, other: Path) -> bool:
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    return sorted(before) == sorted(after) and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal_and_a_round_trip_keeps_the_bits(kind: str, tmp_path: Path) -> None:
    name, changes = KINDS[kind]
    theirs = random_model(name, **changes)
    folder = saved(theirs, tmp_path / "theirs")
    config, tensors = read(folder)
    ids = random_ids()
    expected = logits(theirs, ids)
    assert (logits(ours(folder), ids) - expected).abs().max() < 1e-5 * expected.abs().max()

    (tmp_path / "back").mkdir()
    write(tmp_path / "back", config, tensors)
    assert same_bits(folder, tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    # A Mistral model without a window is a Llama model.
    assert type(again) is type(theirs) or kind == "mistral, without window"
    assert torch.equal(logits(again, ids), expected)
    assert read(tmp_path / "back")[0] == config


@pytest.mark.parametrize("kind", SMALL)
def test_half_precision_keeps_its_bits(kind: str, tmp_path: Path) -> None:
    name, changes = KINDS[kind]
    folder = saved(random_model(name, torch.bfloat16, **changes), tmp_path / "theirs")
    config, tensors = read(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    (tmp_path / "back").mkdir()
    write(tmp_path / "back", config, tensors)
    assert same_bits(folder, tmp_path / "back")


@pytest.mark.parametrize(
    "kind", [*SMALL, pytest.param("qwen2, windows by layer", marks=pytest.mark.slow)]
)
def test_greedy_text_is_the_same_for_200_tokens(kind: str, tmp_path: Path) -> None:
    name, changes = KINDS[kind]
    theirs = random_model(name, **changes | {"tie_word_embeddings": False})
    folder = saved(theirs, tmp_path / "theirs")
    prompt, how = [5, 77, 30], {"max_new_tokens": 200, "do_sample": False}
    expected = theirs.generate(torch.tensor([prompt]), **how)[0, 3:].tolist()
    sampling = Sampling(temperature=0)
    model = ours(folder)
    found = [ids[0] for ids in generate(model, prompt, max_tokens=200, sampling=sampling)]
    assert found == expected
    assert len(set(found)) > 5

    decoder, compiled = CpuDecoder(model, 1), []
    next_logits = decoder.prefill(0, prompt)
    for _ in range(200):
        compiled.append(int(next_logits.argmax()))
        next_logits = decoder.step([0], compiled[-1:])[0]
    assert compiled == expected


@pytest.mark.slow
def test_transformers_5_reads_what_is_written(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = python_with("transformers 5", request)
    folders = {}
    for number, (kind, (name, changes)) in enumerate(KINDS.items()):
        theirs = saved(random_model(name, **changes), tmp_path / f"{number}-theirs")
        folders[kind] = out = tmp_path / str(number)
        out.mkdir()
        write(out, *read(theirs))
    torch.save(random_ids(), tmp_path / "ids.pt")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, Path(__file__).with_name("say_logits.py"), tmp_path / "ids.pt", *folders.values()],
        check=True,
        env=env | {"HF_HUB_OFFLINE": "1"},
        stdout=sys.stderr,
    )
    for kind, folder in folders.items():
        expected = torch.load(folder / "logits.pt")
        error = (logits(ours(folder), random_ids()) - expected).abs().max()
        assert error < 1e-5 * expected.abs().max(), kind


EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {}),
    "without gains of norms": ("Qwen3ForCausalLM", {"norm_gain": False, "tied_head": False}),
    "some biases are completed": ("Qwen3ForCausalLM", {"attention_bias": "qkv"}),
    "windows": ("Qwen3ForCausalLM", {"window": 9, "window_pattern": "SSL"}),
    "windows of Mistral": (
        "MistralForCausalLM",
        {"qk_norm": False, "qk_gain": "head", "window": 9, "window_pattern": "S"},
    ),
    "windows without QK-norm": (
        "SmolLM3ForCausalLM",
        {"qk_norm": False, "qk_gain": "head", "window": 9, "window_pattern": "SL"},
    ),
    "a pattern without effect": (
        "LlamaForCausalLM",
        {"qk_norm": False, "qk_gain": "head", "window_pattern": "LL", "rope_pattern": "RRRRN"},
    ),
    "some biases": (
        "Qwen2ForCausalLM",
        {"qk_norm": False, "qk_gain": "head", "attention_bias": "qkv"},
    ),
    "olmo2": (
        "Olmo2ForCausalLM",
        {"qk_gain": "projection", "norm_placement": "output", "norm_gain": False},
    ),
    "neox": (
        "GPTNeoXForCausalLM",
        {
            "qk_norm": False,
            "qk_gain": "head",
            "norm": "layernorm",
            "feed_forward": "gelu",
            "n_kv_head": 6,
            "rope_fraction": 0.34,
            "parallel_residual": True,
        },
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_exported_model_has_the_same_logits(kind: str, tmp_path: Path) -> None:
    name, changes = EXPORTS[kind]
    sizes = {"n_layer": 3, "n_head": 6, "n_kv_head": 2, "d_model": 36, "d_ff": 40}
    sizes |= {"vocab_size": 97, "vocab_multiple": 64, "context_length": 70}
    changed = {f"model.{key}": value for key, value in (sizes | changes).items()}
    model = GPT(GPTConfig.of(preset("qwen3").changed(changed, where="here").model)).eval()
    generator = torch.Generator().manual_seed(3)
    for part, p in model.named_parameters():
        p.data.normal_(
            1.0 if p.dim() == 1 and not part.endswith("bias") else 0.0, 0.2, generator=generator
        )
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", model.config, {n: p.detach() for n, p in model.named_parameters()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == name
    ids = random_ids()
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5


REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3 0.6B": (
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "SmolLM2 135M": (
        "llama",
        {
            **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
            **{"max_position_embeddings": 8192, "tie_word_embeddings": True},
            **{"rope_theta": 100_000, "rms_norm_eps": 1e-5},
        },
    ),
    "SmolLM3 3B": (
        "smollm3",
        {
            **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36},
            **{"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256},
            **{"max_position_embeddings": 65536, "rope_theta": 5_000_000.0},
        },
    ),
    "Pythia 160M": (
        "gpt_neox",
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 50304,
        },
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_have_the_tensors_of_transformers(name: str) -> None:
    """Names and shapes, on the meta device."""
    kind, sizes = REAL[name]
    with torch.device("meta"):
        config_class = type(transformers.AutoConfig.for_model(kind))
        theirs = transformers.AutoModelForCausalLM.from_config(config_class(**sizes))
    architecture = next(known for known in ARCHITECTURES if known.model_type == kind)
    config = architecture.read_settings(theirs.config.to_dict(), Path("config.json"))
    with torch.device("meta"):
        mine = {name: torch.empty(shape) for name, shape in shapes_of(config).items()}
        found = architecture.to_theirs(config, mine)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(p.shape) for name, p in theirs.named_parameters()
    }


def test_smollm3s_layers_without_positions(tmp_path: Path) -> None:
    """Every fourth layer of SmolLM3 is without RoPE, both ways; without the pattern, the model
    computes something else.
    """
    theirs = random_model("smollm3", **NO_ROPE)
    assert theirs.config.no_rope_layers == [1, 1, 1, 0]
    config, tensors = read(saved(theirs, tmp_path / "theirs"))
    assert config.rope_pattern == "RRRN"
    (tmp_path / "back").mkdir()
    write(tmp_path / "back", config, tensors)
    again = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert again.no_rope_layers == [1, 1, 1, 0]
    model = GPT(dataclasses.replace(config, rope_pattern="")).eval()
    model.load_state_dict(tensors)
    ids = random_ids()
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() > 0.1


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"layer_types": ["sliding_attention", "linear"]}, "layer_types = .*expected 2 times"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window = false"),
    ("qwen3", {"use_sliding_window": 1}, "use_sliding_window = 1: expected true or false"),
    ("qwen3", {"max_window_layers": None} | SLIDING, "max_window_layers = null"),
    ("qwen3", {"rope_scaling": YARN | {"beta_fast": 16}}, r"beta_fast = 16.*expected 32"),
    ("qwen3", {"rope_scaling": YARN | {"truncate": False}}, r"truncate = false.*expected true"),
    ("qwen3", {"rope_scaling": YARN | {"factor": "two"}}, "factor = .*expected a number above 0"),
    ("qwen3", {"rope_scaling": YARN | {"factor": 0.5}}, r"rope_factor = 0\.5"),
    ("qwen3", {"num_hidden_layers": "two"}, r"model\.n_layer = 'two'"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0.*expected a number of tokens"),
    (
        "mistral",
        {"layer_types": ["full_attention"] * 2},
        "MistralForCausalLM has one kind of layer",
    ),
    ("smollm3", {"no_rope_layers": [0, 2]}, "no_rope_layers = .*expected 2 times 0"),
    (
        "smollm3",
        {"no_rope_layers": None, "no_rope_layer_interval": 0},
        "no_rope_layer_interval = 0",
    ),
    ("olmo2", {"rope_scaling": YARN}, 'rope_scaling.rope_type = "yarn".*expected "none"'),
    ("gpt_neox", {"rotary_pct": 0.5}, "rotary_pct = 0.5 and partial_rotary_factor = 0.25"),
    ("gpt_neox", {"rotary_pct": 0.1, "partial_rotary_factor": 0.1}, "is 1 numbers, but RoPE"),
    (
        "llama",
        {"rope_scaling": LONG | {"long_factor": [2.0] * 6}, "original_max_position_embeddings": 40},
        "two sets of frequencies: short_factor for texts of up to 40 tokens",
    ),
    (
        "llama",
        {"rope_scaling": LONG | {"original_max_position_embeddings": 40}},
        "transformers 4 ignores it",
    ),
    ("llama", {"rope_scaling": LONG | {"short_factor": [-1.0]}}, "short_factor = -1.0"),
    ("llama", {"rope_scaling": LONG, "head_dim": 4}, "has 6 numbers: expected 2 with"),
    (
        "llama",
        {"rope_scaling": LONG, "original_max_position_embeddings": 40},
        "context of 224 is 5.6 times the original one",
    ),
]


@pytest.mark.parametrize(("name", "changes", "told"), REFUSALS)
def test_settings_that_our_model_cannot_compute_are_refused(
    name: str, changes: dict[str, Any], told: str
) -> None:
    architecture = next(known for known in ARCHITECTURES if known.model_type == name)
    own = {"qwen3": QWEN3, "gpt_neox": NEOX}.get(name, THREE)
    found = random_model(name, **own).config.to_dict() | changes
    with pytest.raises(ConfigError, match=told):
        architecture.read_settings(found, Path("config.json"))


def test_longrope_within_the_original_context_has_the_short_factors() -> None:
    scaling = LONG | {"long_factor": [9.0] * 6}
    found = random_model("llama", rope_scaling=scaling, **THREE).config.to_dict()
    architecture = next(known for known in ARCHITECTURES if known.model_type == "llama")
    config = architecture.read_settings(found, Path("config.json"))
    assert config.rope_factors == tuple(FACTORS)
    assert config.rope_original_context == config.context_length


def test_the_nearest_architecture_is_named() -> None:
    config = GPTConfig.of(preset("qwen3").changed({"model.vocab_size": 97}, where="here").model)
    for change, told in (
        ({"rope_fraction": 0.5}, r"nearest is Qwen3.*rope_fraction = 0.5 \(only 1\)"),
        ({"parallel_residual": True}, r"nearest is Qwen3.*parallel_residual = yes \(only no\)"),
        ({"rope_pattern": "RN"}, r"nearest is Qwen3.*rope_pattern = RN \(only empty\)"),
        ({"qk_gain": "projection"}, r"qk_gain = projection \(only dimension\)"),
    ):
        with pytest.raises(ConfigError, match=told):
            architecture_for(dataclasses.replace(config, **change))


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_the_nearest(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(ConfigError, match=rf"{name}, which .* it has .*The nearest") as raised:
        read(tmp_path)
    assert REFUSED[name][1] in {architecture.name for architecture in ARCHITECTURES}
    assert REFUSED[name][1] in str(raised.value)
