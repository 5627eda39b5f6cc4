"""Checkpoints of nanoGPT, compared with its equations written out from the tensors."""

import cProfile
import io
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_models import logits, random_ids
from safetensors.torch import save_file
from test_runs import lmsmith
from torch import Tensor

from lmsmith.errors import CheckpointError, LmsmithError, TokenizerError
from lmsmith.interop.importing import import_model
from lmsmith.run_folder import load_for_use, load_weights

CHARACTERS = "\n !abcdefghij"
ARGUMENTS = {"n_layer": 2, "n_head": 2, "n_embd": 12, "block_size": 64, "dropout": 0.0}


def weights_of(arguments: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Random weights with nanoGPT's names and shapes."""
    D, V, n = arguments["n_embd"], arguments["vocab_size"], arguments["n_layer"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (V, D),
        "transformer.wpe.weight": (arguments["block_size"], D),
    }
    for i in range(n):
        for name, shape in {
            "ln_1": (D,),
            "attn.c_attn": (3 * D, D),
            "attn.c_proj": (D, D),
            "ln_2": (D,),
            "mlp.c_fc": (4 * D, D),
            "mlp.c_proj": (D, 4 * D),
        }.items():
            shapes[f"transformer.h.{i}.{name}.weight"] = shape
            if arguments["bias"]:
                shapes[f"transformer.h.{i}.{name}.bias"] = shape[:1]
    shapes["transformer.ln_f.weight"] = (D,)
    if arguments["bias"]:
        shapes["transformer.ln_f.bias"] = (D,)
    generator = torch.Generator().manual_seed(0)
    found = {
        prefix + name: (len(shape) == 1 and name.endswith("weight"))
        + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return found | {f"{prefix}lm_head.weight": found[f"{prefix}transformer.wte.weight"]}


def by_equations(w: dict[str, Tensor], arguments: dict[str, Any], ids: Tensor) -> Tensor:
    """nanoGPT's forward pass."""
    D, H = arguments["n_embd"], arguments["n_head"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    B, T = ids.shape
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:T]
    for i in range(arguments["n_layer"]):
        at = f"transformer.h.{i}"
        q, k, v = (
            part.view(B, T, H, D // H).transpose(1, 2)
            for part in linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(B, T, D), f"{at}.attn.c_proj")
        h = F.gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc"))
        x = x + linear(h, f"{at}.mlp.c_proj")
    return F.linear(norm(x, "transformer.ln_f"), w["lm_head.weight"])


def saved(folder: Path, *, bias: bool, prefix: str = "", **changes: Any) -> dict[str, Any]:
    """Writes ckpt.pt as nanoGPT does; returns its content."""
    arguments = ARGUMENTS | {"bias": bias, "vocab_size": len(CHARACTERS)}
    weights = weights_of(arguments, prefix)
    state = {k: {"exp_avg": torch.zeros_like(v)} for k, v in enumerate(weights.values())}
    content = {
        "model": weights,
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-3}]},
        "model_args": arguments,
        "iter_num": 100,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 1e-3},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "ckpt.pt")
    return content


