"""The batched decoder of Transformers in PyTorch, for GPUs: one token for all sequences at once.

    decoder = BatchedDecoder(model, n_slots=16)
    logits = decoder.prefill(0, ids)          # slot 0 now holds the keys and values of `ids`
    logits = decoder.step([0, 3], [5, 7])     # reads one more token in two slots

Row i of a step is slot i, so the KV cache is read in place. All shapes of a step are static: the
number of rows and the number of cached positions are rounded up to powers of two. For each pair of
them the step is captured once as a CUDA graph, and then replayed with one launch. Rows without a
token write to a position of the cache that no query sees.

A layer's cache holds `capacity` positions of every slot, or its sliding window as a ring: position
p is stored at p mod window. When a sequence outgrows the capacity, it doubles, up to the model's
context length; the graphs are then captured again. So the cache is copied a few times at most, and
a model with a long context does not reserve memory for it.

On a GPU, matrix products may choose another kernel for another number of rows. So unlike with
`CpuDecoder`, the last bits of a sequence's logits can depend on how many sequences run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.decoders import ReadsInTurn
from lmsmith.generate.prefix import PIECE, PrefixCache, read_prompt
from lmsmith.models.attention import LayerCache, Layout, State
from lmsmith.models.gpt import GPT

FIRST_CAPACITY = 256
"""Positions for which a new decoder allocates its cache."""

PROMPT_PIECE = 2048
"""Tokens of a prompt that are read at once without a prefix cache."""

_graphs_allowed = ContextVar("graphs_allowed", default=True)
_WARM_UPS = 3  # steps before a capture, in which libraries allocate their workspaces
_MOST_SHAPES = 256  # that torch.compile may compile one step for


@contextmanager
def without_graphs() -> Iterator[None]:
    """Decoders that are built inside run their steps eagerly: for a few tokens beside a training
    step, whose memory a capture would take.
    """
    before = _graphs_allowed.set(False)
    try:
        yield
    finally:
        _graphs_allowed.reset(before)


class BatchedDecoder(ReadsInTurn):
    """Decodes up to `n_slots` sequences with a Transformer on any device."""

    def __init__(
        self,
        model: GPT,
        n_slots: int,
        prefix_bytes: int = 0,
        *,
        graphs: bool | None = None,
        compiled: bool = False,
    ) -> None:
        """`prefix_bytes`: memory for prefixes that prompts share (`prefix.py`). `graphs`: capture
        steps as CUDA graphs; None: on CUDA, except inside `without_graphs`. `compiled`:
        torch.compile the step.
        """
        device = model.device
        self.model, self.n_slots = model, n_slots
        self.prefixes = PrefixCache(prefix_bytes) if prefix_bytes else None
        self.graphs = graphs
        if graphs is None:
            self.graphs = device.type == "cuda" and _graphs_allowed.get()
        self.positions = np.zeros(n_slots, np.int64)
        with torch.no_grad():
            empty = model.new_state(n_slots)
            embedded = model.token_embedding(torch.zeros(1, dtype=torch.int64, device=device))
        if model.rotary is not None:
            model.rotary.table_for(embedded)  # a compiled step cannot build the table
        self.before = empty.before
        self.capacity = 0
        self.layers = [
            _Layer(cache.keys[:, :, :0], cache.values[:, :, :0], model.config.window_of(i))
            for i, cache in enumerate(empty.layers)
        ]
        # One row per slot: id, position, and whether the row has a token.
        self._inputs = torch.zeros(n_slots, 3, dtype=torch.int64, device=device)
        self._host = torch.zeros(n_slots, 3, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._forward: Callable[[int, int], Tensor] = self._logits
        if compiled:
            # It is compiled for each number of rows and positions.
            torch._dynamo.config.recompile_limit = max(
                _MOST_SHAPES, torch._dynamo.config.recompile_limit
            )
            self._forward = torch.compile(self._logits, fullgraph=True, dynamic=False)
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._reserve(1)

    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Reads a prompt of 1 to `context_length` tokens into a slot, in place of what was there.

        Returns the logits of the next token.
        """
        T = len(ids)
        assert 1 <= T <= self.model.config.context_length
        self._reserve(T)
        with inference(self.model):
            piece = PIECE if self.prefixes else PROMPT_PIECE
            hidden, state = read_prompt(self.model, ids, self.prefixes, piece)
            for layer, read in zip(self.layers, state.layers, strict=True):
                layer.fill(slot, read.keys[0, :, :T], read.values[0, :, :T])
            self.before[slot] = state.before[0]
            self.positions[slot] = T
            return self.model.logits(hidden[:, -1:])[0, 0]

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "B V"]:
        """Reads one more token in each of B different slots; gives the logits of the next ones.

        The logits are valid until the next call.
        """
        where = np.asarray(slots, np.int64)
        at = self.positions[where]
        assert len(set(slots)) == len(slots)
        assert (at < self.model.config.context_length).all()
        length = self._reserve(int(at.max()) + 1)
        rows = min(self.n_slots, _power_of_two(max(slots) + 1))
        self._host[:rows] = 0
        self._host[where] = torch.from_numpy(np.stack([ids, at, np.ones_like(at)], axis=1))
        with inference(self.model):
            run = self._captured(rows, length) if self.graphs else self._forward
            self._inputs[:rows].copy_(self._host[:rows])
            logits = run(rows, length)
            self.positions[where] = at + 1
            if list(slots) == list(range(rows)):
                return logits
            return logits[torch.from_numpy(where).to(logits.device)]

    def copy(self, source: int, target: int) -> None:
        """Makes slot `target` equal to slot `source`."""
        n = int(self.positions[source])
        for layer in self.layers:
            for store in (layer.keys, layer.values):
                store[target, :, : min(n, layer.size)] = store[source, :, : min(n, layer.size)]
        self.positions[target] = n
        self.before[target] = self.before[source]

    def free(self, slot: int) -> None:
        """Empties a slot. Its memory is kept for the next sequence."""
        self.positions[slot] = 0

    def _reserve(self, n: int) -> int:
        """Makes room for n positions in every slot; returns n, rounded up to the length of a
        step.
        """
        most = self.model.config.context_length
        length = min(most, max(FIRST_CAPACITY, _power_of_two(n)))
        if length > self.capacity:
            self.capacity = length
            self._graphs.clear()  # they have the addresses of the old cache
            for layer in self.layers:
                layer.grow(length)
        return length

    def _logits(self, rows: int, length: int) -> Float[Tensor, "rows V"]:
        """One step for the tokens in `self._inputs`, with at most `length` positions of the cache.

        A function of shapes and of memory at fixed addresses alone, as a CUDA graph needs it.
        """
        ids, at, active = self._inputs[:rows].unbind(1)
        layers: list[LayerCache] = [
            layer.for_step(at, active.bool(), min(length, layer.size)) for layer in self.layers
        ]
        layout = Layout(at[:, None], {})
        state = _StepState(layers, self.before[:rows], layout=layout, active=active.bool())
        return self.model.logits(self.model.hidden(ids[:, None], state))[:, 0]

    def _captured(self, rows: int, length: int) -> Callable[[int, int], Tensor]:
        """The step as a CUDA graph, captured at its first use."""
        if (rows, length) not in self._graphs:
            self._inputs.zero_()  # so that the steps of the warm-up change nothing
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._forward(rows, length)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as data loaders, may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = self._forward(rows, length)
            self._graphs[rows, length] = graph, logits
        graph, logits = self._graphs[rows, length]

        def replay(rows: int, length: int) -> Tensor:
            graph.replay()
            return logits

        return replay


