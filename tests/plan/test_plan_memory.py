"""Peak memory, against every allocation of a real training step."""

from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.windows import Batches
from lmsmith.machine.allocations import allocations
from lmsmith.models import kernels
from lmsmith.models.lora import add_adapters
from lmsmith.plan import transformer
from lmsmith.plan.layers import Implementation
from lmsmith.plan.memory import largest_micro_batch, memory, micro_batch
from lmsmith.plan.tape import GRADIENTS, Tape, Tensor, run
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

SIZE = {
    "model.n_layer": 3,
    "model.n_head": 2,
    "model.d_model": 64,
    "model.context_length": 64,
    "model.vocab_size": 300,
    "train.batch_size": 4,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("llama", {"model.n_kv_head": 1}),
    ("modern", {"model.context_length": 192}),
    ("babygpt", {"model.context_length": 128}),
    ("gpt2", {"train.activation_checkpointing": True, "train.batch_size": 8}),
    ("llama", {"train.micro_batch_size": 2, "optim.name": "muon"}),
    ("qwen3", {"lora.rank": 4}),
    ("modern", {"optim.name": "sgd", "model.context_length": 32}),
    ("modern", {"model.vocab_size": 9000, "train.batch_size": 8}),  # logits in parts
    ("modern", {"model.vocab_size": 9000, "train.batch_size": 8, "train.dtype": "bfloat16"}),
]


def peak_of_training(config: RunConfig) -> int:
    """The most bytes that tensors held in building the model and two steps."""
    T, B = config.model.context_length, config.train.batch_size
    ids = np.zeros((4 * B + 2) * T, np.uint32)
    batches = Batches(ids, context_length=T, batch_size=B, seed=1)
    with allocations(torch.device("cpu")) as found:
        model = config.neural.build()
        model.initialise(torch.Generator())
        if config.lora.rank:
            add_adapters(model, config.lora, torch.Generator())
        model.train()
        replica = Replica(model, config)
        for step in range(2):
            train_step(replica, batches, step, 10)
    return found.peak


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_peak_of_a_training_step(name: str, changes: dict[str, Any]) -> None:
    config = preset(name).changed({**SIZE, **changes}, where="here")
    predicted = memory(config)
    assert predicted.n_bytes == pytest.approx(peak_of_training(config), rel=0.05)
    assert sum(predicted.by_kind.values()) == pytest.approx(predicted.n_bytes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_demo_needs_little_memory(dtype: str) -> None:
    """The larger of the two models that `lmsmith demo` chooses on small machines. The process takes
    at most 700 MB, of which libraries, code and text take 440.
    """
    sizes = {"n_layer": 3, "n_head": 3, "d_model": 192, "context_length": 256, "vocab_size": 2048}
    changes = {f"model.{name}": n for name, n in sizes.items()}
    changes |= {"train.batch_size": 8, "train.dtype": dtype}
    assert memory(preset("modern").changed(changes, where="here")).n_bytes < 225e6


def test_constants_of_the_code_that_the_tape_describes() -> None:
    from lmsmith import loss
    from lmsmith.optim import muon
    from lmsmith.plan import memory as of_plan

    assert loss.CHUNK_ELEMENTS == transformer.CHUNK_ELEMENTS
    assert loss.GPU_CHUNK_ELEMENTS == transformer.GPU_CHUNK_ELEMENTS
    assert loss.PART_ELEMENTS == transformer.PART_ELEMENTS
    assert loss.ROWS == transformer.CHUNK_ROWS
    assert muon.AT_ONCE == of_plan.MUON_AT_ONCE
    assert kernels._CausalAttention.BLOCK == 128


def test_replay_of_a_chain_by_hand() -> None:
    """x -> a -> b: a is saved for b, b is the loss. Backward: the gradient of a beside a."""
    tape = Tape()
    x, a, b = Tensor("x", 10, learns=False), Tensor("a", 100), Tensor("b", 1)
    tape.op("input", [], [x])
    tape.op("first", [x], [a], saved=[x], weights=5)
    tape.op("second", [a], [b], saved=[a], weights=7)
    peak = run(tape, {"parameters": 12}, checkpointing=False, accumulates=False)
    # parameters 12, x 10, a 100, its gradient 100, and gradients of the second operation's 7
    assert peak.n_bytes == 12 + 10 + 100 + 100 + 7
    assert peak.by_kind[GRADIENTS] == 7
    assert peak.moment == "backward pass, second"


def gpt2(changes: dict[str, Any]) -> RunConfig:
    size = {"model.vocab_size": 50257, "train.batch_size": 16, "train.dtype": "bfloat16"}
    return preset("gpt2").changed({**size, **changes}, where="here")


def test_fsdp_divides_and_checkpointing_saves() -> None:
    one = memory(gpt2({}), gpu=True)
    ddp = memory(gpt2({"train.batch_size": 128}), gpu=True, world=8)
    fsdp = memory(gpt2({"train.batch_size": 128, "train.parallel": "fsdp"}), gpu=True, world=8)
    n = gpt2({}).neural.n_parameters()
    assert one.steady["parameters"] == 4 * n
    assert one.steady["optimizer state"] == 8 * n
    assert fsdp.steady["parameters"] == 4 * n / 8
    assert ddp.n_bytes > one.n_bytes  # its buckets hold the gradients in the forward pass too
    assert fsdp.n_bytes < ddp.n_bytes
    again = memory(gpt2({"train.activation_checkpointing": True}), gpu=True)
    assert again.n_bytes < 0.6 * one.n_bytes


def test_worked_figure_of_gpt2_xls_shape() -> None:
    """16 bytes per parameter, and about 16.6 GB of activations per row with all attention
    weights kept and all logits at once.
    """
    config = preset("llama").changed(
        {
            "model.n_layer": 48,
            "model.n_head": 25,
            "model.d_model": 1600,
            "model.d_ff": 6400,
            "model.vocab_size": 50257,
            "model.context_length": 1024,
            "train.batch_size": 1,
            "train.dtype": "float32",
        },
        where="here",
    )
    n = config.neural.n_parameters()
    assert 16 * n == pytest.approx(34e9, rel=0.005)
    B, T, D, H, L, V = 1, 1024, 1600, 25, 48, 50257
    formula = 4 * B * (L * (20 * T * D + 2 * H * T * T) + T * D + T * V)
    assert formula == pytest.approx(16.6e9, rel=0.005)
    assert [16 * n + rows * formula <= 80e9 for rows in (2, 3)] == [True, False]
    how = Implementation(attention="math", loss="full")
    peak = memory(config, gpu=True, how=how)
    # Before the first gradient exists: parameters, state and activations.
    activations = peak.n_bytes - sum(peak.steady.values()) - peak.by_kind.get(GRADIENTS, 0)
    # The formula keeps scores and weights of attention; autograd keeps the weights alone.
    assert activations < formula
    assert activations == pytest.approx(formula, rel=0.2)


def test_micro_batches() -> None:
    assert micro_batch(gpt2({"train.micro_batch_size": 4})) == (4, True)
    assert micro_batch(gpt2({"train.micro_batch_size": 4}), 8) == (2, False)
    assert [largest_micro_batch(lambda n, most=most: n <= most) for most in (0, 1, 7, 1000)] == [
        *(0, 1, 7, 1000)
    ]
