"""Predicts the peak memory of training: of tensors, in bytes, on each device.

What is predicted is the most memory that tensors hold at one moment: `torch.cuda.
max_memory_allocated` on GPUs, and the allocations of PyTorch's allocator on CPUs. A process on a
CPU needs more, see `of_process`.

    parameters        4 bytes each (8 in float64)
    gradients         the same
    optimizer state   AdamW 8 bytes per parameter, Muon and SGD 4
    activations       from the tape of the model (`plan/transformer.py`)
    temporary         the largest operation, chunk of logits, or group of matrices of Muon

The peak is the larger one of the passes and of the optimizer step. DDP keeps gradients in its
buckets throughout. FSDP2 divides parameters, gradients and state by the number of devices; each
holds the full weights of two blocks at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rnn_config import RNNConfig
from lmsmith.plan.layers import LMSMITH, RESIDUAL, Implementation, Setup
from lmsmith.plan.parameters import Parameter, muon_maps, parameters
from lmsmith.plan.tape import GRADIENTS, TEMPORARY, Peak, run
from lmsmith.plan.transformer import loss_chunk, write_tape

PARAMETERS, STATE, TABLES = "parameters", "optimizer state", "constants and batch"
# Bytes of state per byte of parameter.
STATES = {"adamw": 2, "muon": 1, "sgd": 1, "other": 2}
MUON_AT_ONCE = 1 << 27  # `optim/muon.py`: the most numbers that are updated together


PROCESS = 0.3e9  # resident bytes of the interpreter, libraries and compiled code
HEAP = 1.2  # resident bytes of the heap per byte of tensors


def of_process(n_bytes: float) -> float:
    """Resident bytes of a process on a CPU whose tensors take `n_bytes` at most.

    Training keeps freed memory in the heap (`machine/heap.py`). Gradients and optimizer state,
    which stay, lie between blocks of activations, which come and go, so that a freed block is
    often too small for the next tensor. The C library hands out 0.7% to 2.4% more than the
    predicted tensors. docs/accounting.md has the measurements, `benchmarks/memory.py train`
    measures the process.
    """
    return PROCESS + HEAP * n_bytes


def room_for_tensors(resident: float) -> float:
    """The most bytes of tensors of a process on a CPU with this many resident bytes."""
    return max(0.0, (resident - PROCESS) / HEAP)


@dataclass(frozen=True)
class Memory:
    """Peak bytes of tensors on one device. `by_kind` adds up to `n_bytes`; `moment`: where."""

    n_bytes: float
    by_kind: dict[str, float]
    moment: str
    steady: dict[str, float] = field(default_factory=dict)
    """Bytes that are there throughout the run: parameters, optimizer state, constants."""


def memory(
    config: RunConfig, *, gpu: bool = False, world: int = 1, how: Implementation = LMSMITH
) -> Memory:
    """Predicts the peak memory of each device that trains with `config`.

    `gpu`: fused attention and its kernels, else lmsmith's CPU kernels. `world`: number of devices;
    `train.parallel` says how they share the model. The batch is divided among them. `how`: the
    implementations of another program.
    """
    found = parameters(config)
    full = 8 if config.train.dtype == "float64" else 4
    half = 2 if config.train.dtype in ("bfloat16", "float16") else full
    sharded = world > 1 and config.train.parallel == "fsdp"
    share = world if sharded else 1
    learned = sum(p.n for p in found if p.learned) * full
    every = sum(p.n for p in found) * full
    rows, accumulates = micro_batch(config, world)
    state = sum(STATES[p.optimizer] * p.n * full for p in found if p.learned)
    steady = {PARAMETERS: every / share, STATE: state / share, TABLES: _constants(config, rows)}
    passes = dict(steady)
    keeps_gradients = accumulates or (world > 1 and not sharded)
    if keeps_gradients:  # FSDP2 keeps unsharded gradients until the last micro-batch
        passes[GRADIENTS] = learned
    if sharded:
        passes["gathered weights"] = _gathered(config, found) * (half if how.half else full)
    best = _passes(config, Setup(rows, full, half, gpu, how), passes, keeps_gradients)
    if sharded:  # gradients are reduced and divided block by block
        best = _scaled_gradients(best, 1 if accumulates else world)
    after = {**steady, GRADIENTS: learned / share}
    peak = max(best, _optimizer(config, found, after, full), key=lambda peak: peak.n_bytes)
    return Memory(peak.n_bytes, {k: v for k, v in peak.by_kind.items() if v}, peak.moment, steady)


def micro_batch(config: RunConfig, world: int = 1) -> tuple[int, bool]:
    """Rows of a micro-batch on one device, and whether a step has more than one."""
    rows = max(1, _batch_rows(config) // world)
    at_once = min(config.train.micro_batch_size or rows, rows)
    return at_once, at_once < rows


def _batch_rows(config: RunConfig) -> int:
    if config.train.batch_tokens:
        return max(1, round(config.train.batch_tokens / config.model.context_length))
    return config.train.batch_size


def largest_micro_batch(fits: Callable[[int], bool], most: int = 1 << 20) -> int:
    """The largest number of rows that `fits`, which is monotonic; 0 if one row does not."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _passes(config: RunConfig, setup: Setup, resident: dict[str, float], accumulates: bool) -> Peak:
    model = config.model
    if isinstance(model, GPTConfig):
        checkpointing = config.train.activation_checkpointing
        tape = write_tape(config, setup)
        return run(tape, resident, checkpointing=checkpointing, accumulates=accumulates)
    return _recurrent(config, setup, resident, accumulates)


