"""The choice of precision and threads, from a device's capabilities and measured rates."""

from types import SimpleNamespace

import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError
from lmsmith.train import device as machine


def asked(dtype: str, device: str = "cpu") -> RunConfig:
    changes = {
        "train.dtype": dtype,
        "train.device": device,
        "train.matmul": "default",
        "train.threads": 1,
    }
    return RunConfig().changed(changes, where="a test")


@pytest.mark.parametrize(
    ("has", "rates", "wanted"),
    [
        (True, {torch.float32: 1.0, torch.bfloat16: 2.0}, "bfloat16"),
        (True, {torch.float32: 1.0, torch.bfloat16: 1.2}, "float32"),
        (False, {torch.float32: 1.0, torch.float16: 3.0}, "float16"),  # a T4, say
        (False, {torch.float32: 1.0, torch.float16: 0.5}, "float32"),
    ],
)
def test_half_precision_if_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, has: bool, rates: dict[torch.dtype, float], wanted: str
) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: has)
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype=torch.float32: rates[dtype])
    found = machine.survey(asked("auto"))
    assert found.dtype == wanted
    assert found.flops == rates[{"float32": torch.float32}.get(wanted) or getattr(torch, wanted)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_given_precision_is_used(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype=torch.float32: 1.0)
    assert machine.survey(asked(dtype)).dtype == dtype


def test_tf32_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="tf32' needs an NVIDIA GPU, and this device is cpu"):
        machine.survey(asked("tf32"))


@pytest.mark.parametrize(
    ("threads", "variable", "world", "expected"),
    [(0, "3", 1, 3), (2, "3", 1, 2), (0, "", 1, 4), (0, "1", 2, 2)],
)
def test_threads_are_the_given_number_or_one_per_core(
    monkeypatch: pytest.MonkeyPatch, threads: int, variable: str, world: int, expected: int
) -> None:
    """torchrun sets OMP_NUM_THREADS to 1 by itself, so it is ignored there."""
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(machine, "n_cores", lambda: 4)
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype=torch.float32: 1.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    config = asked("float32").changed({"train.threads": threads}, where="a test")
    ranks = SimpleNamespace(world=world, here=world, device=torch.device("cpu"))
    assert machine.survey(config, ranks).threads == expected  # type: ignore[arg-type]
