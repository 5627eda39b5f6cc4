"""Checkpoints of nanochat: those of its first layout are read, the others refused with reasons."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmsmith
from lmsmith.errors import CheckpointError, ConfigError, LmsmithError
from lmsmith.interop import nanogpt
from lmsmith.models.gpt import GPT

SETTINGS = {
    **{"n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 48},
    **{"sequence_len": 64, "vocab_size": 97},
}
IDS = torch.randint(97, (2, 60), generator=torch.Generator().manual_seed(1))


def weights(scaled: bool = False, padded: bool = True) -> dict[str, Tensor]:
    """Random weights by nanochat's names."""
    D, K, L = 48, 12, 3
    V = 128 if padded else 97
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (V, D),
        "lm_head.weight": (V, D),
    }
    for i in range(L):
        layer = f"transformer.h.{i}"
        shapes |= {
            f"{layer}.attn.c_q.weight": (4 * K, D),
            f"{layer}.attn.c_k.weight": (2 * K, D),
            f"{layer}.attn.c_v.weight": (2 * K, D),
            f"{layer}.attn.c_proj.weight": (D, D),
            f"{layer}.mlp.c_fc.weight": (4 * D, D),
            f"{layer}.mlp.c_proj.weight": (D, 4 * D),
        }
    shapes |= {"resid_lambdas": (L,), "x0_lambdas": (L,)} if scaled else {}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(folder: Path, content: Any, settings: Any = SETTINGS) -> Path:
    folder.mkdir()
    torch.save(content, folder / "model_000650.pt")
    meta = {"step": 650, "val_bpb": 0.8, "model_config": settings}
    (folder / "meta_000650.json").write_text(json.dumps(meta))
    return folder / "model_000650.pt"


def normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def expected(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The logits of nanochat's first model, written down from its description."""
    B, T = ids.shape
    angle = torch.arange(T)[:, None] * 10_000 ** (-torch.arange(0, 12, 2) / 12)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]  # (T, 1, K/2)

    def rotated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)

    x = first = normed(w["transformer.wte.weight"][ids])
    for i in range(3):
        if "resid_lambdas" in w:
            x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * first
        layer = f"transformer.h.{i}"
        h = normed(x)
        q, k, v = ((h @ w[f"{layer}.attn.c_{part}.weight"].T).view(B, T, -1, 12) for part in "qkv")
        q, k = normed(rotated(q)), normed(rotated(k))
        k, v = (part.repeat_interleave(2, dim=2) for part in (k, v))
        scores = torch.einsum("bqhk,bshk->bhqs", q, k) / math.sqrt(12)
        scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
        mixed = torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v).flatten(2)
        x = x + mixed @ w[f"{layer}.attn.c_proj.weight"].T
        h = (normed(x) @ w[f"{layer}.mlp.c_fc.weight"].T).relu().square()
        x = x + h @ w[f"{layer}.mlp.c_proj.weight"].T
    logits = (normed(x) @ w["lm_head.weight"].T)[..., :97]
    return 15 * torch.tanh(logits / 15)


@pytest.mark.parametrize(("scaled", "padded"), [(False, True), (False, False), (True, True)])
def test_logits_are_equal(scaled: bool, padded: bool, tmp_path: Path) -> None:
    w = weights(scaled, padded)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in w.items()}
    path = saved(tmp_path / "d3", compiled, SETTINGS | ({"window_pattern": "L"} if scaled else {}))
    config, tensors = nanogpt.read(path)
    model = GPT(config).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        found = model(IDS)[..., :97]
    assert (found - expected(w, IDS)).abs().max() < 1e-4


def test_import_of_the_folder(tmp_path: Path) -> None:
    """The last checkpoint in it."""
    path = saved(tmp_path / "d3", weights())
    (tmp_path / "d3" / "model_000100.pt").write_bytes(b"damaged")
    run = lmsmith.import_model(tmp_path / "d3", out=tmp_path / "run", tokenizer="none")
    imported = json.loads((run.path / "summary.json").read_text())["imported"]
    assert imported["form"] == "nanochat"
    assert list(imported["sha256"]) == [path.name, "meta_000650.json"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("value_embeds.1.weight",), "value embeddings with gates"),
        (("smear_gate.weight", "backout_lambda"), "a smear gate.*; backout.*those of 2025"),
    ],
)
def test_later_layouts_are_refused(more: Any, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "d3", weights() | {name: torch.zeros(2) for name in more})
    for source in (path, path.parent):
        with pytest.raises(ConfigError, match=message):
            lmsmith.import_model(source, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `model_config` with n_layer"),
        (3, "expected `model_config`"),
        (SETTINGS | {"n_layer": 10**9}, "n_layer = 1000000000: expected a whole number"),
        (SETTINGS | {"n_head": "4"}, "n_head = "),
        (SETTINGS | {"n_head": 5}, r"meta_000650\.json has settings that no model has: .*n_head"),
        (SETTINGS | {"n_layer": 4}, "6 missing"),
        (SETTINGS | {"n_embd": 96}, "of another shape"),
        (SETTINGS | {"window_pattern": "SSSL"}, "window_pattern = .*short windows changed"),
    ],
)
def test_bad_settings(settings: Any, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "d3", weights(), settings)
    with pytest.raises(LmsmithError, match=message):
        lmsmith.import_model(path, out=tmp_path / "run", tokenizer="none")
    assert not (tmp_path / "run").exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "d3", weights())
    (tmp_path / "d3" / "meta_000650.json").write_text('{"model_config": {')
    with pytest.raises(CheckpointError, match=r"meta_000650\.json is not one of nanochat"):
        nanogpt.read(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="expected a dictionary"):
        nanogpt.read(path)