def _recurrent(
    config: RunConfig, setup: Setup, resident: dict[str, float], accumulates: bool
) -> Peak:
    """Recurrent networks: states and gates of every position. A rough count, to about a quarter."""
    model, full = config.model, setup.full
    N = setup.n_rows * model.context_length
    P, D = config.neural.padded_vocab_size, getattr(model, "d_model", 0)
    kept = 6.0 * N * D * full
    if isinstance(model, RNNConfig):
        kept = N * D * full * (1 + model.n_layer * (2 + 2 * model.n_gates))
    logits = loss_chunk(P, N, setup.gpu) * P * full * 2
    gradients = 0.0 if accumulates else config.neural.n_parameters() * full
    by_kind = {**resident, RESIDUAL: kept, TEMPORARY: logits}
    by_kind[GRADIENTS] = by_kind.get(GRADIENTS, 0.0) + gradients
    return Peak(sum(by_kind.values()), by_kind, "backward pass")


def _optimizer(
    config: RunConfig, found: list[Parameter], resident: dict[str, float], full: int
) -> Peak:
    """The optimizer step: AdamW's fused kernel works in place, Muon on stacks of
    matrices, SGD on groups.
    """
    numbers = [p for p in found if p.learned and p.optimizer == "muon"]
    temporary, group = 0.0, list[Parameter]()
    for parameter in numbers:
        if group and sum(p.n for p in group) + parameter.n > MUON_AT_ONCE:
            temporary, group = max(temporary, _muon(config, group)), []
        group.append(parameter)
    temporary = max(temporary, _muon(config, group), _nesterov(config, found)) * full
    by_kind = {**resident, TEMPORARY: temporary}
    return Peak(sum(by_kind.values()), by_kind, "optimizer step")


def _nesterov(config: RunConfig, found: list[Parameter]) -> float:
    """Numbers of SGD's Nesterov gradients: one copy for each parameter of a group at a time."""
    if config.optim.name != "sgd" or not (config.optim.sgd_nesterov and config.optim.sgd_momentum):
        return 0.0
    groups = {"tables": 0, "matrices": 0, "vectors": 0}
    for parameter in found:
        wide = "matrices" if len(parameter.shape) >= 2 else "vectors"
        name = "tables" if "embedding" in parameter.name else wide
        groups[name] += parameter.n * parameter.learned
    return float(max(groups.values()))


def _muon(config: RunConfig, group: list[Parameter]) -> float:
    """Numbers in memory while a group is updated: the changes of all, and of the largest shape a
    stack, two copies, and two products of each matrix with itself.
    """
    shapes: dict[tuple[int, int], int] = {}
    for parameter in group:
        n_in = parameter.shape[1]
        for each in muon_maps(config, parameter):
            shape = (min(each, n_in), max(each, n_in))
            shapes[shape] = shapes.get(shape, 0) + 1
    stacks = (n * (3 * r * c + 2 * r * r) for (r, c), n in shapes.items())
    return sum(p.n for p in group) + max(stacks, default=0)


def _constants(config: RunConfig, rows: int) -> float:
    """Bytes of the batch's ids, and of the rotary table (float64 and the precision in use)."""
    model = config.model
    n_bytes = 16.0 * rows * model.context_length
    if isinstance(model, GPTConfig) and model.positions == "rope":
        n_bytes += model.context_length * model.width_rotary * (8 + 4)
    return n_bytes


def _gathered(config: RunConfig, found: list[Parameter]) -> float:
    """Numbers that FSDP2 gathers at once: two blocks, and what is outside blocks."""
    blocks: dict[str, int] = {}
    outside = 0
    for parameter in found:
        words = parameter.name.split(".")
        if words[0] == "blocks":
            blocks[words[1]] = blocks.get(words[1], 0) + parameter.n
        else:
            outside += parameter.n
    return outside + sum(sorted(blocks.values())[-2:])


def _scaled_gradients(peak: Peak, world: int) -> Peak:
    gradients = peak.by_kind.get(GRADIENTS, 0.0)
    smaller = gradients / world
    by_kind = {**peak.by_kind, GRADIENTS: smaller}
    return Peak(math.fsum([peak.n_bytes, smaller, -gradients]), by_kind, peak.moment)
