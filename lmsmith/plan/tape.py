"""A training pass as a list of operations on sizes, and the memory that it needs at each moment.

`Tape` records what a forward pass allocates and what autograd saves for the backward pass. `run`
then replays both passes and tracks the bytes that are alive, as PyTorch's reference counts would:

- a tensor lives until its last use in the forward pass; a saved one until its backward step;
- a backward step allocates the gradients of its inputs, and frees that of its output and what was
  saved for it;
- gradients of parameters stay.

No numbers are computed. `plan/transformer.py` writes the tape of a Transformer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Tensor:
    """A block of memory. `kind`: its row in tables. `learns`: whether a gradient flows to it."""

    kind: str
    n_bytes: float
    learns: bool = True


@dataclass(eq=False)
class Op:
    """One operation. Sizes are in bytes.

    `saved`: kept for the backward pass. `temporary`, `temporary_backward`: allocated and freed
    inside it. `gradients`: bytes of the gradients of its inputs, if they are not as large as the
    inputs. `weights`: bytes of the gradients of parameters. `passes`: the gradient of the output is
    that of the inputs, without a copy (additions, views). `group`: operations that activation
    checkpointing recomputes together; -1: none. `keeps`: selective checkpointing keeps its output.
    `lingers`: what a recomputed Python function keeps until its group's backward pass ends.
    `traffic`: bytes that it reads and writes in both passes, if that is more than its inputs and
    outputs.
    """

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    saved: Sequence[Tensor] = ()
    temporary: float = 0.0
    temporary_backward: float = 0.0
    gradients: Sequence[float] | None = None
    weights: float = 0.0
    passes: bool = False
    group: int = -1
    keeps: bool = False
    lingers: Sequence[Tensor] = ()
    traffic: float = 0.0


@dataclass
class Tape:
    """The operations of a forward pass, in order."""

    ops: list[Op] = field(default_factory=list)
    held: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    group: int = -1
    _scopes: list[int] = field(default_factory=list)
    _n_scopes: int = 0

    def op(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **options: Any
    ) -> None:
        self.ops.append(Op(name, inputs, outputs, group=self.group, **options))

    def hold(self, *tensors: Tensor) -> None:
        """Keeps tensors alive until the current scope ends, as a Python variable does."""
        self.held[self._scopes[-1]].extend(tensors)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A Python function: what it holds is freed after its last operation."""
        self._n_scopes += 1
        number = self._n_scopes
        self._scopes.append(number)
        yield
        self._scopes.pop()
        self.ends[len(self.ops) - 1].append(number)

    @contextmanager
    def recomputed(self, group: int) -> Iterator[None]:
        """Operations that activation checkpointing recomputes in the backward pass."""
        self.group = group
        yield
        self.group = -1


@dataclass
class Peak:
    """The moment with the most memory: its bytes by kind, and where it is."""

    n_bytes: float = 0.0
    by_kind: dict[str, float] = field(default_factory=dict)
    moment: str = ""


GRADIENTS, PASSING, TEMPORARY = "gradients", "gradients of activations", "temporary"


class _Memory:
    """Bytes alive by kind, and their peak."""

    def __init__(self, resident: dict[str, float]) -> None:
        self.alive = defaultdict(float, resident)
        self.total = sum(resident.values())
        self.peak = Peak(self.total, dict(self.alive), "start")

    def add(self, kind: str, n_bytes: float) -> None:
        self.alive[kind] += n_bytes
        self.total += n_bytes

    def look(self, moment: str, temporary: float = 0.0) -> None:
        if self.total + temporary > self.peak.n_bytes:
            by_kind = {kind: n for kind, n in self.alive.items() if n > 0}
            by_kind[TEMPORARY] = by_kind.get(TEMPORARY, 0.0) + temporary
            self.peak = Peak(self.total + temporary, by_kind, moment)


def run(tape: Tape, resident: dict[str, float], *, checkpointing: bool, accumulates: bool) -> Peak:
    """The peak of a forward and backward pass, with `resident` bytes by kind throughout.

    `accumulates`: gradients of parameters exist already (they are part of `resident`), and new ones
    are added to them.
    """
    replay = _Replay(tape, resident, checkpointing, accumulates)
    segments = replay.segments()
    for group, indices in segments:
        if group >= 0:
            for tensor in replay.kept(indices):
                replay.acquire(tensor)
        replay.forward(indices, saves=group < 0)
    for group, indices in reversed(segments):
        if group >= 0:
            replay.recompute(indices)
        for index in reversed(indices):
            replay.backward(tape.ops[index])
        if group >= 0:
            for tensor in (*replay.kept(indices), *replay.lingering):
                replay.release(tensor)
    return replay.memory.peak


@dataclass(eq=False)
class _Gradient:
    n_bytes: float
    references: int = 0


