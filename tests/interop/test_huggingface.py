"""Hugging Face checkpoints, compared with transformers: the same logits, text and bits."""

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import LLAMA3, SIZES, logits, random_ids, random_model, saved, transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsmith.config.presets import preset
from lmsmith.config.settings import settings_of
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.generate.decode import generate
from lmsmith.generate.sampling import Sampling
from lmsmith.interop import custom
from lmsmith.interop.architectures import GPT2, LLAMA, architecture_for
from lmsmith.interop.huggingface import files_of, open_in_transformers, read, read_ends, write
from lmsmith.interop.mapping import shapes_of
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, another eps": ("gpt2", {"layer_norm_epsilon": 0.1}),
    "gpt2, own head": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2, narrow": ("gpt2", {"n_inner": 50}),
    "gpt2, gelu": ("gpt2", {"activation_function": "gelu"}),
    "gpt2, silu": ("gpt2", {"activation_function": "silu"}),
    "llama": ("llama", {}),
    "llama, another eps": ("llama", {"rms_norm_eps": 0.1}),
    "llama, one key": ("llama", {"num_key_value_heads": 1}),
    "llama, all keys": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, biases in attention": ("llama", {"attention_bias": True}),
    "llama, biases in the feed-forward": ("llama", {"mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, narrow heads and biases": ("llama", {"head_dim": 2, "attention_bias": True}),
    "llama, heads that do not divide the width": ("llama", {"hidden_size": 40, "head_dim": 8}),
    "llama, another base": ("llama", {"rope_theta": 1000.0}),
    "llama 3.1": (
        "llama",
        {"rope_scaling": LLAMA3, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, linear of old": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
}


def ours(config: GPTConfig, tensors: dict[str, torch.Tensor]) -> GPT:
    model = GPT(config)
    model.load_state_dict(tensors)
    return model.eval()


def random_ours(config: GPTConfig) -> GPT:
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        p.data.normal_(
            1.0 if p.dim() == 1 and name.endswith("weight") else 0.0, 0.2, generator=generator
        )
    return model


def exported(model: GPT, folder: Path) -> Any:
    folder.mkdir()
    write(folder, model.config, {name: p.detach() for name, p in model.named_parameters()})
    return open_in_transformers(folder).eval()


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder. GPT-2 models with a tied head have names without prefix, as in the
    original checkpoint; transformers reads them with and without.
    """
    found = load_file(folder / "model.safetensors")
    return {name.removeprefix("transformer."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal_and_a_round_trip_keeps_the_bits(kind: str, tmp_path: Path) -> None:
    name, changes = KINDS[kind]
    theirs = random_model(name, **changes)
    saved(theirs, tmp_path / "theirs")
    config, tensors = read(tmp_path / "theirs")
    ids = random_ids()
    assert (logits(ours(config, tensors), ids) - logits(theirs, ids)).abs().max() < 1e-5

    (tmp_path / "back").mkdir()
    write(tmp_path / "back", config, tensors)
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "back")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    assert torch.equal(logits(again, ids), logits(theirs, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SIZES)
def test_half_precision_keeps_its_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved(random_model(name, dtype), tmp_path / "theirs")
    config, tensors = read(tmp_path / "theirs")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    (tmp_path / "back").mkdir()
    write(tmp_path / "back", config, tensors)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert again.dtype == dtype
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", SIZES)
def test_greedy_text_is_the_same_for_200_tokens(name: str, tmp_path: Path) -> None:
    theirs = random_model(
        name, tie_word_embeddings=False
    )  # with random weights a tied head says one token for ever
    model = ours(*read(saved(theirs, tmp_path / "theirs")))
    prompt = [5, 77, 30]
    wanted = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=200, do_sample=False, use_cache=True
    )[0, 3:].tolist()
    found = [
        ids[0] for ids in generate(model, prompt, max_tokens=200, sampling=Sampling(temperature=0))
    ]
    assert found == wanted
    assert len(set(found)) > 5  # a text, not one token


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"bias": False}),
        ("gpt2", {"norm_gain": False}),
        ("gpt2", {"positions": "none"}),
        ("gpt2", {"tied_head": False, "vocab_multiple": 64}),
        ("llama", {}),
        ("llama", {"norm_gain": False}),
        ("llama", {"n_kv_head": 2, "bias": True}),
        ("llama", {"tied_head": True, "vocab_multiple": 64}),
    ],
)
def test_an_exported_model_has_the_same_logits(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    size = {"n_layer": 2, "n_head": 6, "d_model": 36, "vocab_size": 97, "context_length": 70}
    config = (
        preset(name)
        .changed({f"model.{key}": value for key, value in (size | changes).items()}, where="here")
        .model
    )
    model = random_ours(config)
    theirs = exported(model, tmp_path / "out")
    ids = random_ids()
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5
    assert theirs.config.vocab_size == 97
    assert theirs.generation_config.eos_token_id is None


def other_values() -> list[tuple[str, Any]]:
    """Each setting of the model with a value that no preset has."""
    found: list[tuple[str, Any]] = []
    own = {
        "window": {"window": 8, "window_pattern": "S"},
        "window_pattern": {"window": 8, "window_pattern": "SL"},
        "rope_pattern": {"rope_pattern": "RN"},
        "rope_factors": {
            "rope_scaling": "longrope",
            "rope_factor": 2.0,
            "rope_original_context": 40,
            "rope_factors": (1.0, 1.5, 2.0),
        },
        "rope_attention_factor": {
            "rope_scaling": "yarn",
            "rope_factor": 2.0,
            "rope_original_context": 40,
            "rope_attention_factor": 0.9,
        },
        "ngram_tables": {"ngram_tables": (2,)},
        "rope_factor": {"rope_scaling": "linear", "rope_factor": 2.0},
        "rope_original_context": {
            "rope_scaling": "llama3",
            "rope_factor": 2.0,
            "rope_original_context": 40,
        },
    }
    for name, leaf in settings_of(GPTConfig):
        choices = [True, False] if leaf.kind is bool else list(leaf.choices)
        numbers = {int: [2, 3], float: [0.25, 500.0]}.get(leaf.kind, [])
        found += (
            [(name, own[name])]
            if name in own
            else [(name, {name: value}) for value in choices + numbers]
        )
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_setting_gives_the_same_logits_or_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    """Includes future settings: what is not refused must give the same logits. Refused: by the
    classes of transformers, and then by our own code or not.
    """
    size = {"n_layer": 2, "n_head": 6, "d_model": 36, "vocab_size": 97, "context_length": 70}
    base = (
        preset(name)
        .changed({f"model.{key}": value for key, value in size.items()}, where="here")
        .model
    )
    refused, tried, dismissed = set(), set(), list[tuple[dict[str, Any], str]]()
    ids = random_ids()
    for number, (setting, changes) in enumerate(other_values()):
        try:
            config = dataclasses.replace(base, **changes)
            model = random_ours(config)
        except ConfigError as error:  # does not fit the others
            dismissed.append((changes, str(error)))
            continue
        if config.context_length < 60 or config.vocab_size < 97:
            continue
        tried.add(setting)
        for compute in (architecture_for, custom.needed_for):
            try:
                compute(config)
            except ConfigError as error:
                told = str(error)
                # n_head_per_kv is reported as the number of heads that it gives.
                others = ("norm", "positions", "feed_forward", "n_head_per_kv")
                assert f"model.{setting} = " in told or setting in others
                refused.add(setting)
        try:
            theirs = exported(model, tmp_path / str(number))
        except ConfigError:
            assert setting in refused
            continue
        expected = logits(model, ids)
        largest = max(1.0, float(expected.abs().max()))
        assert (expected - logits(theirs, ids)).abs().max() < 1e-5 * largest, changes
    assert refused >= {
        "qk_norm",
        "logit_softcap",
        "embedding_norm",
        "ngram_tables",
        "feed_forward",
        "norm",
    }
    assert ("window" in refused) == (name == "gpt2")  # others have it
    for changes, why in dismissed:
        assert any(f"model.{changed}" in why for changed in changes)
    rotary = {n for n, _ in settings_of(GPTConfig) if n.startswith("rope_")}
    rotary -= {"rope_base", "rope_scaling"}
    need_others = {"ngram_dropout"} | (rotary if name == "gpt2" else {"rope_fraction"})
    not_tried = {"kind", "d_model", "context_length", "vocab_size"}
    assert {n for n, _ in settings_of(GPTConfig)} - tried == need_others | not_tried


def test_a_model_without_counterpart_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ConfigError,
        match=r"ngram_tables = 2,3,4 \(only none\).*relu2.*qk_norm = yes \(only no\).*--preset gpt2",
    ):
        architecture_for(preset("modern").changed({"model.vocab_size": 97}, where="here").model)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (
            "gpt2",
            {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024},
        ),
        (
            "gpt2",
            {"n_layer": 48, "n_head": 25, "n_embd": 1600, "vocab_size": 50257, "n_positions": 1024},
        ),
        (
            "llama",
            {
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "vocab_size": 128256,
                "max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_real_sizes_have_the_tensors_of_transformers(kind: str, sizes: dict[str, int]) -> None:
    """Names and shapes, on the meta device."""
    with torch.device("meta"):
        if kind == "gpt2":
            theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
        else:
            theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    architecture = {"gpt2": GPT2, "llama": LLAMA}[kind]
    config = architecture.read_settings(theirs.config.to_dict(), Path("config.json"))
    with torch.device("meta"):
        mine = {name: torch.empty(shape) for name, shape in shapes_of(config).items()}
    found = {
        name: tuple(tensor.shape) for name, tensor in architecture.to_theirs(config, mine).items()
    }
    # GPT-2 is written with the names of the original checkpoint.
    assert found == {
        name.removeprefix("transformer."): tuple(p.shape) for name, p in theirs.named_parameters()
    }


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(random_model("llama"), tmp_path / "theirs")


def changed_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def changed_settings(folder: Path, **changes: Any) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in (found | changes).items() if v != "removed"})
    )


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    theirs = random_model("llama")
    saved(theirs, tmp_path / "one")
    saved(theirs, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = read(tmp_path / "one")[1], read(tmp_path / "many")[1]
    assert list(one) == list(many)
    assert all(torch.equal(one[name], many[name]) for name in one)

    second = sorted((tmp_path / "many").glob("*.safetensors"))[1]
    held = load_file(second)
    save_file(dict(list(held.items())[1:]), second)
    with pytest.raises(
        CheckpointError, match=f"names tensors that its files do not hold: {next(iter(held))}"
    ):
        read(tmp_path / "many")
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name} is missing"):
        read(tmp_path / "many")
    (tmp_path / "many" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../one/model.safetensors"}}'
    )
    with pytest.raises(CheckpointError, match="to safetensors files in its folder"):
        read(tmp_path / "many")


def test_errors_name_tensors_that_do_not_fit(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(50, 36)
        tensors["model.norm.weight"] = torch.zeros(35)
        tensors["lm_head.weight"] = torch.zeros(97, 36, dtype=torch.int8)

    changed_tensors(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        read(folder)
    told = str(error.value)
    assert "1 missing: model.layers.1.mlp.up_proj.weight." in told
    assert "1 unknown to this architecture: model.layers.2.mlp.up_proj.weight." in told
    assert "1 of another shape: model.norm.weight (35,), expected (36,)." in told
    assert "lm_head.weight torch.int8" in told


def test_names_without_prefix_and_buffers(tmp_path: Path) -> None:
    """As in the first GPT-2 checkpoints on the Hub."""
    theirs = random_model("gpt2")
    folder = saved(theirs, tmp_path / "theirs")
    before = read(folder)[1]

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 224, 224, dtype=torch.uint8)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    changed_tensors(folder, rename)
    after = read(folder)[1]
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed_tensors(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"separate lm_head\.weight.*tie_word_embeddings"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            r"low_freq_factor = null.* expected 1\.0",
        ),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 3.0}},
            r"high_freq_factor = 3\.0.* expected 4\.0",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, r"rope_factor = 'two'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling = .*dynamic"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "longrope with short_factor = null: expected a list",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5.0}},
            r"rope_parameters = .*yarn.* without a factor",
        ),
        ({"rope_parameters": ["linear"]}, r"rope_parameters = \[\"linear\"\]: expected an object"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}},
            "rope_type = .* and type = ",
        ),
        (
            {
                "rope_theta": 7.0,
                "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 8.0},
            },
            "rope_theta = 8.0",
        ),
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 41},
            r"= 40 in rope_scaling and 41 outside",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "separate settings for 'full_attention'",
        ),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor = 0\.5",
        ),
        ({"head_dim": 7}, "each head is 7 wide"),
        ({"transformers_weights": "other.safetensors"}, r"transformers_weights = \"other"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
        ({"hidden_act": ["silu"]}, r'hidden_act = \["silu"\]'),
        ({"attention_bias": "yes"}, 'attention_bias = "yes": expected true or false'),
        ({"num_hidden_layers": 300_000}, r"num_hidden_layers = 300000: expected at most 2,048"),
        ({"hidden_size": 10**4000}, r"hidden_size = 10000*\.\.\.: expected at most 1,048,576"),
        ({"vocab_size": -(10**12)}, r"vocab_size = -1000000000000: expected at most"),
        (
            {"max_position_embeddings": math.inf},
            r"max_position_embeddings = Infinity: expected at most",
        ),
        ({"rms_norm_eps": math.nan}, r"model\.norm_eps = nan"),
        (
            {"architectures": 5, "model_type": ["llama"]},
            r"names the architecture \['llama'\], which",
        ),
        (
            {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
            r"names the architecture MixtralForCausalLM, mixtral, which lmsmith does not support: "
            r"it has a mixture of experts. The nearest that it supports is MistralForCausalLM",
        ),
        ({"architectures": None, "model_type": "mamba"}, r"names the architecture mamba, which"),
        (
            {"architectures": [], "model_type": "removed"},
            "names no architecture in",
        ),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"num_hidden_layers": "two"}, r"model\.n_layer = 'two'"),
        ({"num_attention_heads": 5, "head_dim": None}, r"model\.n_head = 5 does not divide"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"rms_norm_eps": -1}, r"model\.norm_eps = -1"),
    ],
)
def test_unsupported_settings_are_refused(folder: Path, changes: dict[str, Any], told: str) -> None:
    changed_settings(folder, **changes)
    with pytest.raises(ConfigError, match=told):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
        ({"scale_attn_weights": False}, "scale_attn_weights = false"),
        ({"activation_function": "relu"}, 'activation_function = "relu"'),
    ],
)
def test_unsupported_gpt2_settings_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    folder = saved(random_model("gpt2"), tmp_path / "theirs")
    changed_settings(folder, **changes)
    with pytest.raises(ConfigError, match=told):
        read(folder)


def test_errors_name_files_that_cannot_be_read(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read.*save_pretrained"):
        read(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read(folder)


def test_all_choices_of_the_literals_are_tested() -> None:
    """In `other_values`: a new choice (of norm, say) is compared with transformers, too."""
    tried = {
        (name, value)
        for name, changes in other_values()
        for key, value in changes.items()
        if key == name
    }
    for name, leaf in settings_of(GPTConfig):
        assert {(name, choice) for choice in typing.get_args(leaf.kind) if leaf.choices} <= tried


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 100_000, "nested more than 100 levels deep"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested more than 100 levels deep"),
        ('{"num_hidden_layers": 1' + "0" * 5000 + "}", "a number of more than 4,300 digits"),
        ("{", "Expecting property name"),
    ],
)
def test_json_beyond_the_limits_is_one_error(
    folder: Path, name: str, content: str, told: str
) -> None:
    (folder / name).write_text(content)
    if name.startswith("model"):
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is damaged.*{told}"):
        read_ends(folder) if name.startswith("generation") else read(folder)


def test_one_file_takes_precedence_over_an_old_index(folder: Path) -> None:
    """As in transformers: saving a model again as one file does not remove the index of its
    old shards.
    """
    wanted = read(folder)[1]
    saved(random_model("llama", num_hidden_layers=1), folder / "old", max_shard_size="20KB")
    for path in (folder / "old").glob("model*"):
        path.rename(folder / path.name)
    assert (folder / "model.safetensors.index.json").is_file()
    found = read(folder)[1]
    assert files_of(folder) == [folder / "config.json", folder / "model.safetensors"]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = random_ids()
    assert (logits(ours(*read(folder)), ids) - logits(theirs, ids)).abs().max() < 1e-5

    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )
    assert files_of(folder) == [folder / "config.json", folder / "model.safetensors"]