def meta(folder: Path, content: Any = None) -> Path:
    itos = dict(enumerate(CHARACTERS))
    stoi = {c: i for i, c in itos.items()}
    content = content or {"vocab_size": len(itos), "itos": itos, "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(content))
    return folder / "meta.pkl"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_computes_what_nanogpt_does(bias: bool, prefix: str, tmp_path: Path, capsys: Any) -> None:
    content = saved(tmp_path / "out", bias=bias, prefix=prefix)
    meta(tmp_path / "out")
    assert lmsmith("import", tmp_path / "out" / "ckpt.pt", "--out", tmp_path / "run") == 0
    assert "a char tokenizer" in capsys.readouterr().out
    model, tokenizer, _ = load_for_use(tmp_path / "run")
    ids = random_ids(V=len(CHARACTERS))
    plain = {name.removeprefix(prefix): tensor for name, tensor in content["model"].items()}
    expected = by_equations(plain, content["model_args"], ids)
    assert (logits(model, ids) - expected).abs().max() < 1e-5
    assert tokenizer.encode("a bad\n").tolist() == [CHARACTERS.index(c) for c in "a bad\n"]
    assert lmsmith("generate", tmp_path / "run", "a", "--max-tokens=5", "--no-bos") == 0


def test_the_folder_and_another_vocabulary(tmp_path: Path) -> None:
    saved(tmp_path / "out", bias=False)
    (tmp_path / "data").mkdir()
    import_model(str(tmp_path / "out"), out=tmp_path / "a", tokenizer=str(meta(tmp_path / "data")))
    assert load_for_use(tmp_path / "a")[1].vocab_size == len(CHARACTERS)
    import_model(str(tmp_path / "out"), out=tmp_path / "b")
    assert load_weights(tmp_path / "b" / "model")[0].vocab_size == len(CHARACTERS)
    assert not (tmp_path / "b" / "model" / "tokenizer.json").exists()


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


MAKE = "open('trapped', 'w')"
TRAPS = {
    "system": Trap(os.system, "touch trapped"),
    "popen": Trap(os.popen, "touch trapped"),
    "Popen": Trap(subprocess.Popen, ["touch", "trapped"]),
    "check_output": Trap(subprocess.check_output, ["touch", "trapped"]),
    "eval": Trap(eval, MAKE),
    "exec": Trap(exec, MAKE),
    "open": Trap(open, "trapped", "w"),
    "mkdir": Trap(os.mkdir, "trapped"),
    "copy": Trap(shutil.copy, "out/ckpt.pt", "trapped"),
    "run": Trap(cProfile.run, MAKE),
}


@pytest.mark.parametrize("name", TRAPS)
def test_code_in_a_pickle_is_refused_and_not_run(
    name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    trap, path = TRAPS[name], tmp_path / "out" / "ckpt.pt"
    for where in ({"config": trap}, {"optimizer": [(trap,)]}, {"model": {"a": trap}}):
        saved(tmp_path / "out", bias=False, **where)
        with pytest.raises(
            CheckpointError, match=rf"pickled object \(.*{name}\) that can run code"
        ):
            import_model("out/ckpt.pt", out=tmp_path / "run")
    for protocol in range(6):
        path.write_bytes(pickle.dumps(trap, protocol))
        with pytest.raises(CheckpointError, match=r"plain pickle|is not a checkpoint of PyTorch"):
            import_model("out/ckpt.pt", out=tmp_path / "run")
    saved(tmp_path / "out", bias=False)
    meta(tmp_path / "out", {"itos": trap})
    with pytest.raises(TokenizerError, match=rf"pickled object .*{name}.*can run code"):
        import_model("out/ckpt.pt", out=tmp_path / "run")
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "run").exists()


def test_an_object_as_large_as_the_pickle_says_is_refused(tmp_path: Path) -> None:
    for trap in (Trap(bytearray, 1 << 40), torch.zeros(1).expand(1 << 40)):
        saved(tmp_path / "out", bias=False, optimizer=[{"a": trap}])
        with pytest.raises(CheckpointError, match=r"bytearray|without all of its numbers"):
            import_model(str(tmp_path / "out"), out=tmp_path / "run")
    saved(tmp_path / "out", bias=False, optimizer=torch.zeros(3, device="meta"))
    with pytest.raises(CheckpointError, match="without all of its numbers"):
        import_model(str(tmp_path / "out"), out=tmp_path / "run")


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """A changed byte outside the numbers is an error of ours, or changes nothing that is read."""
    saved(tmp_path, bias=False, optimizer={})
    path, draw = tmp_path / "ckpt.pt", random.Random(0)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickled = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
        directory = data.index(b"PK\x01\x02")
    said = []
    for number in range(40):
        begin, end = (0, pickled.file_size) if number % 2 else (directory, len(data))
        bad = bytearray(data)
        bad[draw.randrange(begin, end)] = draw.randrange(256)
        path.write_bytes(bad)
        try:
            import_model(str(path), out=tmp_path / f"run{number}", tokenizer="none")
        except LmsmithError as error:
            said.append(str(error))
            assert not (tmp_path / f"run{number}").exists()
    assert len(said) > 10
    assert not any("PytorchStreamReader" in text or "weights_only" in text for text in said)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    saved(tmp_path, bias=False)
    path = tmp_path / "ckpt.pt"
    whole = path.read_bytes()
    archive, packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps([0] * 100_000, 2))
    program, old, safe = io.BytesIO(), io.BytesIO(), tmp_path / "x.safetensors"
    with zipfile.ZipFile(program, "w") as file:  # as torch.jit.save writes it
        for name in ("data.pkl", "constants.pkl", "code/__torch__/m.py"):
            file.writestr(f"m/{name}", pickle.dumps((), 2))
    torch.save([1], old, _use_new_zipfile_serialization=False)
    save_file({"x": torch.ones(2)}, safe)
    kinds = {
        "it is empty": b"",
        "it begins with b'text', expected the ZIP archive": b"text",
        "it begins with .* expected the ZIP archive": safe.read_bytes(),
        "is cut off": whole[: len(whole) // 2],
        "is cut off or": whole[:200],
        "plain pickle.*torch.save": old.getvalue(),
        "is a plain pickle": pickle.dumps({"model": {}}),
        "ZIP archive without data.pkl": archive.getvalue(),
        "is compressed": packed.getvalue(),
        "is a TorchScript program": program.getvalue(),
    }
    for message, content in kinds.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"ckpt\.pt.*{message}"):
            import_model(str(path), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": 3}, "must be dictionaries"),
        ({"model_args": {}}, "no vocab_size"),
        ({"model_args": ARGUMENTS | {"vocab_size": 13, "n_head": 5, "bias": False}}, "n_head"),
        ({"model_args": ARGUMENTS | {"vocab_size": 13, "bias": True}}, "missing .*bias"),
        ({"model_args": ARGUMENTS | {"vocab_size": "many", "bias": True}}, "vocab_size"),
        ({"model": {"transformer.wte.weight": "text"}}, "1 unknown or of another shape"),
    ],
)
def test_bad_checkpoints(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "out", bias=False, **changes)
    with pytest.raises(LmsmithError, match=message):
        import_model(str(tmp_path / "out" / "ckpt.pt"), out=tmp_path / "run")


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of nanoGPT"):
        import_model(str(tmp_path / "ckpt.pt"), out=tmp_path / "run")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    content = saved(tmp_path, bias=False)
    content["model"]["transformer.ln_f.weight"][0] = float("nan")
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"final_norm\.weight \(1 NaN"):
        import_model(str(tmp_path / "ckpt.pt"), out=tmp_path / "run")
