"""What `export --to hf` writes, beside the loaders of mlx-lm, which runs here, and vLLM, which does
not run without a GPU: its names are written down from its source, version 0.33.0
(`vllm/model_executor/models/llama.py`, `qwen2.py`, `qwen3.py` and `gpt2.py`).
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_runs import MODELS, run
from other_versions import python_with
from random_models import transformers
from safetensors import safe_open

import lmsmith

WIDE = {"gpt2": ("gpt2", {"d_ff": 0})}  # mlx-lm's feed-forward layer has four times the width


def exported(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for known, (preset, changes) in WIDE.items():
        monkeypatch.setitem(MODELS, known, (preset, changes))
    run(folder / "run", name)
    return lmsmith.export(folder / "run", to="hf", out=folder / "out").path


@pytest.mark.slow
def test_mlx_lm_gives_our_logits(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_with("mlx-lm", request)
    ids = torch.randint(300, (1, 60), generator=torch.Generator().manual_seed(1))
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    names = [name for name in MODELS if name != "gpt2, untied"]  # its model has a tied head
    folders = {}
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        folders[name] = exported(name, tmp_path / str(number), monkeypatch)
    script = Path(__file__).with_name("use_mlx.py")
    words = [python, script, tmp_path / "ids.json", *folders.values()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, folder in folders.items():
        lm = lmsmith.load(folder.parent / "run")
        V = lm.config.vocab_size  # type: ignore[attr-defined]
        with torch.no_grad():
            ours = lm.module(ids)[..., :V]
        error = (torch.tensor(found[str(folder)])[..., :V] - ours).abs().max()
        assert error < 1e-4, (name, error)


# name of a model -> class, settings that vLLM reads from the config that transformers makes of
# config.json, names of tensors
LLAMA_SETTINGS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "vocab_size", "hidden_act"),
    *("tie_word_embeddings", "head_dim", "attention_bias"),
)
LLAMA_TENSORS = (
    r"model\.embed_tokens\.weight",
    r"model\.norm\.weight",
    r"lm_head\.weight",
    r"model\.layers\.\d\.(input|post_attention)_layernorm\.weight",
    r"model\.layers\.\d\.self_attn\.[qkvo]_proj\.(weight|bias)",
    r"model\.layers\.\d\.mlp\.(gate|up|down)_proj\.(weight|bias)",
)
QWEN3_TENSORS = (*LLAMA_TENSORS, r"model\.layers\.\d\.self_attn\.[qk]_norm\.weight")
GPT2_SETTINGS = (
    *("n_embd", "hidden_size", "num_hidden_layers", "num_attention_heads", "n_inner"),
    *("max_position_embeddings", "layer_norm_epsilon", "vocab_size", "activation_function"),
    *("tie_word_embeddings", "add_cross_attention", "scale_attn_by_inverse_layer_idx"),
    "reorder_and_upcast_attn",
)
GPT2_TENSORS = (  # `_add_transformer_prefix` accepts names with and without prefix
    r"(transformer\.)?(wte|wpe)\.weight",
    r"(transformer\.)?ln_f\.(weight|bias)",
    r"lm_head\.weight",
    r"(transformer\.)?h\.\d\.ln_[12]\.(weight|bias)",
    r"(transformer\.)?h\.\d\.attn\.c_(attn|proj)\.(weight|bias)",
    r"(transformer\.)?h\.\d\.mlp\.c_(fc|proj)\.(weight|bias)",
)
VLLM: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "llama": ("LlamaForCausalLM", LLAMA_SETTINGS, LLAMA_TENSORS),
    "llama, all biases": ("LlamaForCausalLM", (*LLAMA_SETTINGS, "mlp_bias"), LLAMA_TENSORS),
    "llama, yarn": ("LlamaForCausalLM", LLAMA_SETTINGS, LLAMA_TENSORS),
    "qwen3": ("Qwen3ForCausalLM", LLAMA_SETTINGS, QWEN3_TENSORS),
    "qwen3, untied": ("Qwen3ForCausalLM", LLAMA_SETTINGS, QWEN3_TENSORS),
    "gpt2": ("GPT2LMHeadModel", GPT2_SETTINGS, GPT2_TENSORS),
    "gpt2, untied": ("GPT2LMHeadModel", GPT2_SETTINGS, GPT2_TENSORS),
}


@pytest.mark.parametrize("name", VLLM)
def test_vllm_finds_its_settings_and_tensors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings, patterns = VLLM[name]
    folder = exported(name, tmp_path, monkeypatch)
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures == [kind]
    for setting in settings:
        assert hasattr(config, setting), setting
    if kind == "GPT2LMHeadModel":
        assert not config.scale_attn_by_inverse_layer_idx
        assert not config.reorder_and_upcast_attn
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    unknown = [one for one in names if not any(re.fullmatch(p, one) for p in patterns)]
    assert not unknown
    assert ("lm_head.weight" in names) == (not config.tie_word_embeddings)
