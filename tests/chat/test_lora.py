"""LoRA: only adapters learn, merging changes nothing, and PEFT reads what `export` writes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import QUIET, SHORT, make_base, write_chats
from other_versions import python_with

from lmsmith.chat.sft import tune
from lmsmith.checkpoint import load_checkpoint, load_model
from lmsmith.config import RunConfig
from lmsmith.config.lora import LoraConfig
from lmsmith.errors import ConfigError, UsageError
from lmsmith.interop.exporting import export_model
from lmsmith.models.lora import add_adapters, is_adapter, merged
from lmsmith.run_folder import load_for_use, open_run, score_validation
from lmsmith.train.start import resume, train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs base and tuned, and chats.jsonl."""
    folder = tmp_path_factory.mktemp("lora")
    make_base(folder)
    write_chats(folder / "chats.jsonl")
    lora(folder, "tuned")
    return folder


def lora(place: Path, name: str, **changes: Any) -> Path:
    settings = SHORT | {"lora.rank": 2} | changes
    return tune(
        place / "base", [str(place / "chats.jsonl")], settings, out=place / name, console=QUIET
    )[0]


def adapted(preset: str = "llama", **changes: Any) -> tuple[Any, LoraConfig]:
    """A model with random adapters, in float64."""
    sizes = {"model.n_layer": 2, "model.d_model": 16, "model.n_head": 2, "model.context_length": 16}
    kind = {"gpt2": {"model.norm": "layernorm"}}.get(preset, {})
    from lmsmith.config.presets import preset as named

    model_config = (
        named(preset).changed(sizes | kind | {"model.vocab_size": 11}, where="test").neural
    )
    model = model_config.build().double()
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    config = LoraConfig(**{"rank": 3, "alpha": 5.0} | changes)
    add_adapters(model, config, generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:  # also the ones that start at zero
                p.normal_(0, 1.0 if is_adapter(name) else 0.3, generator=generator)
    return model, config


@pytest.mark.parametrize("preset", ["llama", "gpt2", "modern"])
@pytest.mark.parametrize("targets", [LoraConfig().targets, ("q", "v"), ("k", "up"), ("out",)])
def test_merged_weights_compute_the_same(preset: str, targets: tuple[str, ...]) -> None:
    model, config = adapted(preset, targets=targets)
    plain = model.config.build().double()
    tensors = dict(model.state_dict())
    plain.load_state_dict(merged(tensors, config, model))
    ids = torch.arange(11)[None]
    torch.testing.assert_close(model(ids), plain(ids), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain(ids), _without(model, tensors)(ids))
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {name for name in tensors if is_adapter(name)}


def _without(model: Any, tensors: dict[str, torch.Tensor]) -> Any:
    plain = model.config.build().double()
    plain.load_state_dict({name: t for name, t in tensors.items() if not is_adapter(name)})
    return plain


def test_the_forward_pass_is_the_formula() -> None:
    model, config = adapted(targets=("q", "v"))
    module = model.blocks[0].attention.qkv
    x = torch.randn(3, 16, dtype=torch.float64)
    q, v = module.lora_a.split(3)
    b_q, b_v = module.lora_b.split([16, module.parts[2]])
    wanted = x @ module.weight.T
    wanted[:, :16] += 5 / 3 * (x @ q.T @ b_q.T)
    wanted[:, 16 + module.parts[1] :] += 5 / 3 * (x @ v.T @ b_v.T)
    torch.testing.assert_close(module(x), wanted)
    assert config.scale == pytest.approx(5 / 3)


def test_a_run_learns_adapters_and_saves_the_merged_model(place: Path) -> None:
    config, corpus = open_run(place / "tuned")
    assert config.lora.embeddings == "yes"  # the chat template added tokens
    assert (config.optim.name, config.optim.learning_rate) == ("adamw", 1e-3)
    found = load_checkpoint(place / "tuned").tensors["model"]
    base, _ = load_model(place / "base" / "model")
    frozen = [name for name in base if name.startswith("blocks")]
    assert all(torch.equal(found[name], base[name]) for name in frozen)
    summary = json.loads((place / "tuned" / "summary.json").read_text())
    assert summary["best_step"] == 10
    first = json.loads((place / "tuned" / "metrics.jsonl").read_text().splitlines()[0])
    assert summary["best_val_loss"] < first["val_loss"]
    model, _, _ = load_for_use(place / "tuned")  # merged: no adapters
    again = score_validation(place / "tuned", model, stride=None)
    assert again.nats_per_token == pytest.approx(summary["best_val_loss"], rel=1e-6)
    assert not any(is_adapter(name) for name in load_model(place / "tuned" / "model")[0])
    optimizer = load_checkpoint(place / "tuned").tensors["optimizer"]
    assert all(is_adapter(name) or "embedding" in name or "/head" in name for name in optimizer)
    assert corpus.train.n > 0


def test_resuming_gives_the_same_bits(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "tuned", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000010")
    (tmp_path / "run/summary.json").unlink()
    assert resume(tmp_path / "run", console=QUIET)["resumed_from_step"] == 5
    for name in ("model/model.safetensors", "adapter/adapter.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (place / "tuned" / name).read_bytes()


def test_tables_stay_if_no_token_was_added(place: Path) -> None:
    again = tune(
        place / "tuned", [str(place / "chats.jsonl")], SHORT | {"lora.rank": 1, "lora.targets": "q"},
        out=place / "again", console=QUIET,
    )[0]  # fmt: skip
    assert open_run(again)[0].lora.embeddings == "no"
    before, after = (load_model(run / "model")[0] for run in (place / "tuned", again))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"blocks.0.attention.qkv.weight"}


def test_mistakes_are_errors(place: Path) -> None:
    with pytest.raises(UsageError, match="Name it with --from RUN"):
        train([str(place / "book.txt")], SHORT | {"lora.rank": 2}, out=place / "x", console=QUIET)
    with pytest.raises(ConfigError, match="needs a Transformer"):
        RunConfig().changed({"model.kind": "rnn", "lora.rank": 2}, where="test")
    with pytest.raises(UsageError, match="has no adapters"):
        export_model(place / "base", place / "x", to="peft")


PROGRAM = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
receipt = json.load(open(adapter + "/receipt.json"))
model.resize_token_embeddings(receipt["vocab_size"], mean_resizing=False)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([json.loads(ids)])).logits, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_peft_gives_our_logits(preset: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    make_base(tmp_path, preset=preset)
    write_chats(tmp_path / "chats.jsonl")
    run = lora(tmp_path, "tuned", **{"lora.targets": "q,v,out,up,down"})
    export_model(tmp_path / "base", tmp_path / "hf", to="hf")
    export_model(run, tmp_path / "peft", to="peft")
    python = python_with("peft", request)
    ids = [*list(range(0, 60, 3)), 256, 260]
    words = [
        str(tmp_path / "hf"),
        str(tmp_path / "peft"),
        json.dumps(ids),
        str(tmp_path / "logits.pt"),
    ]
    subprocess.run([python, "-c", PROGRAM, *words], check=True)
    model, _, _ = load_for_use(run)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))  # type: ignore[operator]
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, rtol=1e-5, atol=1e-5)
