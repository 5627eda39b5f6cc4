"""Import and export of llm.c checkpoints: against GPT-2 of transformers, and byte for byte."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import logits, random_ids, random_model

from lmsmith.config import MODEL_KINDS
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError, TokenizerError, UsageError
from lmsmith.interop import importing
from lmsmith.interop.architectures import architecture_for
from lmsmith.interop.exporting import export_model
from lmsmith.interop.importing import import_model
from lmsmith.interop.llmc import check, read, write
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.run_folder import load_weights
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer


def llmc_file(theirs: Any, path: Path, padded: int, dtype: torch.dtype) -> bytes:
    """The file that llm.c's own script writes for a model of transformers: a header, then 16
    tensors.
    """
    c, state = theirs.config, theirs.state_dict()
    version = {torch.float32: 3, torch.bfloat16: 5}[dtype]
    header = (20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded)
    raw = struct.pack("<256i", *header, *[0] * 248)
    wte = torch.zeros(padded, c.n_embd)
    wte[: c.vocab_size] = state["transformer.wte.weight"]
    tensors = [wte, state["transformer.wpe.weight"]]
    for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for part in ("weight", "bias"):
            layers = [state[f"transformer.h.{i}.{name}.{part}"] for i in range(c.n_layer)]
            tensors += [layer.T if "c_" in name and part == "weight" else layer for layer in layers]
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    raw += b"".join(
        t.to(dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors
    )
    path.write_bytes(raw)
    return raw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [128, 97, 100])
def test_a_round_trip_keeps_the_bytes(tmp_path: Path, dtype: torch.dtype, padded: int) -> None:
    theirs = random_model("gpt2")
    raw = llmc_file(theirs, tmp_path / "gpt2_tiny.bin", padded, dtype)
    run, summary = import_model(str(tmp_path / "gpt2_tiny.bin"), out=tmp_path / "run")
    assert summary["imported"]["form"] == "llm.c"
    model, _, _ = load_weights(run / "model")
    ids = random_ids()
    assert (logits(model.eval(), ids) - logits(theirs.to(dtype).float(), ids)).abs().max() < 1e-5

    receipt = export_model(run, tmp_path / "back", to="llmc")
    assert (tmp_path / "back" / "model.bin").read_bytes() == raw
    assert receipt["checked"] == {"lmsmith": {"max_logit_difference": 0.0}}

    again, summary = import_model(
        str(tmp_path / "back"), out=tmp_path / "again"
    )  # the folder does as well
    assert summary["tokenizer"] is None
    assert torch.equal(logits(load_weights(again / "model")[0].eval(), ids), logits(model, ids))


def test_the_tokenizer_in_the_folder_is_used(tmp_path: Path) -> None:
    llmc_file(random_model("gpt2", vocab_size=257), tmp_path / "model.bin", 384, torch.float32)
    save_tokenizer(ByteTokenizer(True), tmp_path)
    for number, source in enumerate((tmp_path, tmp_path / "model.bin")):
        run, _ = import_model(str(source), out=tmp_path / f"run-{number}")
        assert load_tokenizer(run / "model") == ByteTokenizer(True)


def test_a_vocabulary_of_gpt2s_size_gets_gpt2s_tokenizer(tmp_path: Path, monkeypatch: Any) -> None:
    """The file itself holds no tokenizer."""
    theirs = random_model("gpt2", vocab_size=50257, n_embd=6, n_layer=1)
    llmc_file(theirs, tmp_path / "gpt2.bin", 50304, torch.float32)
    asked = []
    tokenizer = ByteTokenizer(True)
    monkeypatch.setattr(
        importing, "load_tokenizer", lambda name, **more: asked.append(name) or tokenizer
    )
    _, summary = import_model(str(tmp_path / "gpt2.bin"), out=tmp_path / "run")
    assert (asked, summary["tokenizer"]) == (["gpt2"], "byte")

    def fails(name: str, **more: Any) -> None:
        raise TokenizerError("cannot download it.")

    monkeypatch.setattr(importing, "load_tokenizer", fails)
    with pytest.raises(TokenizerError, match=r"cannot download it\. Give.*--tokenizer none"):
        import_model(str(tmp_path / "gpt2.bin"), out=tmp_path / "other")


def test_a_trained_model_is_padded_and_completed(tmp_path: Path) -> None:
    sizes = {
        "n_layer": 2,
        "n_head": 3,
        "d_model": 36,
        "vocab_size": 97,
        "context_length": 64,
        "bias": False,
    }
    config = preset("gpt2").changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model
    model = GPT(config).eval()
    model.initialise(torch.Generator().manual_seed(0))
    write(
        tmp_path / "model.bin", config, {name: p.detach() for name, p in model.named_parameters()}
    )
    assert (tmp_path / "model.bin").read_bytes()[20:32] == struct.pack("<3i", 3, 36, 128)
    again, tensors = read(tmp_path / "model.bin")
    other = GPT(again).eval()
    other.load_state_dict(tensors)
    ids = random_ids()
    assert (logits(model, ids) - logits(other, ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"d_ff": 100}, r"model\.d_ff = 100 \(only 144\)"),
        ({"feed_forward": "gelu"}, r"model\.feed_forward = gelu \(only gelu-tanh\)"),
        ({"feed_forward": "relu2"}, r"model\.feed_forward = relu2 \(only gelu-tanh\)\. Models"),
        ({"norm_eps": 1e-6}, r"model\.norm_eps = 1e-06"),
        ({"tied_head": False}, r"model\.tied_head = no \(only yes\)"),
        ({"d_head": 16}, r"model\.d_head = 16 \(only auto\)"),
        ({"attention_bias": "qkv"}, r"model\.attention_bias = qkv \(only auto\)"),
        ({"bias": False, "attention_bias": "all"}, r"model\.attention_bias = all \(only auto\)"),
        ({"norm": "rmsnorm", "bias": False}, r"model\.norm = rmsnorm"),
        ({"qk_norm": True}, r"model\.qk_norm = yes"),
    ],
)
def test_models_that_llmc_does_not_support_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    sizes = {"n_layer": 1, "n_head": 3, "d_model": 36, "vocab_size": 97} | changes
    config: GPTConfig = (
        preset("gpt2").changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model
    )
    model = GPT(config)
    with pytest.raises(ConfigError, match=told):
        write(
            tmp_path / "model.bin",
            config,
            {name: p.detach() for name, p in model.named_parameters()},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["rnn", "ngram"])
def test_other_model_kinds_are_refused(kind: Any) -> None:
    for refused in (check, architecture_for):
        with pytest.raises(
            ConfigError, match=rf"^(llm\.c|transformers) has [^.]* a model of kind {kind}[^.]*\.$"
        ):
            refused(MODEL_KINDS.get(kind)(vocab_size=97))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" + bytes(2000))
    with pytest.raises(UsageError, match=r"not a model that can be imported"):
        import_model(str(tmp_path / "model.bin"), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"model\.bin is not a model that can be imported"):
        import_model(str(tmp_path), out=tmp_path / "run")
    raw = llmc_file(random_model("gpt2"), tmp_path / "cut.bin", 128, torch.float32)
    (tmp_path / "cut.bin").write_bytes(raw[:-4])
    with pytest.raises(CheckpointError, match="cut short"):
        import_model(str(tmp_path / "cut.bin"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
