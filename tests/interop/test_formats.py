"""What `train` and `export` say about formats."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_runs import lmsmith, trained

from lmsmith.config.presets import PRESETS, preset
from lmsmith.interop.formats import note
from lmsmith.tokens.tokenizer import ByteTokenizer


@pytest.mark.parametrize("name", PRESETS.names())
def test_the_note_names_models_without_a_class_in_transformers(name: str) -> None:
    found = note(preset(name).model)
    if name in ("modern", "rnn", "gru", "lstm"):
        assert "llama.cpp cannot run it" in str(found)
        assert "use --preset llama" in str(found)
    elif name == "ngram":
        assert "it cannot be exported" in str(found)
    else:
        assert found is None


@pytest.mark.parametrize(("name", "said"), [("modern", 1), ("llama", 0), ("ngram", 1)])
def test_train_says_it_once_before_the_first_step(
    name: str, said: int, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. the dog ran. " * 40)
    words = ["train", tmp_path / "text.txt", "--preset", name, "--out", tmp_path / "run"]
    if name != "ngram":
        sizes = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 16}
        words += ["--steps=2", *(f"--model.{key}={value}" for key, value in sizes.items())]
    assert lmsmith(*words) == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert text.count("llama.cpp have no class for this model") == said


def test_export_says_which_preset_to_train(tmp_path: Path, capsys: Any) -> None:
    trained(tmp_path / "run", ByteTokenizer(True), "modern", ngram_table_size=8)
    assert lmsmith("export", tmp_path / "run", "--to", "llmc", "--out", tmp_path / "out") == 2
    assert "Models of `--preset gpt2` can be exported" in capsys.readouterr().err
    assert lmsmith("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out") == 0
    assert "for those, train with --preset llama" in " ".join(capsys.readouterr().out.split())


def test_the_names_that_mlx_lm_requires_of_llama(tmp_path: Path) -> None:
    """Its settings without a default, and its modules, as of mlx-lm's models/llama.py."""
    trained(tmp_path / "run", ByteTokenizer(True), "llama", n_layer=1)
    assert lmsmith("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out") == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    assert {"model_type", *sizes, "rms_norm_eps", "vocab_size"} <= settings.keys()
    assert "tie_word_embeddings" in settings  # its default is not transformers'
    layer = "model.layers.0"
    modules = {f"{layer}.self_attn.{part}_proj" for part in "qkvo"}
    modules |= {f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down")}
    modules |= {f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"}
    modules |= {"model.embed_tokens", "model.norm", "lm_head"}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert set(tensors) == {f"{module}.weight" for module in modules}
