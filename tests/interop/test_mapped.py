"""Memory-mapped safetensors, compared with the library that defines the format."""

from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from lmsmith.interop import mapped

FLOATS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.randn(2, 2, 2).half(),
    "d": torch.randn(1).double(),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
}


@pytest.mark.parametrize("more", [{}, {"ids": torch.arange(5, dtype=torch.int8)}])
def test_the_same_tensors_as_the_library(more: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(FLOATS | more, tmp_path / "x.safetensors")
    found, expected = mapped.load(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")
    mapped.release()  # pages are read again
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    mapped.release()
    assert torch.equal(found["a"], expected["a"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_pages_are_dropped(tmp_path: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    save_file({"x": torch.ones(1 << 23)}, tmp_path / "x.safetensors")  # 32 MiB
    tensor = mapped.load(tmp_path / "x.safetensors")["x"]
    before = resident()
    assert tensor.sum() == 1 << 23
    read = resident()
    mapped.release()
    assert read - before > 1 << 24
    assert read - resident() > 1 << 24


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff" * 64, b"\x10" + bytes(7) + b"{}" + bytes(14)]
)
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(safetensors.SafetensorError):
        mapped.load(tmp_path / "x.safetensors")
