"""Reading weights one tensor at a time, and models that are built around them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lmsmith import weights_file
from lmsmith.checkpoint import save_model
from lmsmith.config.building import ALIGNMENT, with_weights
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError
from lmsmith.generate.weights import FORMATS, Weights, load_packed, pack
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.run_folder import load_weights
from lmsmith.weights_file import TYPES, WeightsFile

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 24, "vocab_size": 61, "context_length": 16}


def saved(folder: Path, name: str = "gpt2", **changes: int) -> GPTConfig:
    """A model with random weights in `folder`; gives its config."""
    sizes = {f"model.{key}": value for key, value in (SIZES | changes).items()}
    config = preset(name).changed(sizes, where="here").model
    assert isinstance(config, GPTConfig)
    model = config.build()
    model.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    settings = {"kind": "gpt", **vars(config)}
    save_model(folder, dict(model.named_parameters()), {"model": settings})
    return config


@pytest.mark.parametrize("n_bytes", [1, 40, 1 << 22])
def test_tensors_are_those_of_the_library(
    tmp_path: Path, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_file, "ROWS_BYTES", n_bytes)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        f"{name}{shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype, name in TYPES.items()
        for shape in ((), (0, 3), (5,), (7, 3), (3, 2, 2))
    }
    path = tmp_path / "some.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"a": "b"})
    file = WeightsFile(path)
    assert file.metadata == {"a": "b"}
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        assert file[name].dtype == tensor.dtype
        assert file.shape(name) == tensor.shape
        assert torch.equal(file[name], tensor)
        assert file[name].data_ptr() % ALIGNMENT == 0 or not tensor.numel()
        rows = list(file.rows(name))
        assert torch.equal(torch.cat(rows) if tensor.dim() else rows[0], tensor)
    raw = path.read_bytes()
    assert file.sha256() == hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file["F32(5,)"]


class Drawn(nn.Module):
    """Draws parameters, which are loaded, and a table, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(64, 64), nn.Embedding(9, 5)
        fixed = torch.empty(4).uniform_(generator=torch.Generator().manual_seed(7))
        self.register_buffer("fixed", nn.init.normal_(fixed, generator=torch.Generator()), False)


def test_a_built_model_has_the_weights_and_draws_no_others() -> None:
    wanted = Drawn()
    before = torch.random.get_rng_state()
    given = dict(wanted.state_dict())
    given["table.weight"] = given["table.weight"].double()
    found = with_weights(Drawn, given)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(found.fixed, wanted.fixed)  # type: ignore[arg-type]
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert found.linear.weight.data_ptr() == wanted.linear.weight.data_ptr()
    assert all(p.requires_grad for p in found.parameters())
    unaligned = torch.ones(65 * 64)[1 : 1 + 64 * 64].view(64, 64)
    placed = with_weights(Drawn, given | {"linear.weight": unaligned}).linear.weight
    assert placed.data_ptr() % ALIGNMENT == 0
    with pytest.raises(RuntimeError, match=r"linear\.weight"):
        with_weights(Drawn, given | {"linear.weight": torch.ones(3, 64)})


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_a_model_is_packed_while_it_is_read(tmp_path: Path, name: str, weights: Weights) -> None:
    saved(tmp_path / "model", name)
    found, content = load_packed(tmp_path / "model", weights)
    wanted = load_weights(tmp_path / "model")[0]
    assert content["model"]["d_model"] == 24
    # The matrices of two blocks and the token table; modern also has a head and a value table.
    n_packed = 2 * 4 + 1 + 2 * (name == "modern")
    assert pack(wanted, weights) == (0 if weights == "fp32" else n_packed)
    assert isinstance(found, GPT)
    assert isinstance(wanted, GPT)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(found(ids), wanted(ids))
    assert not found.training


@pytest.mark.parametrize("weights", FORMATS)
def test_weights_of_another_model_are_refused(tmp_path: Path, weights: Weights) -> None:
    config = saved(tmp_path / "model")
    tensors = load_weights(tmp_path / "model")[1]
    save_model(tmp_path / "model", tensors, {"model": vars(config) | {"d_model": 32}})
    with pytest.raises(CheckpointError, match=r"config\.json and model\.safetensors do not match"):
        load_packed(tmp_path / "model", weights)


LOAD = """
import sys
from pathlib import Path
import lmsmith.generate.text_model
from lmsmith.generate.weights import load_packed
from lmsmith.machine.heap import release_freed_memory

def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])

for weights in ("fp32", "int8"):
    load_packed(Path(sys.argv[1]), weights)
    peaks = []
    for _ in range(2):  # the first may also load code
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = peak()
        model, _ = load_packed(Path(sys.argv[2]), weights)
        peaks.append(peak() - before)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        del model
        release_freed_memory()
    print(min(peaks), size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_loading_takes_no_more_memory_than_the_model(tmp_path: Path) -> None:
    saved(tmp_path / "small")
    saved(tmp_path / "large", n_layer=4, d_model=512, vocab_size=20_000, context_length=64)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        peak, size = map(int, line.split())
        assert peak < 1.15 * size + 16e6, (peak, size)
    assert len(done.stdout.splitlines()) == 2
