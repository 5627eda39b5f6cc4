"""What only a CUDA device can show: the CPU is the oracle, in float32 without TF32.

    pytest -o addopts= -m gpu tests/gpu

(without the default options, whose checks of shapes around functions cannot be compiled.)
Skipped by name where there is no such device; what takes several of them, where there are fewer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.packing import Packed
from lmsmith.data.batches.windows import Batches
from lmsmith.machine.products import use_matmul
from lmsmith.models.gpt import GPT
from lmsmith.train.device import has_bfloat16
from lmsmith.train.replica import Replica
from lmsmith.train.step import gradient, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PROJECT = Path(__file__).resolve().parents[2]
T, B, V = 256, 4, 64
END_OF_TEXT = 0
SIZES: dict[str, Any] = {
    "model.vocab_size": V,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.d_model": 64,
    "model.context_length": T,
    "train.batch_size": B,
    "train.dtype": "float32",
    "train.compile": "no",
}
NAMES = ("modern", "gpt2", "llama")


def batches(packed: bool = False) -> Any:
    """Ids that follow from one another, so that there is something to learn; documents of some
    dozens of tokens.
    """
    ids = (np.arange(40 * T) * 7 % (V - 1) + 1).astype(np.uint16)
    ids[np.random.default_rng(0).choice(len(ids), len(ids) // 40, replace=False)] = END_OF_TEXT
    windows = Batches(ids, context_length=T, batch_size=B, seed=1)
    return Packed(windows, END_OF_TEXT) if packed else windows


def replica_on(device: str, name: str = "modern", **changes: Any) -> Replica:
    """The same weights on every device."""
    config: RunConfig = preset(name).changed(SIZES | changes, where="a test")
    model = GPT(config.model)
    model.initialise(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():  # nothing is zero, so that everything has a gradient
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    use_matmul("default", config.train.dtype)
    return Replica(model.to(device).train(), config)


def same_gradients(one: Replica, other: Replica, data: Any, tolerance: float) -> None:
    """Each tensor's, by the size of their difference against its own."""
    (loss, norm), (other_loss, other_norm) = gradient(one, data, 0), gradient(other, data, 0)
    assert other_loss == pytest.approx(loss, rel=tolerance)
    assert other_norm == pytest.approx(norm, rel=tolerance)
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert (
            float((q.grad.cpu() - p.grad.cpu()).norm()) <= tolerance * float(p.grad.norm()) + 1e-7
        ), name


@pytest.mark.parametrize("name", NAMES)
def test_one_step_in_float32_equals_the_cpus(name: str) -> None:
    """Loss, norm, every gradient (attention is PyTorch's own there), and every weight after
    AdamW.
    """
    changes = {
        "optim.name": "adamw",
        "optim.eps": 1e-4,
    }  # a tiny gradient's sign must not decide a whole step
    same_gradients(
        replica_on("cpu", name, **changes), replica_on("cuda", name, **changes), batches(), 1e-4
    )
    cpu, cuda = replica_on("cpu", name, **changes), replica_on("cuda", name, **changes)
    for replica in (cpu, cuda):
        train_step(replica, batches(), 0, 10)
    for (key, p), q in zip(cpu.model.named_parameters(), cuda.model.parameters(), strict=True):
        torch.testing.assert_close(q.detach().cpu(), p.detach(), rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_training_in_lower_precision_lowers_the_loss(dtype: str) -> None:
    """And begins where float32 does."""
    if dtype != "float16" and not has_bfloat16(torch.device("cuda")):
        pytest.skip("this device is older than Ampere")
    replica, exact = replica_on("cuda", **{"train.dtype": dtype}), replica_on("cuda")
    use_matmul("default", dtype)
    assert replica.scale.value == (1.0 if dtype != "float16" else replica.scale.value)
    assert (replica.scale.value > 1) == (dtype == "float16")
    losses = [train_step(replica, batches(), step, 60)["loss"] for step in range(60)]
    use_matmul("default", "float32")
    assert losses[0] == pytest.approx(train_step(exact, batches(), 0, 60)["loss"], rel=1e-2)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_compiled_blocks_are_the_eager_ones(name: str) -> None:
    same_gradients(
        replica_on("cuda", name),
        replica_on("cuda", name, **{"train.compile": "yes"}),
        batches(),
        1e-4,
    )


def test_activation_checkpointing_takes_less_memory() -> None:
    peaks = []
    for recompute in (False, True):
        replica = replica_on(
            "cuda",
            **{
                "train.activation_checkpointing": recompute,
                "model.n_layer": 8,
                "model.d_model": 256,
            },
        )
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(replica, batches(), 0)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("compiled", ["no", "yes"])
def test_packed_documents_see_what_they_see_on_the_cpu(window: int, compiled: str) -> None:
    """By FlexAttention, where Triton is installed."""
    windows = {"model.window": window, "model.window_pattern": "SL"} if window else {}
    cpu, cuda = (
        replica_on("cpu", **windows),
        replica_on("cuda", **windows, **{"train.compile": compiled}),
    )
    same_gradients(cpu, cuda, batches(packed=True), 1e-3)
    plain, packed = gradient(cpu, batches(), 0), gradient(cpu, batches(packed=True), 0)
    assert plain[0] != packed[0], "the mask matters here"


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_many_devices_give_the_losses_of_one(tmp_path: Path, how: str, n: int) -> None:
    """Whole runs by torchrun and NCCL, whose gradients come in another order."""
    if torch.cuda.device_count() < n:
        pytest.skip(f"there are fewer than {n} CUDA devices")
    (tmp_path / "text.txt").write_text(
        "".join(f"{a} and {b} ate.\n" for a in "xyzuvw" for b in "abcdef") * 50
    )
    options = {
        "train.batch_size": 16,
        "train.log_every": 1,
        "optim.name": "adamw",
        "train.parallel": how,
    }
    settings = {k: v for k, v in (SIZES | options).items() if k != "model.vocab_size"}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    found = []
    for world in (1, n):
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
            if world > 1
            else []
        )
        command = [
            sys.executable,
            *launcher,
            "-m",
            "lmsmith",
            "train",
            "text.txt",
            "--train.device",
            "cuda",
            *words,
        ]
        done = subprocess.run(
            [*command, "--steps", "10", "--out", f"on-{world}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = map(
            json.loads,
            (tmp_path / f"on-{world}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines(),
        )
        found.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(found[0]) == 10
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_verify() -> None:
    """Every equivalence of `lmsmith verify` holds with the bounds for CUDA."""
    from lmsmith.verify import EQUIVALENCES, run

    on_cuda = [one.name for one in EQUIVALENCES.values() if one.cuda is not None]
    assert [outcome for outcome in run(on_cuda, device="cuda") if not outcome.agrees] == []
