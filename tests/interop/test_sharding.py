"""Weights in several files, compared with what transformers writes and reads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import logits, random_ids, random_model, saved, transformers
from safetensors.torch import load_file

from lmsmith.errors import CheckpointError, UsageError
from lmsmith.interop.huggingface import read, write
from lmsmith.interop.importing import import_model
from lmsmith.interop.sharding import INDEX, bytes_of, split, write_weights


def test_transformers_reads_the_shards(tmp_path: Path) -> None:
    theirs = random_model("llama")
    config, tensors = read(saved(theirs, tmp_path / "theirs"))
    out = tmp_path / "out"
    out.mkdir()
    files = write(out, config, tensors, shard_size=20_000)
    assert len(files) > 2
    assert all((out / name).stat().st_size < 22_000 for name in files)
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(logits(again, random_ids()), logits(theirs, random_ids()))
    config, back = read(out)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_index_has_the_form_of_transformers(tmp_path: Path) -> None:
    theirs = random_model("gpt2")
    saved(theirs, tmp_path / "theirs", max_shard_size="20KB")
    expected = json.loads((tmp_path / "theirs" / INDEX).read_text())
    write_weights(tmp_path, {n: p.detach() for n, p in theirs.named_parameters()}, 20_000)
    found = json.loads((tmp_path / INDEX).read_text())
    assert found["metadata"] == expected["metadata"]
    assert set(found["weight_map"]) == set(expected["weight_map"])
    for name, file in found["weight_map"].items():
        assert name in load_file(tmp_path / file)


def test_a_tensor_above_the_size_has_a_shard_of_its_own() -> None:
    tensors = {"a": torch.zeros(10), "b": torch.zeros(100), "c": torch.zeros(2), "d": torch.ones(3)}
    assert [list(shard) for shard in split(tensors, 80)] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 MB", 1_500_000),
        ("2GiB", 2**31),
        ("200kb", 200_000),
        (10**6, 10**6),
    ],
)
def test_sizes(size: Any, n_bytes: int) -> None:
    assert bytes_of(size) == n_bytes


@pytest.mark.parametrize("size", ["", "five", "5TBB", "-5GB", "5", "0", "99KB", "nan", "1e99GB"])
def test_bad_sizes(size: str) -> None:
    with pytest.raises(UsageError, match="shard size"):
        bytes_of(size)


OUTSIDE = ["../x.safetensors", "a/../../x.safetensors", "..", "/etc/passwd", "/x.safetensors"]


@pytest.mark.parametrize(
    "name", [*OUTSIDE, "a/b.safetensors", "./x.safetensors", "x.bin", "", 7, None, ["x"]]
)
def test_an_index_cannot_name_files_elsewhere(name: Any, tmp_path: Path) -> None:
    folder = saved(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no weight_map from tensors to safetensors files"):
        import_model(str(folder), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", ".", "x.safetensors", "gone", "p"])
def test_a_shard_that_is_a_link(target: str, tmp_path: Path) -> None:
    """To another kind of file, a device, a folder, itself, nothing and a pipe. A link to weights is
    followed: the cache of the Hub consists of them.
    """
    folder = saved(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.norm.weight"] = "x.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    if target == "p":
        os.mkfifo(folder / "p")
    (folder / "x.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"x\.safetensors (is|cannot)") as raised:
        import_model(str(folder), out=tmp_path / "run")
    assert "root:x" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    (folder / "x.safetensors").unlink()
    (folder / "x.safetensors").symlink_to(shard)
    import_model(str(folder), out=tmp_path / "run", tokenizer="none")
