"""llm.c checkpoints against files assembled number by number, with PyTorch's bfloat16."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsmith.errors import CheckpointError
from lmsmith.reference.blocks import Sizes, parameter_shapes
from lmsmith.reference.llmc import read_llmc, write_llmc

SIZES = Sizes(
    n_layer=2, n_head=3, d_model=12, vocab_size=13, padded_vocab_size=16, context_length=7
)
SHAPES = [  # in the terms of llm.c: V, maxT, L and C of SIZES
    *[(16, 12), (7, 12), (2, 12), (2, 12), (2, 36, 12), (2, 36), (2, 12, 12), (2, 12)],
    *[(2, 12), (2, 12), (2, 48, 12), (2, 48), (2, 12, 48), (2, 12), (12,), (12,)],
]
HEADER = struct.pack("<256i", 20240326, 3, 7, 13, 2, 3, 12, 16, *[0] * 248)


def checkpoint(
    dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[bytes, list[torch.Tensor]]:
    """A checkpoint's bytes, and its contents."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    version = struct.pack("<i", 3 if dtype == torch.float32 else 5)
    raw = b"".join(t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors)
    return HEADER[:4] + version + HEADER[8:] + raw, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_read_and_written_to_the_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    raw, tensors = checkpoint(dtype)
    (tmp_path / "there.bin").write_bytes(raw)
    sizes, params = read_llmc(tmp_path / "there.bin")
    assert sizes == SIZES
    assert list(params) == list(parameter_shapes(SIZES))
    for found, wanted in zip(params.values(), tensors, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.float().numpy())
    write_llmc(
        tmp_path / "back.bin", sizes, params, "float32" if dtype == torch.float32 else "bfloat16"
    )
    assert (tmp_path / "back.bin").read_bytes() == raw


def test_the_tensors_are_writable_and_contiguous(tmp_path: Path) -> None:
    (tmp_path / "there.bin").write_bytes(checkpoint()[0])
    _, params = read_llmc(tmp_path / "there.bin")
    params["lnfb"] += 1
    block = params["wte"].base
    assert all(view.base is block for view in params.values())
    np.testing.assert_array_equal(np.concatenate([view.ravel() for view in params.values()]), block)


def test_float64_is_rounded_to_bfloat16_as_pytorch_rounds(tmp_path: Path) -> None:
    """Random numbers, ties in both directions, the largest, the smallest, zeros, infinities."""
    ties = np.array(
        [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00008000, 0x00018000, 1, 0x80000000], np.uint32
    )
    special = np.concatenate([ties.view(np.float32), [np.inf, -np.inf, 0.0]])
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in parameter_shapes(SIZES).items()}
    params["lnfb"][: len(special)] = special
    write_llmc(tmp_path / "half.bin", SIZES, params, "bfloat16")
    wanted = torch.cat([torch.from_numpy(p.ravel()).bfloat16() for p in params.values()])
    found = (tmp_path / "half.bin").read_bytes()[1024:]
    assert found == wanted.view(torch.uint8).numpy().tobytes()


def test_nan_stays_nan_in_bfloat16(tmp_path: Path) -> None:
    params = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(SIZES).items()}
    params["lnfb"].view(np.uint32)[:3] = 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF
    write_llmc(tmp_path / "half.bin", SIZES, params, "bfloat16")
    assert np.isnan(read_llmc(tmp_path / "half.bin")[1]["lnfb"][:3]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: struct.pack("<i", 20240520) + raw[4:], ["20240520", "expected 20240326"]),
        (
            lambda raw: raw[:4] + struct.pack("<i", 1) + raw[8:],
            ["version 1", "3 (float32) or 5 (bfloat16)"],
        ),
        (
            lambda raw: raw[:20] + struct.pack("<i", 5) + raw[24:],
            ["damaged", "5 heads and width 12"],
        ),
        (
            lambda raw: raw[:28] + struct.pack("<i", 12) + raw[32:],
            ["damaged", "vocabulary 13 padded to 12"],
        ),
        (lambda raw: raw[:16] + struct.pack("<i", -2) + raw[20:], ["damaged", "-2 layers"]),
        (lambda raw: raw[:8] + struct.pack("<i", 2**31 - 1) + raw[12:], ["cut short"]),
        (lambda raw: raw[:-1], ["cut short", "parameters"]),
        (lambda raw: raw + b"\0", ["damaged"]),
        (lambda raw: raw[:1000], ["1,000 bytes", "1,024"]),
        (lambda raw: b"", ["0 bytes"]),
    ],
)
def test_damaged_or_other_files_are_refused(tmp_path: Path, change, words: list[str]) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(change(checkpoint()[0]))
    with pytest.raises(CheckpointError) as error:
        read_llmc(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_llmc(tmp_path / "none.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_llmc(tmp_path)