class _Replay:
    def __init__(
        self, tape: Tape, resident: dict[str, float], checkpointing: bool, accumulates: bool
    ) -> None:
        self.tape, self.checkpointing, self.accumulates = tape, checkpointing, accumulates
        self.memory = _Memory(resident)
        self.references: dict[Tensor, int] = defaultdict(int)
        self.gradients: dict[Tensor, _Gradient] = {}
        self.lingering: list[Tensor] = []
        self.last = _last_uses(tape, range(len(tape.ops)))

    def segments(self) -> list[tuple[int, list[int]]]:
        """Operations that belong together: (group, indices); group -1 is not recomputed."""
        found: list[tuple[int, list[int]]] = []
        for index, op in enumerate(self.tape.ops):
            group = op.group if self.checkpointing else -1
            if not found or found[-1][0] != group:
                found.append((group, []))
            found[-1][1].append(index)
        return found

    def inputs_of(self, indices: Sequence[int]) -> list[Tensor]:
        ops = [self.tape.ops[index] for index in indices]
        made = {tensor for op in ops for tensor in op.outputs}
        used = dict.fromkeys(tensor for op in ops for tensor in op.inputs)
        return [tensor for tensor in used if tensor not in made]

    def kept(self, indices: Sequence[int]) -> list[Tensor]:
        """What a checkpoint keeps of a group: its inputs, and selected outputs."""
        ops = (self.tape.ops[index] for index in indices)
        outputs = [tensor for op in ops if op.keeps for tensor in op.outputs]
        return [*self.inputs_of(indices), *outputs]

    def acquire(self, tensor: Tensor) -> None:
        self.references[tensor] += 1
        if self.references[tensor] == 1:
            self.memory.add(tensor.kind, tensor.n_bytes)

    def release(self, tensor: Tensor) -> None:
        self.references[tensor] -= 1
        if self.references[tensor] == 0:
            self.memory.add(tensor.kind, -tensor.n_bytes)

    def forward(self, indices: Sequence[int], *, saves: bool) -> None:
        for index in indices:
            op = self.tape.ops[index]
            for tensor in (*op.outputs, *(op.saved if saves else ())):
                self.acquire(tensor)
            self.memory.look(f"forward pass, {op.name}", op.temporary)
            for tensor in self.last[index]:
                self.release(tensor)

    def recompute(self, indices: Sequence[int]) -> None:
        """Repeats a group's forward pass, and saves this time."""
        last = _last_uses(self.tape, indices)
        self.lingering = [t for i in indices for t in self.tape.ops[i].lingers]
        outside = set(self.inputs_of(indices))
        for index in indices:
            op = self.tape.ops[index]
            for tensor in (*op.outputs, *op.saved, *op.lingers):
                self.acquire(tensor)
            self.memory.look(f"recomputation, {op.name}", op.temporary)
            for tensor in last[index]:
                if tensor not in outside:
                    self.release(tensor)

    def backward(self, op: Op) -> None:
        incoming = [self.gradients.pop(out) for out in op.outputs if out in self.gradients]
        learning = [tensor for tensor in op.inputs if tensor.learns]
        new: list[tuple[Tensor, _Gradient]] = []
        if op.gradients is not None:  # further inputs are read through views
            learning = learning[: len(op.gradients)]
        for position, tensor in enumerate(learning):
            if op.passes and incoming:
                gradient = incoming[0]
            else:
                sizes = op.gradients
                gradient = _Gradient(sizes[position] if sizes else tensor.n_bytes)
            self._hold(gradient)
            new.append((tensor, gradient))
        temporary = op.temporary_backward
        if self.accumulates:
            temporary += op.weights
        else:
            self.memory.add(GRADIENTS, op.weights)
        self.memory.look(f"backward pass, {op.name}", temporary)
        for gradient in incoming:
            self._drop(gradient)
        for tensor, gradient in new:
            self._accumulate(tensor, gradient)
        for tensor in op.saved:
            self.release(tensor)

    def _accumulate(self, tensor: Tensor, gradient: _Gradient) -> None:
        """Adds to the gradient that another use of the tensor has left, in place if possible."""
        old = self.gradients.get(tensor)
        if old is None:
            self.gradients[tensor] = gradient
            return
        if old.references > 1 and gradient.references > 1:
            total = _Gradient(old.n_bytes)
            self._hold(total)
            self.memory.look("backward pass, a sum of gradients")
            self._drop(old)
            self._drop(gradient)
            self.gradients[tensor] = total
            return
        keeps = old if old.references == 1 else gradient
        self._drop(gradient if keeps is old else old)
        self.gradients[tensor] = keeps

    def _hold(self, gradient: _Gradient) -> None:
        gradient.references += 1
        if gradient.references == 1:
            self.memory.add(PASSING, gradient.n_bytes)

    def _drop(self, gradient: _Gradient) -> None:
        gradient.references -= 1
        if gradient.references == 0:
            self.memory.add(PASSING, -gradient.n_bytes)


def _last_uses(tape: Tape, indices: Sequence[int]) -> dict[int, list[Tensor]]:
    """The tensors that are no longer needed after each operation, not even by a variable."""
    last: dict[Tensor, int] = {}
    for index in indices:
        op = tape.ops[index]
        for tensor in (*op.inputs, *op.outputs):
            last[tensor] = index
        for scope in tape.ends.get(index, ()):
            for tensor in tape.held.get(scope, ()):
                if tensor in last:
                    last[tensor] = index
    found: dict[int, list[Tensor]] = defaultdict(list)
    for tensor, index in last.items():
        found[index].append(tensor)
    return found