class _Layer:
    """The KV cache of one layer, a slot per sequence: (slots, G, size + 1, K).

    The position behind the others takes what rows without a token write.
    """

    def __init__(self, keys: Tensor, values: Tensor, window: int) -> None:
        self.keys, self.values, self.window, self.size = keys, values, window, 0

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` positions, or for the window if that is less."""
        size = min(capacity, self.window or capacity)
        if size > self.size:
            self.keys, self.values = (
                self._grown(old, size + 1) for old in (self.keys, self.values)
            )
            self.size = size

    def _grown(self, old: Tensor, n: int) -> Tensor:
        new = old.new_zeros(*old.shape[:2], n, old.size(3))
        new[:, :, : self.size] = old[:, :, : self.size]
        return new

    def fill(self, slot: int, keys: Float[Tensor, "G T K"], values: Float[Tensor, "G T K"]) -> None:
        """Stores a sequence's first T positions."""
        T = keys.size(1)
        kept = torch.arange(max(0, T - self.size), T, device=keys.device)
        for store, new in ((self.keys, keys), (self.values, values)):
            store[slot, :, kept % self.size] = new[:, kept]

    def for_step(self, at: Int[Tensor, " B"], active: Bool[Tensor, " B"], n: int) -> _StepCache:
        """The first rows of the cache, for one step that reads n positions of it."""
        rows = torch.arange(at.size(0), device=at.device)
        # A ring that has wrapped around is seen as a whole.
        seen = torch.arange(n, device=at.device) <= at[:, None].clamp(max=n - 1)
        return _StepCache(
            self.keys[: at.size(0)],
            self.values[: at.size(0)],
            (rows, torch.where(active, at % self.size, self.size)),
            seen[:, None, None],
        )


@dataclass
class _StepCache(LayerCache):
    """A layer's cache in one step: `attend` writes one position per row."""

    place: tuple[Int[Tensor, " B"], Int[Tensor, " B"]]  # rows, and the new position in each
    seen: Bool[Tensor, "B 1 1 n"]

    def attend(
        self,
        q: Float[Tensor, "B H 1 K"],
        k: Float[Tensor, "B G 1 K"],
        v: Float[Tensor, "B G 1 K"],
        position: int,
        window: int,
        scale: float,
    ) -> Float[Tensor, "B H 1 K"]:
        """Stores k and v; returns attention on the cached positions.

        The query heads of a key-value head take the place of time, so no key is repeated.
        """
        rows, at = self.place
        self.keys[rows, :, at] = k[:, :, 0]
        self.values[rows, :, at] = v[:, :, 0]
        n = self.seen.size(-1)
        B, G, _, K = k.shape
        grouped = q.reshape(B, G, -1, K)
        keys, values = self.keys[:, :, :n], self.values[:, :, :n]
        y = F.scaled_dot_product_attention(grouped, keys, values, self.seen, scale=scale)
        return y.reshape(q.shape)


@dataclass
class _StepState(State):
    """The state of all rows in one step."""

    active: Bool[Tensor, " B"] = field(kw_only=True)

    def advance(self, ids: Int[Tensor, "B 1"]) -> None:
        """Appends a token to `before` in the rows that have one."""
        later = torch.cat([self.before, ids], dim=1)[:, 1:]
        self.before.copy_(torch.where(self.active[:, None], later, self.before))


def _power_of_two(n: int) -> int:
    """The first power of two that is at least n."""
    return 1 << (n - 1).bit_length()
